"""The kernels' times on a GPU beside what its memory allows; a part of tools/gpu/gpu_check.py.

Times are the GPU's own: a graph of many launches between two events, so that launching from the
host is not measured. Frames are rotated through more memory than any cache holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from edge.letterbox import Letterbox
from edge.runtime.device import Device, DeviceBuffer
from edge.runtime.ops_gpu import Decoder, Kernels, Preprocessor, Suppressor, taps
from edge.spec import HeadSpec, InputContract, ModelSpec

__all__ = ["kernel_times"]

ROUNDS = 30
ROTATED_BYTES = 512 << 20
MOST_FRAMES = 64
STREAMS = 4
PASSING = (0, 30, 300, 3000, 10647)  # of the candidates
FRAMES = ((720, 1280), (1080, 1920), (2160, 3840))
CONTRACT = InputContract((416, 416))
# pjreddie's yolov3.cfg and yolov3-tiny.cfg: 10 647 and 2535 candidates of 85 numbers.
ANCHORS = {
    "yolov3": (
        (13, ((116, 90), (156, 198), (373, 326))),
        (26, ((30, 61), (62, 45), (59, 119))),
        (52, ((10, 13), (16, 30), (33, 23))),
    ),
    "yolov3-tiny": (
        (13, ((81, 82), (135, 169), (344, 319))),
        (26, ((10, 14), (23, 27), (37, 58))),
    ),
}
Type = Literal["float32", "float16"]


def kernel_times(device: Device) -> dict[str, Any]:
    """Bandwidth of a copy, pre-processing, post-processing, and both as one; see the functions."""
    kernels = Kernels.load(device)
    copy = copied(kernels, ROTATED_BYTES // 2, 4)
    return {
        "copy": copy,
        "preprocess": preprocessing(kernels, copy["gb_s"]),
        "postprocess": postprocessing(kernels),
        "whole": whole(kernels),
    }


def spec(name: str) -> ModelSpec:
    heads = tuple(
        HeadSpec.of_grid(f"head{side}", "yolo", (side, side), tuple(anchors))
        for side, anchors in ANCHORS[name]
    )
    return ModelSpec(name, "darknet", tuple(map(str, range(80))), CONTRACT, heads)


def timed_us(kernels: Kernels, work: Callable[[int], None], count: int) -> dict[str, float]:
    """Microseconds of one of `count` calls of work(i), captured into one graph: median, p95."""
    return together_us([(kernels, work)], count)


def together_us(works: list[tuple[Kernels, Callable[[int], None]]], count: int) -> dict[str, float]:
    """The same where each of `works` has a graph and a stream of its own, all at once."""
    device, stream = works[0][0].device, works[0][0].stream
    start, ends, graphs = device.event(), [device.event() for _ in works], []
    for kernels, work in works:
        with device.capture(kernels.stream) as graph:
            for index in range(count):
                work(index)
        graphs.append(graph)
    times = []
    for _ in range(ROUNDS):
        device.record(start, stream)
        for (kernels, _), graph, end in zip(works, graphs, ends, strict=True):
            device.replay(graph, kernels.stream)
            device.record(end, kernels.stream)
        for kernels, _ in works:
            device.synchronize(kernels.stream)
        took = max(device.elapsed_ms(start, end) for end in ends)
        times.append(took * 1e3 / count / len(works))
    for resource in (*graphs, start, *ends):
        resource.close()
    p50, p95 = np.percentile(times, (50, 95)).tolist()
    return {"p50_us": p50, "p95_us": p95}


def copied(kernels: Kernels, nbytes: int, count: int) -> dict[str, Any]:
    """A copy of so many bytes on the device: its time, and bytes read and written in GB/s."""
    pairs = max(1, min(count, ROTATED_BYTES // (2 * nbytes)))
    sources = [kernels.device.allocate(nbytes) for _ in range(pairs)]
    targets = [kernels.device.allocate(nbytes) for _ in range(pairs)]

    def work(index: int) -> None:
        at = index % pairs
        kernels.device.copy_async(targets[at], sources[at], kernels.stream)

    took = timed_us(kernels, work, count)
    for buffer in (*sources, *targets):
        buffer.close()
    return {"nbytes": nbytes, "gb_s": 2 * nbytes / took["p50_us"] / 1e3, **took}


def touched_bytes(source_hw: tuple[int, int], contract: InputContract, itemsize: int) -> int:
    """The rows of a BGR frame that a bilinear sample needs, and the whole tensor."""
    fit = Letterbox.fit(source_hw, contract)
    rows = np.unique(taps(source_hw[0], fit.resized_hw[0], rows=True)[:, :2])
    return len(rows) * source_hw[1] * 3 + 3 * contract.hw[0] * contract.hw[1] * itemsize


def frames_of(kernels: Kernels, hw: tuple[int, int]) -> list[DeviceBuffer]:
    """More random frames than the cache holds."""
    count = max(2, min(MOST_FRAMES, ROTATED_BYTES // (hw[0] * hw[1] * 3)))
    first = kernels.upload(np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8))
    rest = [kernels.device.allocate((*hw, 3)) for _ in range(count - 1)]
    for frame in rest:
        kernels.device.copy_async(frame, first, kernels.stream)
    kernels.device.synchronize(kernels.stream)
    return [first, *rest]


def preprocessing(kernels: Kernels, gb_s: float) -> list[dict[str, Any]]:
    """Each size and type: one after the other, several streams at once, and an equal copy.

    One launch of a large GPU is over before its memory is busy; the share of frames that overlap
    says what the kernel itself makes of the memory, the other what one camera sees.
    """
    rows = []
    for hw in FRAMES:
        frames = frames_of(kernels, hw)
        kinds: tuple[Type, ...] = ("float32", "float16")
        for dtype in kinds:
            moved = touched_bytes(hw, CONTRACT, 4 if dtype == "float32" else 2)
            floor = moved / gb_s / 1e3
            alone, beside = (letterboxes(kernels, frames, hw, dtype, n) for n in (1, STREAMS))
            equal = copied(kernels, moved // 8 * 4, len(frames))
            rows.append(
                {
                    "frame_hw": hw,
                    "dtype": dtype,
                    "bytes": moved,
                    "floor_us": floor,
                    **alone,
                    "share_of_copy_bandwidth": floor / alone["p50_us"],
                    "overlapping": beside,
                    "share_of_copy_bandwidth_overlapping": floor / beside["p50_us"],
                    "equal_copy_us": equal["p50_us"],
                    "share_of_equal_copy": equal["p50_us"] / alone["p50_us"],
                }
            )
        for frame in frames:
            frame.close()
    return rows


def letterboxes(
    kernels: Kernels, frames: list[DeviceBuffer], hw: tuple[int, int], dtype: Type, streams: int
) -> dict[str, float]:
    works, held = [], []
    for number in range(streams):
        stream = kernels.device.stream() if number else kernels.stream
        prepare = Preprocessor(CONTRACT, replace(kernels, stream=stream), dtype=dtype)
        prepare.place(hw)

        def work(index: int, prepare: Any = prepare, number: int = number) -> None:
            frame = frames[(index + number * len(frames) // streams) % len(frames)]
            prepare.enqueue_from(frame, pitch=hw[1] * 3)

        works.append((replace(kernels, stream=stream), work))
        held += [prepare, prepare.tensor, *([stream] if number else [])]
    took = together_us(works, len(frames))
    for resource in held:
        resource.close()
    return took


def raw_heads(model: ModelSpec, candidates: int) -> list[Any]:
    """Heads of which about so many candidates pass 0.25."""
    rng = np.random.default_rng(0)
    total = sum(3 * head.grid_hw[0] * head.grid_hw[1] for head in model.heads)
    arrays = []
    for head in model.heads:
        array = rng.normal(0, 1, (1, head.channels(80), *head.grid_hw)).astype(np.float32)
        planes = array.reshape(3, 85, -1)
        passes = rng.random((3, planes.shape[2])) < candidates / total
        planes[:, 4] = np.where(passes, 6, -9)
        planes[:, 5] = 6
        arrays.append(array)
    return arrays


def postprocessing(kernels: Kernels) -> list[dict[str, Any]]:
    """Decoding and suppression of 10 647 x 85, for several numbers of candidates."""
    model, rows = spec("yolov3"), []
    for candidates in PASSING:
        raw = [kernels.upload(array) for array in raw_heads(model, candidates)]
        decode, suppress = Decoder(model, kernels, raw=raw), Suppressor(kernels)

        def work(_: int, decode: Any = decode, suppress: Any = suppress) -> None:
            suppress.enqueue(decode.enqueue(0.25), 0.45)

        took = timed_us(kernels, work, 8)
        found = int(kernels.download(decode.candidates.count)[0])
        rows.append({"candidates": found, "boxes": len(suppress.collect()), **took})
        for resource in (decode, suppress, *raw):
            resource.close()
    return rows


def whole(kernels: Kernels) -> dict[str, Any]:
    """Pre- and post-processing of yolov3-tiny, 40 candidates, of a frame on the device; and of one
    that comes from the host."""
    hw, model = (1080, 1920), spec("yolov3-tiny")
    raw = [kernels.upload(array) for array in raw_heads(model, 40)]
    decode, suppress = Decoder(model, kernels, raw=raw), Suppressor(kernels)
    prepare = Preprocessor(CONTRACT, kernels)
    prepare.place(hw)
    frames = frames_of(kernels, hw)

    def after() -> None:
        suppress.enqueue(decode.enqueue(0.25), 0.45)

    def work(index: int) -> None:
        prepare.enqueue_from(frames[index], pitch=hw[1] * 3)
        after()

    def uploaded(_: int) -> None:
        prepare.enqueue()
        after()

    took = {"frame_hw": hw, **timed_us(kernels, work, min(16, len(frames)))}
    took["with_upload"] = timed_us(kernels, uploaded, 4)
    for resource in (decode, suppress, *raw, prepare, prepare.tensor, *frames):
        resource.close()
    return took
