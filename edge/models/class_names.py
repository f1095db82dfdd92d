"""Names of the classes of COCO and VOC in Darknet's order, and of KITTI."""

from __future__ import annotations

__all__ = ["COCO", "KITTI", "VOC", "class_names"]

COCO = tuple(
    (
        "person, bicycle, car, motorbike, aeroplane, bus, train, truck, boat, traffic light, fire "
        "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
        "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, "
        "snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
        "tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
        "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, sofa, "
        "pottedplant, bed, diningtable, toilet, tvmonitor, laptop, mouse, remote, keyboard, cell "
        "phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy "
        "bear, hair drier, toothbrush "
    )
    .strip()
    .split(", ")
)
VOC = tuple(
    (
        "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, "
        "horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor "
    )
    .strip()
    .split(", ")
)
KITTI = ("car", "pedestrian", "cyclist")


def class_names(count: int) -> tuple[str, ...]:
    """Return COCO's names for 80 classes, VOC's for 20, else class0, class1, ..."""
    known = {len(COCO): COCO, len(VOC): VOC}
    return known.get(count) or tuple(f"class{index}" for index in range(count))
