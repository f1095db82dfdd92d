"""Deep Compression, stage by stage: `edge compress`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from apps.accuracy import labelled
from apps.compress_pictures import few_of, pictures_seen, pictures_to_train
from apps.dense_model import Dense, load_dense
from apps.packing import pack
from apps.prune_source import earlier, images_for
from apps.prune_stages import judge
from apps.table import say, show, ticking
from edge.artifact import write_atomic
from edge.compress.bits import costs_of_bits, measurements, spread_bits
from edge.compress.codebook import Codebook
from edge.compress.coding import Layer, entropy_bits, relative_bits
from edge.compress.deep import Training, prune_weights, tune_shared, with_codebooks
from edge.compress.finetune import FineTuning
from edge.compress.folding import fold_norms, unfold_norms
from edge.compress.magnitude import convolutions
from edge.compress.package_tensors import as_half
from edge.compress.places import root_of_loss, weights_of_places
from edge.compress.untrained import Seen, prune_on_pictures, share_on_pictures
from edge.data.datasets import Dataset
from edge.errors import ArtifactError
from edge.models.checkpoint import save_safetensors
from edge.train.augment import Labelled
from edge.train.batches import BatchMaker, make_batch

__all__ = ["RECIPES", "Recipe", "compress", "print_compression"]

_NORM_IMAGES = 32


@dataclass(frozen=True)
class Recipe:
    """What is done to the weights.

    Attributes:
        prune: share of the weights to remove.
        scope: how layers share that: `lamp`, `global`, `layer` or, on pictures without training,
            `loss`; None takes `loss` where it can, else `lamp`.
        two_four: two of every four in place of `prune`.
        bits: of an index into a layer's codebook; not whole: at most so many for each weight, with
            those layers finer that need it (`edge.compress.bits`).
        start: of k-means.
        sharing: this share of the training steps is for the shared weights; all of them where
            the network comes pruned.
        coding: `auto`, `ans`, `huffman` or `packed`.
        half: centroids and biases in FP16 instead of FP32.
        scaled: a scale for each output channel beside the codebook: few bits need it.
    """

    prune: float = 0.6
    scope: str | None = None
    two_four: bool = False
    bits: float = 5
    start: str = "optimal"
    sharing: float = 0.4
    coding: str = "auto"
    half: bool = True
    scaled: bool = False


RECIPES = {"plain": Recipe(), "deep": Recipe(prune=0.86, bits=3, scaled=True)}


@dataclass(eq=False)
class _Work:
    """A network under compression and what its stages are judged and trained with."""

    dense: Dense
    recipe: Recipe
    judged: Dataset | None
    pictures: Sequence[Labelled]
    tuning: FineTuning | None
    images: Sequence[torch.Tensor]
    seen: Seen | None
    scratch: Path
    threads: int
    report: Callable[[str], None]

    def map50(self, name: str, module: nn.Module) -> float | None:
        if self.judged is None:
            return None
        stage = judge(name, module, self.dense.spec, self.judged, self.scratch, self.threads)
        return float(stage.facts["map50"])

    @contextmanager
    def training(self, what: str, share: float) -> Iterator[Training | None]:
        """The training of one stage, with its progress; None without fine-tuning."""
        if self.tuning is None:
            yield None
            return
        how = replace(self.tuning, steps=max(1, round(self.tuning.steps * share)))
        with ticking(what, how.steps) as tick:
            yield Training(
                self.dense.spec,
                self.pictures,
                self.dense.module,
                how,
                lambda line: self.report(f"{what}: {line}"),
                tick,
            )

    def prune(self, start: nn.Module) -> nn.Module:
        recipe = self.recipe
        scope: Any = recipe.scope
        if self.seen is not None:
            return prune_on_pictures(
                start, recipe.prune, self.seen, scope or "loss", two_four=recipe.two_four
            )
        with self.training("pruning", 1 - recipe.sharing) as training:
            if training is not None:
                start = self._unfold(start)
            pruned = prune_weights(
                start, recipe.prune, scope or "lamp", two_four=recipe.two_four, training=training
            )
        return fold_norms(pruned)

    def share(self, pruned: nn.Module) -> tuple[nn.Module, dict[str, Codebook]]:
        bits, scaled = self._bits(pruned), self.recipe.scaled
        start: Any = self.recipe.start
        if self.seen is not None:
            full = self.dense.module
            return share_on_pictures(pruned, full, bits, self.seen, start, scaled=scaled)
        with self.training("sharing", self.recipe.sharing) as training:
            return tune_shared(pruned, bits, start, training, scaled=scaled, unfold=self._unfold)

    def _bits(self, pruned: nn.Module) -> int | Mapping[str, int]:
        """Of every layer, or by its path."""
        wanted = self.recipe.bits
        if _whole(wanted):
            return int(wanted)
        sizes = {
            path: int(conv.weight.count_nonzero()) for path, conv in convolutions(pruned).items()
        }
        few, scaled = few_of(self.images), self.recipe.scaled
        with ticking("bits of each layer", measurements(pruned)) as tick:
            costs = costs_of_bits(pruned, self.dense.spec, few, tick, scaled=scaled)
        bits = spread_bits(costs, sizes, wanted)
        self.report("bits: " + ", ".join(f"{path} {count}" for path, count in bits.items()))
        return bits

    def _unfold(self, module: nn.Module) -> nn.Module:
        """With batch norms, if the architecture has any."""
        if self.dense.normed is None:
            return module
        maker = BatchMaker(self.pictures, self.dense.spec, _NORM_IMAGES, 0)
        return unfold_norms(module, self.dense.normed, make_batch(maker, 0)[0])


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
        model: as `apps.dense_model.load_dense` takes it, with `options`.
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
            train, dense, Path(folder), for_bits=not _whole(recipe.bits), for_errors=refit
        )
        seen = _seen(dense, looked_at) if refit and looked_at else None
        with _log(target.with_suffix(".log"), tuning) as report:
            work = _Work(
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
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _seen(dense: Dense, images: Sequence[torch.Tensor]) -> Seen:
    """The pictures that errors are made up for on, and what counts on them."""
    return Seen(images, weights_of_places(dense.module, images, root_of_loss(dense.spec)))


def _whole(bits: float) -> bool:
    return float(bits).is_integer()


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
    work: _Work, target: Path, pruned: str | Path | None, begin: str | Path | None
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
    told("pruned", _pruned_bytes(small), work.map50("pruned", small))
    shared, books = work.share(small)
    books = {path: _stored(book, work.recipe.half) for path, book in books.items()}
    shared = with_codebooks(shared, books)
    told("shared", _shared_bytes(shared, books, work.recipe.half), work.map50("shared", shared))
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
        **_bound(books),
        "labels": list(dense.labels),
        "layers": [_layer(path, book) for path, book in books.items()],
    }


def _stored(book: Codebook, half: bool) -> Codebook:
    found = as_half(book) if half else book
    assert isinstance(found, Codebook)
    return found


def _weights(module: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Path, weight and number of biases of each convolution."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            yield path, part.weight.detach().numpy(), len(part.bias)


def _pruned_bytes(module: nn.Module) -> int:
    """As Deep Compression counts: FP32 values, relative positions, FP32 biases."""
    bits = sum(
        relative_bits((weight != 0).astype(np.int64), 32) + 32 * biases
        for _, weight, biases in _weights(module)
    )
    return -(-bits // 8)


def _shared_bytes(module: nn.Module, books: dict[str, Codebook], half: bool) -> int:
    """The same with indices in place of values, and the codebooks."""
    value, bits = 16 if half else 32, 0
    for path, _, biases in _weights(module):
        book = books[path]
        index_bits = max(1, (book.levels - 1).bit_length())
        scales = 0 if book.scale is None else len(book.scale)
        bits += relative_bits(book.matrix(), index_bits)
        bits += value * (book.levels + scales + biases)
    return -(-bits // 8)


def _bound(books: dict[str, Codebook]) -> dict[str, float]:
    codes = [book.matrix() for book in books.values()]
    layers = [
        Layer(code.shape, b.levels, b.pruned) for code, b in zip(codes, books.values(), strict=True)
    ]
    return {"bound_bytes": round(entropy_bits(layers, codes) / 8, 1)}


def _layer(path: str, book: Codebook) -> dict[str, Any]:
    return {
        "name": path,
        "weights": int(book.index.size),
        "kept": int(np.count_nonzero(book.index)),
        "levels": book.levels,
    }


def print_compression(result: dict[str, Any]) -> None:
    """The table of Deep Compression on stdout."""
    first = result["stages"][0]["bytes"]
    rows = [
        (
            stage["name"],
            f"{stage['bytes']}",
            f"{first / stage['bytes']:.2f}x",
            "" if stage["map50"] is None else f"{stage['map50'] * 100:.2f}",
        )
        for stage in result["stages"]
    ]
    name = ", ".join([result["model"], *result["labels"]])
    show(f"{name}: Deep Compression", ("stage", "bytes", "ratio", "mAP@.5 %"), rows)
    sections = ", ".join(f"{name} {size}" for name, size in result["sections"].items())
    say(
        f"{result['file']}: {sections} bytes; weights in {result['coding']} "
        f"(entropy of single codes: {result['bound_bytes']:.0f})"
    )
