"""One network, the pictures that its pruning needs, and the stages that it goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from edge.compress.channels.dissect import scores
from edge.compress.channels.importance import Importance, gamma, l1, taylor
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.profile import profile
from edge.compress.channels.pruner import Pruner, Target, measured_cost
from edge.compress.channels.refit import refit
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import Wiring, read_wiring
from edge.compress.finetune import FineTuning, measure_norms, plain_batches
from edge.data.datasets import Dataset
from edge.data.items import thin
from edge.errors import CompressionError
from edge.files import write_file
from edge.measure.host import fingerprint
from edge.models.folding import fold_norms, has_norms, unfold_norms
from edge.models.zoo import LoadedModel
from edge.reporting import say, track
from edge.train.augment import Labelled
from edge.train.losses.ciou import loss_for
from export.compress.source import earlier
from export.compress.stages import Stage, judge, learn, save, time_stages
from export.graph.writer import write_onnx

__all__ = ["IMPORTANCES", "Choice", "Work", "finish", "how_made"]

IMPORTANCES = ("taylor", "l1", "gamma", "dissection")
_BATCH = 8
# They are held in memory, at the network's input size.
_REFIT_IMAGES = 48
# A drop that a bisection of so many rounds misses is below a hundredth of the network's time.
_BISECTIONS = 6


@dataclass(frozen=True)
class Choice:
    """How channels are chosen and networks judged.

    Attributes:
        importance: one of `IMPORTANCES`.
        spread, align, least: as `edge.compress.channels.budget.plan_channels`.
        untouched: the first so many convolutions keep all of their channels.
        images: at most so many training pictures measure importance and fit weights.
        refit: fit the weights of what is left to the full network's outputs; otherwise only batch
            norms are measured anew.
        threads: of onnxruntime, for every time that counts.
        table: a latency table to take in place of this host's.
    """

    importance: str = "taylor"
    spread: Any = "global"
    align: int = 8
    least: float = 0.2
    untouched: int = 0
    images: int = 128
    refit: bool = True
    threads: int = 1
    table: str | None = None


class Work:
    """A loaded network with the pictures that its pruning needs."""

    def __init__(
        self,
        loaded: LoadedModel,
        judged: Dataset,
        pictures: Sequence[Labelled],
        choice: Choice,
        scratch: Path,
        profiled: Sequence[Labelled] | None = None,
    ) -> None:
        self.module, self.spec, self.labels = loaded.module, loaded.spec, loaded.labels
        self.judged, self.pictures = judged, pictures
        self.profiled = pictures if profiled is None else profiled
        self.choice, self.scratch = choice, scratch

    def judge(self, name: str, module: nn.Module) -> Stage:
        return judge(name, module, self.spec, self.judged, self.scratch, self.choice.threads)

    def _batches(self, pictures: Sequence[Labelled], most: int | None = None) -> Any:
        count = min(self.choice.images, most or self.choice.images)
        few = [pictures[i] for i in thin(range(len(pictures)), count)]
        count = len(few) // min(_BATCH, len(few))
        return track(plain_batches(few, self.spec, _BATCH), "looking at pictures", count)

    @cached_property
    def pruner(self) -> Pruner:
        """The network's channels and what they are worth."""
        wiring = read_wiring(self.module)
        return Pruner(
            self.module,
            self.spec,
            wiring,
            self._importance(wiring),
            comparable=self.choice.importance == "taylor",
            spread=self.choice.spread,
            align=self.choice.align,
            least=self.choice.least,
            untouched=tuple(wiring.ends)[: self.choice.untouched],
        )

    def _importance(self, wiring: Wiring) -> Importance:
        measures: dict[str, Callable[[], Importance]] = {
            "taylor": lambda: taylor(
                self.module, wiring, self._batches(self.profiled), loss_for(self.spec)
            ),
            "l1": lambda: l1(wiring),
            "gamma": lambda: gamma(wiring),
            "dissection": lambda: scores(
                profile(self.module, wiring, (x for x, _ in self._batches(self.profiled)))
            ),
        }
        return measures[self.choice.importance]()

    def plan_for(self, target: Target, before: Stage) -> PrunePlan:
        pruner = self.pruner
        if target.kind == "ratio":
            return pruner.for_ratio(target.value)
        if target.kind == "mb":
            return pruner.for_megabytes(target.value, before.facts["megabytes"])
        threads, table = self.choice.threads, self.choice.table
        cost, source = measured_cost(pruner.wiring, self.spec, threads, table)
        say(f"milliseconds of single convolutions: {source}")
        share = target.value
        if target.kind == "ms":
            share /= self._milliseconds([before.artifact])[0]
        if share >= 1:
            raise CompressionError(f"{self.spec.name} takes no longer than that already")
        return pruner.for_share(share, cost, None if table else self._share_of(before))

    def plan_by_drop(self, drop: float, before: Stage, tuning: FineTuning | None) -> PrunePlan:
        """The narrowest plan that loses at most `drop` points, by bisection over its time."""
        pruner = self.pruner
        cost, _ = measured_cost(pruner.wiring, self.spec, self.choice.threads, self.choice.table)
        wanted = before.facts["map50"] - drop / 100
        low, high, best = 0.0, 1.0, None
        for _ in range(_BISECTIONS):
            share = (low + high) / 2
            try:
                plan = pruner.for_share(share, cost, None)
            except CompressionError:
                low = share
                continue
            reached = self.after(plan, tuning)[0][-1].facts["map50"]
            say(f"{share:.1%} of the time: mAP@.5 {reached:.2%}, wanted {wanted:.2%}")
            low, high, best = (low, share, plan) if reached >= wanted else (share, high, best)
        if best is None:
            raise CompressionError(
                f"{self.spec.name}: every plan loses more than {drop:g} points; "
                "allow more, or train longer with --fine-tune"
            )
        return best

    def after(
        self, plan: PrunePlan, tuning: FineTuning | None, begin: str | Path | None = None
    ) -> tuple[list[Stage], list[str]]:
        """The stages after pruning, and the training's log; `begin` as
        `export.compress.prune.prune`."""
        pruned = prune_channels(self.module, plan)
        if begin is None:
            self._fit(pruned, plan)
        else:
            pruned = self._earlier(begin, pruned)
        stages, log = [self.judge("pruned", pruned)], list[str]()
        if tuning is not None:
            tuned, log = learn(stages[0], self.pictures, tuning, self.module)
            stages.append(self.judge("fine-tuned", tuned))
        return stages, log

    def _earlier(self, path: str | Path, pruned: nn.Module) -> nn.Module:
        """What an earlier run wrote; out of a package it comes without its batch norms."""
        what = "the network of the plan; give the plan beside it"
        found = earlier(path, what, pruned, fold_norms(pruned))
        if has_norms(found) or not has_norms(pruned):
            return found
        return unfold_norms(found, pruned, next(iter(self._batches(self.pictures)))[0])

    def _fit(self, pruned: nn.Module, plan: PrunePlan) -> None:
        images = [batch for batch, _ in self._batches(self.pictures, _REFIT_IMAGES)]
        if self.choice.refit:
            refit(pruned, self.module, plan, images, lambda x: track(x, "fitting layers", len(x)))
        else:
            measure_norms(pruned, images)

    def _milliseconds(self, artifacts: Sequence[Path]) -> list[float]:
        return time_stages(artifacts, self.judged.items[0], self.choice.threads)

    def _share_of(self, before: Stage) -> Callable[[nn.Module], float]:
        def measure(module: nn.Module) -> float:
            artifact = self.scratch / "trial.onnx"
            write_onnx(module, self.spec, artifact)
            full, narrow = self._milliseconds([before.artifact, artifact])
            return narrow / full

        return measure


