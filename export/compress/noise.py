"""The smallest package of a given output noise, without training: `edge compress --noise-db`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from calibration.calibrate import SCENES
from edge.compress.weights.noise import NoiseSearch
from edge.compress.weights.pictures import varied
from edge.compress.weights.stage_bytes import bound_bytes
from edge.files import write_json
from edge.models.dense import load_dense
from edge.reporting import say, ticking
from export.compress.pack import pack
from export.compress.pictures import network_pictures
from export.graph.writer import write_onnx

__all__ = ["compress_to_noise"]

_IMAGES = 4
# So many other pictures tell how rounding errors make up for each other, for each that judges.
_LEARNING = 2
_LEAST_LEARNING = 16
# Of a step: a little above one half, so that what rounds to the first step by a hair is zero.
_DEAD = 0.55


def compress_to_noise(
    model: str | Path,
    data: str | Path | None = None,
    *,
    noise_db: float,
    train: str | Path | None = None,
    images: int | None = None,
    dead: float = _DEAD,
    coding: str = "auto",
    output: str | Path,
    json_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Give each layer as coarse values as a signal-to-noise ratio of the heads allows.

    Args:
        model, options: as `edge.models.dense.load_dense`.
        data: pictures to look at; left out: scenes of the built-in world.
        noise_db: signal to noise to keep, over all numbers of the raw heads.
        train: pictures that tell how errors of rounding make up for each other; left out, others
            of `data`, twice as many as judge.
        images: how many pictures the noise is measured on, by default 4.
        coding: `auto`, `ans`, `huffman` or `packed`.
        dead: as `edge.compress.weights.noise.grid_codebook`.

    Returns:
        `bytes`, `file_bytes`, `ratio`, `noise_db` (of the file's weights), `images`,
        `bound_bytes`, `sections`, `coding`, `layers`.

    Raises:
        CompressionError: not to be had.
        ArtifactError, DataError: the model or the pictures cannot be used.
    """
    with TemporaryDirectory(prefix="edge-") as folder:
        scratch = Path(folder)
        dense = load_dense(model, scratch, **options)
        source = scratch / "fp32.onnx"
        write_onnx(dense.module, dense.spec, source)
        learning, judging = _pictures(source, data or SCENES, train, images or _IMAGES)
        search = NoiseSearch(dense.module, judging, varied(learning, _LEAST_LEARNING), dead)
        with ticking("measuring", search.measurements) as search.tick:
            found = search.run(noise_db)
        books = found.books
        sizes = pack(
            Path(output),
            found.module,
            dense.spec,
            books,
            scratch,
            parent_sha256=dense.sha256,
            labels=dense.labels,
            coding=coding,
            half=True,
        )
        result = {
            "model": str(model),
            "data": str(data or SCENES),
            "file": str(output),
            "bytes": dense.bytes,
            "file_bytes": sizes.file,
            "ratio": dense.bytes / sizes.file,
            "noise_db": found.noise_db,
            "images": {"learning": len(learning), "judging": len(judging)},
            "bound_bytes": bound_bytes(books),
            "sections": sizes.sections,
            "coding": sizes.coding,
            "layers": [
                [path, book.index.size, int((book.index == 0).sum()), book.levels]
                for path, book in books.items()
            ],
        }
    write_json(result, json_path)
    return result


def _pictures(
    source: Path, data: str | Path, train: str | Path | None, images: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What rounding learns from, and `images` others that judge it."""
    if train is not None:
        learning = network_pictures(source, train, _LEAST_LEARNING)
        return learning, network_pictures(source, data, images)
    batches = network_pictures(source, data, images * (1 + _LEARNING))
    judging = batches[:: 1 + _LEARNING]
    learning = [batch for i, batch in enumerate(batches) if i % (1 + _LEARNING)]
    if not learning:
        say(f"{data}: one picture both teaches and judges; give more")
    return learning or judging, judging
