"""Deep Compression, stage by stage: `edge compress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from edge.compress.options import CompressOptions, FineTuneOptions, WeightRecipe, model_options
from edge.compress.weights.bits import costs_of_bits, measurements, spread_bits
from edge.compress.weights.deep import Training, prune_weights, tune_shared, with_codebooks
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.places import root_of_loss, weights_of_places
from edge.compress.weights.sizes import entropy_bytes, pruned_bytes, shared_bytes
from edge.compress.weights.untrained import (
    WeightedPictures,
    prune_on_pictures,
    share_on_pictures,
)
from edge.data.datasets import Dataset
from edge.edgez.codebook import Codebook
from edge.errors import ArtifactError
from edge.measure.accuracy import labelled
from edge.models.checkpoint import save_safetensors
from edge.models.dense import Dense, load_dense
from edge.models.folding import fold_norms, unfold_norms
from edge.reporting import say, ticking
from edge.train.augment import Labelled
from edge.train.batches import BatchMaker, make_batch
from export.compress.pack import half_books, pack, package_target
from export.compress.pictures import fitting_pictures, labelled_pictures, some_of
from export.compress.source import earlier_network, images_for
from export.compress.stages import check_outputs, evaluate_stage

__all__ = ["ByteStage", "CompressResult", "LayerCodes", "compress"]

_NORM_IMAGES = 32


@dataclass(frozen=True)
class ByteStage:
    """A stage of the compression: its bytes, and mAP@.5 (0..1; None without data)."""

    name: str
    bytes: int
    map50: float | None


@dataclass(frozen=True)
class LayerCodes:
    """A layer of the package: its weights, how many are not zero, and how many values they take."""

    name: str
    weights: int
    kept: int
    levels: int


@dataclass(frozen=True)
class CompressResult:
    """What Deep Compression gave.

    Attributes:
        stages: original, pruned, shared and coded; the last one's bytes are those of the file.
        ratio: of the first stage's bytes to the file's.
        file: the package.
        sections: bytes of each part of the file.
        coding: how the indices are coded.
        bound_bytes: entropy of the codes, taken one by one.
        labels: facts that every report must repeat.
        layers: in the order of the data.
        model, data: as given or, for a built-in model, taken.
        recipe: what was done to the weights.
        refit: whether weights made up for each other's errors on pictures.
        tuning: how the network was trained; null in JSON without training.
    """

    stages: tuple[ByteStage, ...]
    ratio: float
    file: str
    sections: dict[str, int]
    coding: str
    bound_bytes: float
    labels: tuple[str, ...]
    layers: tuple[LayerCodes, ...]
    model: str
    data: str | None
    recipe: WeightRecipe
    refit: bool
    tuning: FineTuneOptions


def compress(
    model: str | Path, data: str | Path | None, options: CompressOptions
) -> CompressResult:
    """Prune, share and code a trained detector; measure bytes and mAP after each stage.

    `OUTPUT.pruned.safetensors` and, with training, `OUTPUT.log` are written beside the package.

    Args:
        model: as `edge.models.dense.load_dense` takes it.
        data: labelled images to judge by; None takes fresh scenes for a built-in model, and
            measures no mAP of any other.

    Raises:
        CompressionError: the recipe cannot be carried out.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    recipe, target = options.recipe, package_target(options.output)
    check_outputs(target.parent, target.stem, ".pruned.safetensors", ".log")
    if options.pruned is not None:
        recipe = replace(recipe, sharing=1.0)
    with TemporaryDirectory(prefix="edge-") as folder:
        scratch = Path(folder)
        dense = load_dense(model, scratch, name=options.name, **model_options(options))
        data, train = images_for(model, data, options.train)
        judged = None if data is None else labelled(data, dense.spec.classes, options.images)
        trained = options.tuning.steps > 0
        refit = options.refit and not trained
        images = fitting_pictures(train, dense, scratch, for_bits=recipe.spread, for_errors=refit)
        fitting = _weighted(dense, images) if refit and images else None
        with _log(target.with_suffix(".log"), trained) as report:
            work = _Compression(
                dense=dense,
                recipe=recipe,
                judged=judged,
                pictures=labelled_pictures(train, dense) if trained else (),
                tuning=options.tuning,
                images=images,
                fitting=fitting,
                scratch=scratch,
                threads=options.threads,
                report=report,
            )
            small = work.pruned(options.pruned, options.begin)
            save_safetensors(small, target.with_suffix(".pruned.safetensors"), dense.spec)
            work.add("pruned", pruned_bytes(small), small)
            shared, books = work.share(small)
            books = half_books(books) if recipe.half else books
            shared = with_codebooks(shared, books)
            work.add("shared", shared_bytes(shared, books, recipe.half), shared)
            sizes = pack(
                target,
                shared,
                dense,
                books,
                scratch,
                stages=[vars(stage) for stage in work.stages],
                coding=recipe.coding,
                half=recipe.half,
            )
            work.add("coded", sizes.file, load_dense(target, scratch).module)
    return CompressResult(
        stages=tuple(work.stages),
        ratio=work.stages[0].bytes / sizes.file,
        file=str(target),
        sections=sizes.sections,
        coding=sizes.coding,
        bound_bytes=entropy_bytes(books),
        labels=dense.labels,
        layers=tuple(
            LayerCodes(path, int(book.index.size), int(np.count_nonzero(book.index)), book.levels)
            for path, book in books.items()
        ),
        model=str(model),
        data=None if data is None else str(data),
        recipe=recipe,
        refit=fitting is not None,
        tuning=options.tuning,
    )


