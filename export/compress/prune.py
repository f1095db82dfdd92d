"""A detector with fewer channels, as fast, small or accurate as asked for: `edge prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from edge.compress.channels.cost import Cost, read_shapes
from edge.compress.channels.dissect import profile, scores
from edge.compress.channels.importance import Importances, gamma, l1, taylor
from edge.compress.channels.plan import PrunePlan, read_plan
from edge.compress.channels.pruner import Pruner
from edge.compress.channels.refit import refit
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import Wiring, read_wiring
from edge.compress.finetune import measure_norms, plain_batches
from edge.compress.options import ChannelOptions, FineTuneOptions, PruneOptions, PruneTarget
from edge.data.datasets import Dataset
from edge.data.items import thin
from edge.errors import CompressionError
from edge.files import check_name, make_folder, write_file
from edge.measure.accuracy import labelled
from edge.measure.host import fingerprint
from edge.measure.sensors import Watch
from edge.models.folding import fold_norms, has_norms, unfold_norms
from edge.models.zoo import LoadedModel
from edge.reporting import say, track
from edge.train.augment import Labelled
from edge.train.losses.ciou import loss_for
from export.compress.board import BoardTimes
from export.compress.source import earlier_network, images_or_error, load_prunable
from export.compress.stages import (
    NETWORK_FILES,
    Stage,
    StageResult,
    StageTimes,
    check_outputs,
    evaluate_stage,
    fine_tune_stage,
    save_network,
    time_stages,
    training_pictures,
)
from export.graph.writer import write_onnx

__all__ = ["ChannelPruning", "PruneResult", "prune", "results_of", "write_files"]

_BATCH = 8
# They are held in memory, at the network's input size.
_REFIT_IMAGES = 48
# With this many rounds the bisection is exact to two hundredths of the network's time.
_BISECTIONS = 6
# A plan that takes this much more or less in the end than when it was made is not what was asked.
_DRIFT = 0.15


@dataclass(frozen=True)
class PruneResult:
    """What pruning gave.

    Attributes:
        name: of the files, without their endings.
        stages: from the full network to the small one.
        plan: path, width before and width after of each pruned convolution.
        images: number of images that stages are judged on.
        files: what was written, by kind.
        host: the machine that the times are of, or the board that they are predicted for.
        model, data, train: as they were given or, for a built-in model, taken.
        choice: how channels were chosen.
        tuning: how the network was trained; null in JSON without training.
        log: lines of the training.
        warnings: why times may be wrong.
    """

    name: str
    stages: tuple[StageResult, ...]
    plan: tuple[tuple[str, str, str], ...]
    images: int
    files: dict[str, str]
    host: dict[str, object]
    model: str
    data: str
    train: str
    choice: ChannelOptions
    tuning: FineTuneOptions
    log: tuple[str, ...]
    warnings: tuple[str, ...]


def prune(model: str | Path, data: str | Path | None, options: PruneOptions) -> PruneResult:
    """Remove channels from a trained detector until it is as fast or small as asked for.

    Args:
        model: as `export.compress.source.load_prunable` takes it.
        data: labelled images to judge by; None takes fresh scenes, for a built-in model only.

    Raises:
        CompressionError: the target cannot be met or measured, or the plan is of another network.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    data, train = images_or_error(model, data, options.train)
    plan = None if options.plan is None else read_plan(options.plan)
    loaded = load_prunable(model, options)
    name = check_name(options.name or f"{loaded.spec.name}-pruned", "the name of the files")
    folder = make_folder(options.output)
    check_outputs(folder, name, *NETWORK_FILES)
    judged = labelled(data, loaded.spec.classes, options.images)
    learnt = judged if train == data else labelled(train, loaded.spec.classes)
    pictures = training_pictures(learnt, loaded.spec)
    with TemporaryDirectory(prefix="edge-") as scratch:
        work = ChannelPruning(loaded, judged, pictures, options.channels, Path(scratch))
        before = work.evaluate("before", loaded.module)
        if plan is None and options.target is not None:
            plan = work.plan_for(options.target, before, options.tuning)
        if plan is None:
            raise ValueError("pruning takes a target or a plan")
        stages, log = work.stages_after(plan, options.tuning, options.begin)
        times = work.time([before, *stages])
        files = write_files(stages[-1], plan, folder, name)
    return PruneResult(
        name=name,
        stages=results_of([before, *stages], times),
        plan=plan.rows(),
        images=len(judged),
        files=files,
        host=work.host,
        model=str(model),
        data=str(data),
        train=str(train),
        choice=options.channels,
        tuning=options.tuning,
        log=log,
        warnings=work.warnings(times),
    )


