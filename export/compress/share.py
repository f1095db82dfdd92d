"""Weight sharing alone, layer by layer: `edge share`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from edge.compress.weights.deep import with_codebooks
from edge.compress.weights.sharing import share_weights, sharing_rate
from edge.edgez.codebook import Codebook
from edge.edgez.tensors import as_half
from edge.files import write_json
from edge.measure.accuracy import labelled
from edge.models.dense import load_dense
from export.compress.pack import pack
from export.compress.stages import judge

__all__ = ["share"]


def share(
    model: str | Path,
    data: str | Path | None = None,
    *,
    bits: int = 5,
    start: Any = "linear",
    coding: str = "packed",
    half: bool = True,
    images: int | None = None,
    threads: int = 1,
    output: str | Path,
    json_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Let every convolution's weights take 2^bits values and write the package.

    Args:
        model, data, images, threads, options, json_path: as `export.compress.deep.compress`;
        without
            `data` no mAP is measured.
        coding: `packed` gives the file whose size the rates speak of.

    Returns:
        `layers` (`name`, `weights`, `levels`, `rate`, `noise_db`), `rate` of all, `bytes`,
        `file_bytes`, `map50` before and after, or None.

    Raises:
        ArtifactError, CompressionError, DataError: one line each.
    """
    with TemporaryDirectory(prefix="edge-") as folder:
        scratch = Path(folder)
        dense = load_dense(model, scratch, **options)
        books = share_weights(dense.module, bits, start)
        rows = [
            _row(path, book, dense.module.get_submodule(path), 16 if half else 32)
            for path, book in books.items()
        ]
        judged = None if data is None else labelled(data, dense.spec.classes, images)
        before = judged and judge("before", dense.module, dense.spec, judged, scratch, threads)
        stored = {path: as_half(book) if half else book for path, book in books.items()}
        kept = {path: book for path, book in stored.items() if isinstance(book, Codebook)}
        module = with_codebooks(dense.module, kept)
        after = judged and judge("after", module, dense.spec, judged, scratch, threads)
        sizes = pack(
            Path(output),
            module,
            dense.spec,
            kept,
            scratch,
            parent_sha256=dense.sha256,
            labels=dense.labels,
            coding=coding,
            half=half,
        )
        result = {
            "model": str(model),
            "layers": rows,
            "bytes": dense.bytes,
            "file": str(output),
            "file_bytes": sizes.file,
            "sections": sizes.sections,
            "rate": dense.bytes / sizes.file,
            "map50": [before.facts["map50"], after.facts["map50"]] if before and after else None,
        }
    write_json(result, json_path)
    return result


def _row(path: str, book: Codebook, conv: nn.Module, value_bits: int) -> dict[str, Any]:
    weight = conv.weight.detach().numpy().astype(np.float64)
    noise = max(float(np.square(weight - book.dense()).mean()), 1e-30)
    return {
        "name": path,
        "weights": int(book.index.size),
        "levels": book.levels,
        "rate": round(sharing_rate(book, 32, value_bits), 3),
        "noise_db": round(float(10 * np.log10(np.square(weight).mean() / noise)), 2),
    }