def _weighted(dense: Dense, images: Sequence[torch.Tensor]) -> WeightedPictures:
    """Return the pictures with what counts on them for the loss at the heads."""
    weights = weights_of_places(dense.module, images, root_of_loss(dense.spec))
    return WeightedPictures(images, weights)


@contextmanager
def _log(path: Path, trained: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that says lines and, with training, writes them to a file at once."""
    if not trained:
        yield say
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error

    def report(line: str) -> None:
        say(line)
        try:
            file.write(line + "\n")
            file.flush()
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error

    with file:
        yield report


class _Compression:
    """One network and the stages that it goes through.

    Args:
        judged: images that stages are evaluated on; None evaluates none.
        pictures: labelled, to train on.
        images: that bits are spread by, (1, 3, H, W) each.
        fitting: pictures on which errors cancel without training; None lets none cancel.
        report: takes lines of the log.
    """

    def __init__(
        self,
        *,
        dense: Dense,
        recipe: WeightRecipe,
        judged: Dataset | None,
        pictures: Sequence[Labelled],
        tuning: FineTuneOptions,
        images: Sequence[torch.Tensor],
        fitting: WeightedPictures | None,
        scratch: Path,
        threads: int,
        report: Callable[[str], None],
    ) -> None:
        self.dense, self.recipe, self.tuning = dense, recipe, tuning
        self.judged, self.pictures, self.images, self.fitting = judged, pictures, images, fitting
        self.scratch, self.threads, self.report = scratch, threads, report
        self.stages: list[ByteStage] = []
        self.add("original", dense.bytes, dense.module)

    def add(self, name: str, size: int, module: nn.Module) -> None:
        """Evaluate a stage and report it."""
        map50 = None
        if self.judged is not None:
            spec = self.dense.spec
            stage = evaluate_stage(name, module, spec, self.judged, self.scratch, self.threads)
            map50 = stage.facts.map50
        self.stages.append(ByteStage(name, size, map50))
        self.report(f"{name}: {size} bytes" + ("" if map50 is None else f", mAP@.5 {map50:.4f}"))

    def pruned(self, done: str | None, begin: str | None) -> nn.Module:
        """Return the pruned network, its norms folded.

        Args:
            done: file of a network that is pruned already.
            begin: file of a network to prune further.

        Raises:
            CompressionError: an impossible share or scope.
        """
        start, source = self.dense.module, done or begin
        if source is not None:
            what = f"the pruned network of {self.dense.spec.name}"
            start = earlier_network(source, what, start)
        return start if done else self._prune(start)

    def _prune(self, start: nn.Module) -> nn.Module:
        recipe = self.recipe
        if self.fitting is not None:
            return prune_on_pictures(
                start,
                recipe.prune,
                self.fitting,
                recipe.scope or "loss",
                two_four=recipe.two_four,
            )
        with self._training("pruning", 1 - recipe.sharing) as training:
            if training is not None:
                start = self._unfold(start)
            pruned = prune_weights(
                start,
                recipe.prune,
                recipe.scope or "lamp",
                two_four=recipe.two_four,
                training=training,
            )
        return fold_norms(pruned)

    def share(self, pruned: nn.Module) -> tuple[nn.Module, dict[str, Codebook]]:
        """Return a network whose convolutions take few values, and their codebooks by path.

        Raises:
            CompressionError: a layer has no weights left, or impossible bits.
        """
        bits, start, scaled = self._bits(pruned), self.recipe.start, self.recipe.scaled
        if self.fitting is not None:
            full = self.dense.module
            return share_on_pictures(pruned, full, bits, self.fitting, start, scaled=scaled)
        with self._training("sharing", self.recipe.sharing) as training:
            return tune_shared(pruned, bits, start, training, scaled=scaled, unfold=self._unfold)

    def _bits(self, pruned: nn.Module) -> int | Mapping[str, int]:
        """Return the bits of every layer, or of each by its path."""
        wanted = self.recipe.bits
        if not self.recipe.spread:
            return int(wanted)
        sizes = {
            path: int(conv.weight.count_nonzero()) for path, conv in convolutions(pruned).items()
        }
        few, scaled = some_of(self.images), self.recipe.scaled
        with ticking("bits of each layer", measurements(pruned)) as tick:
            costs = costs_of_bits(pruned, self.dense.spec, few, tick, scaled=scaled)
        bits = spread_bits(costs, sizes, wanted)
        self.report("bits: " + ", ".join(f"{path} {count}" for path, count in bits.items()))
        return bits

    @contextmanager
    def _training(self, what: str, share: float) -> Iterator[Training | None]:
        """Give the training of one stage, with its progress; None without fine-tuning."""
        if not self.tuning.steps:
            yield None
            return
        options = replace(self.tuning, steps=max(1, round(self.tuning.steps * share)))
        with ticking(what, options.steps) as tick:
            yield Training(
                self.dense.spec,
                self.pictures,
                self.dense.module,
                options,
                lambda line: self.report(f"{what}: {line}"),
                tick,
            )

    def _unfold(self, module: nn.Module) -> nn.Module:
        """Return the network with batch norms, if the architecture has any."""
        if self.dense.normed is None:
            return module
        maker = BatchMaker(self.pictures, self.dense.spec, _NORM_IMAGES, 0)
        return unfold_norms(module, self.dense.normed, make_batch(maker, 0)[0])
