"""Where INT8 loses accuracy: `edge sensitivity`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.report_style import STYLE
from apps.report_svg import Axis, Frame, circle, line, svg, text
from apps.selection import Selection
from apps.table import show
from calibration.calibrate import network_inputs
from calibration.table import read_table
from edge.artifact import read_manifest, sha256_of, write_atomic
from edge.data.datasets import open_dataset
from edge.reporting import bar, say
from export.sensitivity import measure_sensitivity

__all__ = ["print_sensitivity", "sensitivity"]

_NOISE_IMAGES = 8
# Layers whose names the plot has.
_NAMED = 3


def sensitivity(
    onnx: str | Path,
    table: str | Path,
    data: str | Path,
    *,
    images: int = 50,
    with_map: bool = True,
    threads: int | None = None,
    plot: str | Path | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Quantize each convolution alone, then every one but it; noise at the heads, and mAP.

    Args:
        onnx: FP32 ONNX file of the table.
        data: pictures, better not those of the calibration; mAP needs labels.
        images: for mAP, at most so many, spread evenly; noise needs few.
        with_map: False measures noise alone.
        plot: SVG file of the layers' noise.

    Returns:
        `model`, `data`, `images` (0 without mAP), `int8_db`, `fp32_map50`, `int8_map50`, `layers`
        in the graph's order: `name`, `own_db`, `alone_db`, `kept_db`, `alone_map50`, `kept_map50`.

    Raises:
        ArtifactError, CalibrationError: as `write_int8`, before anything is run.
        DataError: nothing to read there.
    """
    source, calibrated = Path(onnx), read_table(table)
    spec = read_manifest(source).spec
    calibrated.check(sha256_of(source), spec.contract.digest, str(table))
    selection = _selection(data, spec.classes, images, threads) if with_map else None
    arrays = _arrays(source, data)
    with bar("layers") as advance:
        found = measure_sensitivity(
            source,
            calibrated,
            arrays,
            judge=None if selection is None else selection.map50,
            threads=threads,
            progress=advance,
        )
    result = {
        "model": spec.name,
        "data": str(data),
        "images": 0 if selection is None else len(selection.frames),
        "noise_images": len(arrays),
        **{key: value for key, value in asdict(found).items() if key != "layers"},
        "layers": [asdict(layer) for layer in found.layers],
    }
    if plot is not None:
        write_atomic(Path(plot), chart(result).encode())
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _selection(
    data: str | Path, classes: Sequence[str], images: int, threads: int | None
) -> Selection | None:
    """Labelled images, or None where there are only pictures."""
    if open_dataset(data, classes, 1).kind == "images":
        say(f"{data}: pictures without labels; noise only")
        return None
    return Selection.open(data, classes, images, threads)


def _arrays(source: Path, data: str | Path) -> list[NDArray[np.float32]]:
    return [array.copy() for _, array in network_inputs(source, data, _NOISE_IMAGES)]


def chart(result: dict[str, Any]) -> str:
    """Noise at the heads by layer as a self-contained SVG: alone quantized, and alone kept."""
    layers = result["layers"]
    every = [layer[key] for layer in layers for key in ("alone_db", "kept_db")]
    low, high = min(*every, result["int8_db"]), max(every)
    room = 0.05 * (high - low or 1.0)
    frame = Frame(
        Axis("layer, in the graph's order", 0, max(1, len(layers) - 1)),
        Axis("signal to noise at the heads, dB", low - room, high + 3 * room),
    )
    whole = result["int8_db"]
    body = [line(frame, [(0, whole), (len(layers) - 1, whole)], "stored", "every layer in INT8")]
    for key, kind, words in (
        ("kept_db", "stored-disc", "only it kept"),
        ("alone_db", "dot", "only it quantized"),
    ):
        for i, layer in enumerate(layers):
            hint = f"{layer['name']}, {words}: {layer[key]:.1f} dB"
            body.append(circle(frame, (i, layer[key]), 3.5, kind, hint))
    body += [*_key(frame), *_named(frame, layers)]
    drawn = svg(f"{result['model']}: where INT8 loses accuracy", frame, body)
    head, _, rest = drawn.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}'


def _key(frame: Frame) -> list[str]:
    """What the marks mean, along the top."""
    x, y = frame.at(frame.x.low, frame.y.high)
    right = frame.at(frame.x.high, frame.y.high)[0]
    filled = f'<circle class="dot" cx="{x + 6:.1f}" cy="{y + 4:.1f}" r="3.5"/>'
    ring = f'<circle class="stored-disc" cx="{x + 132:.1f}" cy="{y + 4:.1f}" r="3.5"/>'
    words = (
        text(x + 14, y + 8, "only it in INT8"),
        text(x + 140, y + 8, "all but it in INT8"),
        text(right, y + 8, "dashes: all in INT8", "end"),
    )
    return [filled, ring, *words]


def _named(frame: Frame, layers: Sequence[dict[str, Any]]) -> list[str]:
    """Names beside the noisiest layers, as the table and --keep write them."""
    worst = sorted(range(len(layers)), key=lambda i: layers[i]["alone_db"])[:_NAMED]
    found = []
    for i in worst:
        x, y = frame.at(i, layers[i]["alone_db"])
        left = 2 * i < len(layers)
        # Neighbours get their names above and below.
        below = any(other + 1 == i for other in worst)
        place = (x + 6 if left else x - 6, y + (13 if below else -5))
        found.append(text(*place, layers[i]["name"], "start" if left else "end"))
    return found


def print_sensitivity(result: dict[str, Any]) -> None:
    """The layers as a table on stdout, the noisiest first."""
    base, whole = result["fp32_map50"], result["int8_map50"]
    columns = ["layer", "own dB", "heads dB, alone in INT8", "heads dB, alone kept"]
    if base is not None:
        columns += ["mAP@.5 % lost, alone in INT8", "won back, alone kept"]
    rows = [
        _cells(layer, base, whole)
        for layer in sorted(result["layers"], key=lambda layer: layer["alone_db"])
    ]
    lost = "" if base is None else f", mAP@.5 {base * 100:.2f} to {whole * 100:.2f} %"
    title = f"{result['model']} on {result['data']}: INT8 at {result['int8_db']:.1f} dB{lost}"
    show(title, columns, rows)


def _cells(layer: dict[str, Any], base: float | None, whole: float | None) -> list[str]:
    own = "-" if layer["own_db"] is None else f"{layer['own_db']:.1f}"
    cells = [layer["name"], own, f"{layer['alone_db']:.1f}", f"{layer['kept_db']:.1f}"]
    if base is not None and whole is not None:
        cells.append(f"{(base - layer['alone_map50']) * 100:+.2f}")
        cells.append(f"{(layer['kept_map50'] - whole) * 100:+.2f}")
    return cells
