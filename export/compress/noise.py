"""The smallest package of a given output noise, without training: `edge compress --noise-db`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from calibration.scales import SCENES
from edge.compress.options import NoiseOptions, model_options
from edge.compress.weights.noise import NoiseSearch
from edge.compress.weights.sizes import entropy_bytes
from edge.models.dense import load_dense
from edge.reporting import say, ticking
from export.compress.pack import pack, package_target
from export.compress.pictures import network_pictures, varied
from export.graph.writer import write_onnx

__all__ = ["GridLayer", "NoiseResult", "compress_to_noise"]

_IMAGES = 4
# Number of pictures that show how rounding errors cancel, for each that noise is measured on.
_LEARNING = 2
_LEAST_LEARNING = 16


@dataclass(frozen=True)
class GridLayer:
    """A layer on its grid: its weights, how many are zero, and how many other values they take."""

    name: str
    weights: int
    zeros: int
    values: int

    def to_json(self) -> list[Any]:
        """Return the layer as a row."""
        return [self.name, self.weights, self.zeros, self.values]


@dataclass(frozen=True)
class NoiseResult:
    """What a compression to a given noise gave.

    Attributes:
        model, data: as given or taken.
        file: the package.
        bytes, file_bytes, ratio: FP32 bytes, bytes of the package, and the first over the second.
        noise_db: signal to noise at the heads with the file's weights.
        images: number of pictures that rounding learned from (`learning`) and that the noise is
            measured on (`judging`).
        bound_bytes: entropy of the codes, taken one by one.
        sections: bytes of each part of the file.
        coding: how the indices are coded.
        layers: in the order of the data.
    """

    model: str
    data: str
    file: str
    bytes: int
    file_bytes: int
    ratio: float
    noise_db: float
    images: dict[str, int]
    bound_bytes: float
    sections: dict[str, int]
    coding: str
    layers: tuple[GridLayer, ...]


def compress_to_noise(
    model: str | Path, data: str | Path | None, options: NoiseOptions
) -> NoiseResult:
    """Make each layer as coarse as a signal-to-noise ratio over all numbers of the heads allows.

    Args:
        model: as `edge.models.dense.load_dense` takes it.
        data: pictures to measure noise on; None takes scenes of the built-in world.

    Raises:
        CompressionError: no grid keeps the ratio.
        ArtifactError, DataError: the model or the pictures cannot be used.
    """
    data = data or SCENES
    target = package_target(options.output)
    with TemporaryDirectory(prefix="edge-") as folder:
        scratch = Path(folder)
        dense = load_dense(model, scratch, name=options.name, **model_options(options))
        source = scratch / "fp32.onnx"
        write_onnx(dense.module, dense.spec, source)
        images = options.images or _IMAGES
        learning, judging = _pictures(source, data, options.train, images)
        search = NoiseSearch(dense.module, judging, varied(learning, _LEAST_LEARNING), options.dead)
        with ticking("measuring", search.measurements) as search.tick:
            found = search.run(options.noise_db)
        sizes = pack(
            target,
            found.module,
            dense,
            found.books,
            scratch,
            coding=options.coding,
            half=True,
        )
    return NoiseResult(
        model=str(model),
        data=str(data),
        file=options.output,
        bytes=dense.bytes,
        file_bytes=sizes.file,
        ratio=dense.bytes / sizes.file,
        noise_db=found.noise_db,
        images={"learning": len(learning), "judging": len(judging)},
        bound_bytes=entropy_bytes(found.books),
        sections=sizes.sections,
        coding=sizes.coding,
        layers=tuple(
            GridLayer(path, int(book.index.size), int((book.index == 0).sum()), book.levels)
            for path, book in found.books.items()
        ),
    )


def _pictures(
    source: Path, data: str | Path, train: str | Path | None, images: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the pictures that rounding learns from, and `images` others that judge it."""
    if train is not None:
        learning = network_pictures(source, train, _LEAST_LEARNING)
        return learning, network_pictures(source, data, images)
    batches = network_pictures(source, data, images * (1 + _LEARNING))
    judging = batches[:: 1 + _LEARNING]
    learning = [batch for i, batch in enumerate(batches) if i % (1 + _LEARNING)]
    if not learning:
        say(f"{data}: one picture both teaches and judges; give more")
    return learning or judging, judging
