"""The official Darknet detectors as cfg text, written from their widths, strides and anchors.

Sources: YOLOv2 arXiv:1612.08242, YOLOv3 arXiv:1804.02767, YOLOv4-tiny arXiv:2011.08036. The number
of floats that each takes equals what the official weights file holds.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["CFGS", "cfg_text"]

_TINY_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
_V3_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
_V2_COCO_ANCHORS = (
    "0.57273,0.677385, 1.87446,2.06253, 3.33843,5.47434, 7.88282,3.52778, 9.77052,9.16828"
)
_V2_VOC_ANCHORS = (
    "1.3221,1.73145, 3.19275,4.00944, 5.05587,8.09892, 9.47112,4.84053, 11.2364,10.0071"
)
_V2_TINY_VOC_ANCHORS = "1.08,1.19, 3.42,4.41, 6.63,11.38, 9.42,5.11, 16.62,10.52"


def cfg_text(name: str, hw: tuple[int, int] = (416, 416), classes: int | None = None) -> str:
    """The cfg of a detector in `CFGS`, for an input of `hw` pixels (multiples of 32).

    Args:
        classes: their number; left out, that of the official weights.

    Raises:
        KeyError: no such name.
        ValueError: `hw` is no multiple of 32.
    """
    if any(side % 32 or side < 32 for side in hw):
        raise ValueError(f"hw is {hw}; {name} takes multiples of 32 pixels")
    layers, official = CFGS[name]
    return "\n".join(
        [f"[net]\nheight={hw[0]}\nwidth={hw[1]}\nchannels=3\n", *layers(classes or official)]
    )


def _section(kind: str, **options: object) -> str:
    lines = [f"{key}={value}" for key, value in options.items()]
    return "\n".join([f"[{kind}]", *lines, ""])


def _conv(filters: int, size: int = 3, stride: int = 1) -> str:
    return _section(
        "convolutional",
        batch_normalize=1,
        filters=filters,
        size=size,
        stride=stride,
        pad=1,
        activation="leaky",
    )


def _pool(stride: int = 2) -> str:
    return _section("maxpool", size=2, stride=stride)


def _route(*layers: int, **options: int) -> str:
    return _section("route", layers=",".join(map(str, layers)), **options)


def _out(filters: int) -> str:
    return _section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")


def _region(anchors: str, classes: int) -> list[str]:
    region = _section("region", anchors=anchors, classes=classes, coords=4, num=5, softmax=1)
    return [_out(5 * (5 + classes)), region]


def _yolo(anchors: str, mask: str, classes: int, scale: float = 1.0) -> list[str]:
    number = anchors.count(",") // 2 + 1
    yolo = _section(
        "yolo", mask=mask, anchors=anchors, classes=classes, num=number, scale_x_y=scale
    )
    return [_out(3 * (5 + classes)), yolo]


def _tiny_body() -> list[str]:
    """Six halvings by pooling, the last of stride 1: layers 0 to 12."""
    layers = []
    for filters in (16, 32, 64, 128, 256, 512):
        layers += [_conv(filters), _pool(1 if filters == 512 else 2)]
    return [*layers, _conv(1024)]


def _yolov2_tiny(classes: int) -> list[str]:
    return [*_tiny_body(), _conv(512), *_region(_V2_COCO_ANCHORS, classes)]


def _yolov2_tiny_voc(classes: int) -> list[str]:
    return [*_tiny_body(), _conv(1024), *_region(_V2_TINY_VOC_ANCHORS, classes)]


def _yolov3_tiny(classes: int) -> list[str]:
    return [
        *_tiny_body(),
        *(_conv(256, 1), _conv(512), *_yolo(_TINY_ANCHORS, "3,4,5", classes)),
        *(_route(-4), _conv(128, 1), _section("upsample", stride=2), _route(-1, 8)),
        *(_conv(256), *_yolo(_TINY_ANCHORS, "0,1,2", classes)),
    ]


def _csp_tiny(filters: int) -> list[str]:
    """One cross-stage partial block of YOLOv4-tiny and the pooling after it."""
    half = filters // 2
    return [
        *(_conv(filters), _route(-1, groups=2, group_id=1), _conv(half), _conv(half)),
        *(_route(-1, -2), _conv(filters, 1), _route(-6, -1), _pool()),
    ]


def _yolov4_tiny(classes: int) -> list[str]:
    return [
        *(_conv(32, 3, 2), _conv(64, 3, 2)),
        *(*_csp_tiny(64), *_csp_tiny(128), *_csp_tiny(256)),
        *(_conv(512), _conv(256, 1), _conv(512), *_yolo(_TINY_ANCHORS, "3,4,5", classes, 1.05)),
        *(_route(-4), _conv(128, 1), _section("upsample", stride=2), _route(-1, 23)),
        *(_conv(256), *_yolo(_TINY_ANCHORS, "1,2,3", classes, 1.05)),
    ]


def _bottlenecks(filters: int, count: int) -> list[str]:
    """3x3 convolutions of `filters` with 1x1 ones of half between them: Darknet-19's stage."""
    layers = [_conv(filters)]
    for _ in range(count):
        layers += [_conv(filters // 2, 1), _conv(filters)]
    return layers


def _yolov2_with(anchors: str) -> Callable[[int], list[str]]:
    def layers(classes: int) -> list[str]:
        return [
            *(_conv(32), _pool(), _conv(64), _pool()),
            *(*_bottlenecks(128, 1), _pool(), *_bottlenecks(256, 1), _pool()),
            *(*_bottlenecks(512, 2), _pool(), *_bottlenecks(1024, 2)),
            *(_conv(1024), _conv(1024), _route(-9), _conv(64, 1), _section("reorg", stride=2)),
            *(_route(-1, -4), _conv(1024), *_region(anchors, classes)),
        ]

    return layers


def _residuals(filters: int, count: int) -> list[str]:
    """A halving convolution and `count` residual blocks: Darknet-53's stage."""
    shortcut = _section("shortcut", **{"from": -3, "activation": "linear"})
    block = [_conv(filters // 2, 1), _conv(filters), shortcut]
    return [_conv(filters, 3, 2), *block * count]


def _yolov3_head(filters: int, mask: str, classes: int) -> list[str]:
    pair = [_conv(filters, 1), _conv(2 * filters)]
    return [*pair * 3, *_yolo(_V3_ANCHORS, mask, classes)]


def _yolov3_step_up(filters: int, older: int) -> list[str]:
    return [_route(-4), _conv(filters, 1), _section("upsample", stride=2), _route(-1, older)]


def _yolov3(classes: int) -> list[str]:
    stages = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
    return [
        *(_conv(32), *(layer for stage in stages for layer in _residuals(*stage))),
        *(*_yolov3_head(512, "6,7,8", classes), *_yolov3_step_up(256, 61)),
        *(*_yolov3_head(256, "3,4,5", classes), *_yolov3_step_up(128, 36)),
        *_yolov3_head(128, "0,1,2", classes),
    ]


# Layers by number of classes, and that number in the official weights.
CFGS: dict[str, tuple[Callable[[int], list[str]], int]] = {
    "yolov2": (_yolov2_with(_V2_COCO_ANCHORS), 80),
    "yolov2-tiny": (_yolov2_tiny, 80),
    "yolov2-tiny-voc": (_yolov2_tiny_voc, 20),
    "yolov2-voc": (_yolov2_with(_V2_VOC_ANCHORS), 20),
    "yolov3": (_yolov3, 80),
    "yolov3-tiny": (_yolov3_tiny, 80),
    "yolov4-tiny": (_yolov4_tiny, 80),
}