class ChannelPruning:
    """One network, the pictures that its pruning needs, and the stages that it goes through.

    Args:
        judged: images that stages are evaluated on.
        pictures: training pictures.
        scratch: folder for temporary files.
        profiled: pictures that importance is measured on, if not all training pictures.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        judged: Dataset,
        pictures: Sequence[Labelled],
        options: ChannelOptions,
        scratch: Path,
        profiled: Sequence[Labelled] | None = None,
    ) -> None:
        self.module, self.spec = loaded.module, loaded.spec
        self.judged, self.pictures = judged, pictures
        self.profiled = pictures if profiled is None else profiled
        self.options, self.scratch = options, scratch
        self.board = BoardTimes(options.board, options.precision) if options.board else None
        self._promised: float | None = None
        self._watch = Watch()

    def evaluate(self, name: str, module: nn.Module) -> Stage:
        """Return a stage of this network; see `evaluate_stage`."""
        return evaluate_stage(
            name, module, self.spec, self.judged, self.scratch, self.options.threads
        )

    def time(self, stages: Sequence[Stage]) -> StageTimes:
        """Time the stages in turns."""
        return self._times([stage.artifact for stage in stages])

    def _times(self, artifacts: Sequence[Path]) -> StageTimes:
        if self.board is not None:
            return self.board.times(artifacts)
        item, threads = self.judged.items[0], self.options.threads
        return time_stages(artifacts, item, threads, self._watch)

    @property
    def host(self) -> dict[str, object]:
        """What the times are of: this machine, or a board that is not here."""
        if self.board is not None:
            name, precision = self.board.board.name, self.board.precision
            return {"board": name, "precision": precision, "predicted": True}
        return {**fingerprint(), "threads": self.options.threads}

    def _costs(self) -> Cost:
        if self.board is None:
            return self.pruner.milliseconds(self.options.table)
        say(f"milliseconds are predicted for {self.board}; nothing is measured")
        return self.pruner.milliseconds(None, self.board.convolution_ms)

    def _disturbances(self) -> list[str]:
        return self._watch.warnings(int(str(fingerprint()["cores"])))

    def _sure_times(self, artifacts: Sequence[Path]) -> StageTimes:
        times = self._times(artifacts)
        if times.doubt is not None:
            found = ", ".join([times.doubt, *self._disturbances()])
            raise CompressionError(f"{self.spec.name}: {found}; or give --table")
        return times

    def warnings(self, times: StageTimes) -> tuple[str, ...]:
        """Return why the times of a result may be wrong, the pruned network's being the second."""
        found = self._disturbances()
        if times.doubt is not None:
            found.append(times.doubt)
        reached = times.ms[1] / times.ms[0]
        if self._promised and abs(reached / self._promised - 1) > _DRIFT:
            found.append(
                f"cannot tell on this machine now: the plan was measured at {self._promised:.0%} "
                f"of the time and the network ends at {reached:.0%}; stop other programs and run "
                "again"
            )
        return tuple(found)

    @cached_property
    def pruner(self) -> Pruner:
        """The network's channels and their importance."""
        wiring = read_wiring(self.module)
        return Pruner(self.module, self.spec, wiring, self._importances(wiring), self.options)

    def _importances(self, wiring: Wiring) -> Importances:
        kind = self.options.importance
        if kind == "l1":
            return l1(wiring)
        if kind == "gamma":
            return gamma(wiring)
        batches = self._batches(self.profiled)
        if kind == "taylor":
            return taylor(self.module, wiring, batches, loss_for(self.spec))
        return scores(profile(self.module, wiring, (images for images, _ in batches)))

    def _batches(
        self, pictures: Sequence[Labelled], most: int | None = None
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        limit = self.options.profile_images
        count = limit if most is None else min(limit, most)
        few = [pictures[i] for i in thin(range(len(pictures)), count)]
        count = len(few) // min(_BATCH, len(few))
        return track(plain_batches(few, self.spec, _BATCH), "looking at pictures", count)

    def plan_for(self, target: PruneTarget, before: Stage, tuning: FineTuneOptions) -> PrunePlan:
        """Return the plan that reaches a target.

        Args:
            before: the full network's stage.
            tuning: how each trial is trained where the target is a drop of accuracy.

        Raises:
            CompressionError: it cannot be reached, or not be measured on this machine now.
        """
        if target.kind == "ratio":
            return self.pruner.for_ratio(target.value)
        if target.kind == "mb":
            return self.pruner.for_megabytes(target.value, before.facts.megabytes)
        if target.kind == "drop":
            return self._plan_by_drop(target.value, before, tuning)
        share = target.value
        if target.kind == "ms":
            # Beside itself, to see whether two times of one network agree.
            share /= self._sure_times([before.artifact, before.artifact]).ms[0]
        if share >= 1:
            raise CompressionError(f"{self.spec.name} is already as fast as that")
        if self.board is not None:
            # Before pictures are looked at, which takes long.
            shapes = read_shapes(read_wiring(self.module), self.spec.contract.hw).values()
            least = self.options.least
            self.board.check_reach(self.spec.name, before.artifact, shapes, share, least)
        measure = None if self.options.table else self._share_of(before)
        plan, self._promised = self.pruner.for_share(share, self._costs(), measure)
        return plan

    def _plan_by_drop(self, drop: float, before: Stage, tuning: FineTuneOptions) -> PrunePlan:
        """Return the narrowest plan that loses at most `drop` points, by bisection of its time."""
        pruner = self.pruner
        cost = self._costs()
        wanted = before.facts.map50 - drop / 100
        low, high, best = 0.0, 1.0, None
        for _ in range(_BISECTIONS):
            share = (low + high) / 2
            try:
                plan, _ = pruner.for_share(share, cost, None)
            except CompressionError:
                low = share
                continue
            reached = self.stages_after(plan, tuning)[0][-1].facts.map50
            say(f"{share:.1%} of the time: mAP@.5 {reached:.2%}, wanted {wanted:.2%}")
            low, high, best = (low, share, plan) if reached >= wanted else (share, high, best)
        if best is None:
            raise CompressionError(
                f"{self.spec.name}: every plan loses more than {drop:g} points; "
                "allow more, or train longer with --fine-tune"
            )
        return best

    def stages_after(
        self, plan: PrunePlan, tuning: FineTuneOptions, begin: str | Path | None = None
    ) -> tuple[list[Stage], tuple[str, ...]]:
        """Return the stages that follow the plan, and the training's log.

        Args:
            begin: the `.safetensors` of an earlier run of this plan, to train it further.
        """
        pruned = prune_channels(self.module, plan)
        if begin is None:
            self._fit(pruned, plan)
        else:
            pruned = self._earlier(begin, pruned)
        stages = [self.evaluate("pruned", pruned)]
        if not tuning.steps:
            return stages, ()
        tuned, log = fine_tune_stage(stages[0], self.pictures, tuning, self.module)
        return [*stages, self.evaluate("fine-tuned", tuned)], log

    def _earlier(self, path: str | Path, pruned: nn.Module) -> nn.Module:
        """Return what an earlier run wrote; from a package it comes without its batch norms."""
        what = "the network of the plan; give the plan that was written beside it"
        found = earlier_network(path, what, pruned, fold_norms(pruned))
        if has_norms(found) or not has_norms(pruned):
            return found
        return unfold_norms(found, pruned, next(iter(self._batches(self.pictures)))[0])

    def _fit(self, pruned: nn.Module, plan: PrunePlan) -> None:
        images = [batch for batch, _ in self._batches(self.pictures, _REFIT_IMAGES)]
        if self.options.refit:
            refit(pruned, self.module, plan, images, lambda x: track(x, "fitting layers", len(x)))
        else:
            measure_norms(pruned, images)

    def _share_of(self, before: Stage) -> Callable[[nn.Module], float]:
        def measure(module: nn.Module) -> float:
            artifact = self.scratch / "trial.onnx"
            write_onnx(module, self.spec, artifact)
            full, narrow = self._sure_times([before.artifact, artifact]).ms
            return narrow / full

        return measure


def results_of(stages: Sequence[Stage], times: StageTimes) -> tuple[StageResult, ...]:
    """Return the stages with their times, as results state them."""
    pairs = zip(stages, times.ms, strict=True)
    return tuple(StageResult(stage.name, stage.facts, round(ms, 4)) for stage, ms in pairs)


def write_files(stage: Stage, plan: PrunePlan, folder: Path, name: str) -> dict[str, str]:
    """Write the network of the last stage in all its forms, and the plan; return files by kind."""
    files = save_network(stage.module, stage.spec, folder, name)
    target = folder / f"{name}.plan.json"
    write_file(target, plan.to_json_text(indent=1).encode())
    return {**files, "plan": str(target)}