def finish(
    stages: Sequence[Stage], work: Work, plan: PrunePlan, folder: Path, name: str
) -> dict[str, Any]:
    """Time all stages in turns and write the last one's files and the plan."""
    times = time_stages([s.artifact for s in stages], work.judged.items[0], work.choice.threads)
    files = save(stages[-1].module, stages[-1].spec, folder, name)
    files["plan"] = str(folder / f"{name}.plan.json")
    write_file(Path(files["plan"]), plan.to_json(indent=1).encode())
    return {
        "name": name,
        "stages": [
            {"name": stage.name, **stage.facts, "ms": round(ms, 4)}
            for stage, ms in zip(stages, times, strict=True)
        ],
        "plan": [list(row) for row in plan.rows()],
        "images": len(work.judged),
        "files": files,
        "host": {**fingerprint(), "threads": work.choice.threads},
    }


def how_made(
    model: str | Path,
    data: str | Path,
    train: str | Path,
    choice: Choice,
    tuning: FineTuning | None,
    log: list[str],
) -> dict[str, Any]:
    """What a result says of how it came about."""
    return {
        "model": str(model),
        "data": str(data),
        "train": str(train),
        "choice": asdict(choice),
        "tuning": None if tuning is None else asdict(tuning),
        "log": log,
    }
