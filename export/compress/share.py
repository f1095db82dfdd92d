"""Weight sharing alone, layer by layer: `edge share`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from edge.compress.options import ShareOptions, model_options
from edge.compress.weights.deep import with_codebooks
from edge.compress.weights.sharing import share_weights
from edge.compress.weights.sizes import sharing_rate
from edge.data.datasets import Dataset
from edge.edgez.codebook import Codebook
from edge.measure.accuracy import labelled
from edge.models.dense import Dense, load_dense
from export.compress.pack import half_books, pack, package_target
from export.compress.stages import evaluate_stage

__all__ = ["ShareResult", "SharedLayer", "share"]


@dataclass(frozen=True)
class SharedLayer:
    """A layer with few values.

    Attributes:
        name: path of the convolution.
        weights, levels: how many weights there are, and how many values they take.
        rate: Deep Compression's rate of the layer.
        noise_db: signal to noise of its weights.
    """

    name: str
    weights: int
    levels: int
    rate: float
    noise_db: float


@dataclass(frozen=True)
class ShareResult:
    """What sharing gave.

    Attributes:
        model: as given.
        layers: in the order of the data.
        bytes, file_bytes: FP32 bytes, and bytes of the package.
        file: the package.
        sections: bytes of each part of the file.
        rate: `bytes` over `file_bytes`.
        map50: mAP@.5 before and after; None without data.
    """

    model: str
    layers: tuple[SharedLayer, ...]
    bytes: int
    file: str
    file_bytes: int
    sections: dict[str, int]
    rate: float
    map50: tuple[float, float] | None


def share(model: str | Path, data: str | Path | None, options: ShareOptions) -> ShareResult:
    """Reduce every convolution's weights to 2^bits values and write the package.

    Args:
        model: as `edge.models.dense.load_dense` takes it.
        data: labelled images to judge by; None measures no mAP.

    Raises:
        ArtifactError, CompressionError, DataError: the model, the bits or the images cannot be
            used.
    """
    target = package_target(options.output)
    with TemporaryDirectory(prefix="edge-") as folder:
        scratch = Path(folder)
        dense = load_dense(model, scratch, name=options.name, **model_options(options))
        books = share_weights(dense.module, options.bits, options.start)
        layers = tuple(
            _layer(path, book, dense.module.get_submodule(path), 16 if options.half else 32)
            for path, book in books.items()
        )
        judged = None if data is None else labelled(data, dense.spec.classes, options.images)
        before = _map50("before", dense, judged, scratch, options.threads)
        books = half_books(books) if options.half else books
        module = with_codebooks(dense.module, books)
        after = _map50("after", dense, judged, scratch, options.threads)
        sizes = pack(
            target,
            module,
            dense,
            books,
            scratch,
            coding=options.coding,
            half=options.half,
        )
    return ShareResult(
        model=str(model),
        layers=layers,
        bytes=dense.bytes,
        file=options.output,
        file_bytes=sizes.file,
        sections=sizes.sections,
        rate=dense.bytes / sizes.file,
        map50=None if before is None or after is None else (before, after),
    )


def _map50(
    name: str, dense: Dense, judged: Dataset | None, scratch: Path, threads: int
) -> float | None:
    if judged is None:
        return None
    stage = evaluate_stage(name, dense.module, dense.spec, judged, scratch, threads)
    return stage.facts.map50


def _layer(path: str, book: Codebook, conv: nn.Module, value_bits: int) -> SharedLayer:
    weight = conv.weight.detach().numpy().astype(np.float64)
    noise = max(float(np.square(weight - book.dense()).mean()), 1e-30)
    return SharedLayer(
        path,
        int(book.index.size),
        book.levels,
        round(sharing_rate(book, 32, value_bits), 3),
        round(float(10 * np.log10(np.square(weight).mean() / noise)), 2),
    )
