"""Deep Compression, stage by stage: `edge compress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from edge.compress.finetune import FineTuning
from edge.compress.weights.deep import with_codebooks
from edge.compress.weights.places import root_of_loss, weights_of_places
from edge.compress.weights.stage_bytes import bound_bytes, pruned_bytes, shared_bytes
from edge.compress.weights.untrained import Seen
from edge.edgez.codebook import Codebook
from edge.edgez.tensors import as_half
from edge.errors import ArtifactError
from edge.files import write_json
from edge.measure.accuracy import labelled
from edge.models.checkpoint import save_safetensors
from edge.models.dense import Dense, load_dense
from edge.reporting import say
from export.compress.deep_stages import RECIPES, Recipe, Work
from export.compress.pack import pack
from export.compress.pictures import pictures_seen, pictures_to_train
from export.compress.source import earlier, images_for

__all__ = ["compress"]


def compress(
    model: str | Path,
    data: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    tuning: FineTuning | None = None,
    train: str | Path | None = None,
    pruned: str | Path | None = None,
    begin: str | Path | None = None,
    refit: bool = True,
    images: int | None = None,
    threads: int = 1,
    output: str | Path,
    json_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Prune, share and code a trained detector; measure bytes and mAP after each stage.

    Args:
        model: as `edge.models.dense.load_dense` takes it, with `options`.
        data: labelled images to judge by, at most `images` of them; left out: fresh scenes for a
            built-in model, no mAP for any other.
        recipe: what to do.
        tuning: how to train; its steps are those of all stages together. None does not.
        train: labelled images to learn from; left out: scenes, or `data`.
        pruned: the pruned network of an earlier run (`OUTPUT` with `.pruned.safetensors`), in
            place of pruning.
        begin: the same, to prune and train further.
        refit: without training, let weights make up for what is gone from others and for their
            rounding, on a few pictures of `train`, whose labels are not looked at.
        threads: of onnxruntime in the evaluation.
        output: the package; `.pruned.safetensors` and `.log` go beside it.
        json_path: where to write the result too.

    Returns:
        `stages` (`name`, `bytes`, `map50`: None without data), `ratio`, `file`, `sections`,
        `coding`, `bound_bytes` (the entropy of the codes), `layers`, and how it was done.

    Raises:
        CompressionError: a recipe that cannot be carried out.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    recipe, target = recipe or RECIPES["plain"], Path(output)
    if pruned is not None:
        recipe = replace(recipe, sharing=1.0)
    if target.suffix != ".edgez":
        raise ArtifactError(f"{target}: a package is called NAME.edgez")
    with TemporaryDirectory(prefix="edge-") as folder:
        dense = load_dense(model, Path(folder), **options)
        data, train = images_for(model, data, train)
        judged = None if data is None else labelled(data, dense.spec.classes, images)
        pictures = pictures_to_train(train, dense, tuning)
        refit = refit and tuning is None
        looked_at = pictures_seen(
            train, dense, Path(folder), for_bits=recipe.spread, for_errors=refit
        )
        seen = _seen(dense, looked_at) if refit and looked_at else None
        with _log(target.with_suffix(".log"), tuning) as report:
            work = Work(
                dense,
                recipe,
                judged,
                pictures,
                tuning,
                looked_at,
                seen,
                Path(folder),
                threads,
                report,
            )
            result = _stages(work, target, pruned, begin)
    result |= {
        "model": str(model),
        "data": None if data is None else str(data),
        "recipe": asdict(recipe),
        "refit": seen is not None,
        "tuning": None if tuning is None else asdict(tuning),
    }
    write_json(result, json_path)
    return result


def _seen(dense: Dense, images: Sequence[torch.Tensor]) -> Seen:
    """The pictures that errors are made up for on, and what counts on them."""
    return Seen(images, weights_of_places(dense.module, images, root_of_loss(dense.spec)))


@contextmanager
def _log(path: Path, tuning: FineTuning | None) -> Iterator[Callable[[str], None]]:
    """Where the lines of the training go: stderr and, whole at any time, a file."""
    if tuning is None:
        yield say
        return
    try:
        with path.open("w", encoding="utf-8") as file:

            def report(line: str) -> None:
                say(line)
                file.write(line + "\n")
                file.flush()

            yield report
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error


def _stages(
    work: Work, target: Path, pruned: str | Path | None, begin: str | Path | None
) -> dict[str, Any]:
    dense, rows = work.dense, list[dict[str, Any]]()

    def told(name: str, size: int, map50: float | None) -> None:
        rows.append({"name": name, "bytes": size, "map50": map50})
        work.report(f"{name}: {size} bytes" + ("" if map50 is None else f", mAP@.5 {map50:.4f}"))

    told("original", dense.bytes, work.map50("original", dense.module))
    small, source = dense.module, pruned or begin
    if source is not None:
        small = earlier(source, f"the pruned network of {dense.spec.name}", small)
    if pruned is None:
        small = work.prune(small)
    save_safetensors(small, target.with_suffix(".pruned.safetensors"), dense.spec)
    told("pruned", pruned_bytes(small), work.map50("pruned", small))
    shared, books = work.share(small)
    books = {path: _stored(book, work.recipe.half) for path, book in books.items()}
    shared = with_codebooks(shared, books)
    told("shared", shared_bytes(shared, books, work.recipe.half), work.map50("shared", shared))
    sizes = pack(
        target,
        shared,
        dense.spec,
        books,
        work.scratch,
        parent_sha256=dense.sha256,
        labels=dense.labels,
        stages=rows,
        coding=work.recipe.coding,
        half=work.recipe.half,
    )
    coded = load_dense(target, work.scratch).module
    told("coded", sizes.file, work.map50("coded", coded))
    return {
        "stages": rows,
        "ratio": rows[0]["bytes"] / rows[-1]["bytes"],
        "file": str(target),
        "sections": sizes.sections,
        "coding": sizes.coding,
        "bound_bytes": bound_bytes(books),
        "labels": list(dense.labels),
        "layers": [_layer(path, book) for path, book in books.items()],
    }


def _stored(book: Codebook, half: bool) -> Codebook:
    found = as_half(book) if half else book
    assert isinstance(found, Codebook)
    return found


def _layer(path: str, book: Codebook) -> dict[str, Any]:
    return {
        "name": path,
        "weights": int(book.index.size),
        "kept": int(np.count_nonzero(book.index)),
        "levels": book.levels,
    }
