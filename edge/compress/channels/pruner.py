"""From what a user asks for - milliseconds, megabytes, points - to a pruned network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from torch import nn

from edge.cache import cache_root
from edge.compress.channels.budget import Spread, plan_channels, plan_share, total_cost
from edge.compress.channels.cost import Cost, filters, megabytes, read_sites
from edge.compress.channels.importance import Importance
from edge.compress.channels.latency_table import (
    LatencyTable,
    latency_cost,
    measure_table,
    read_table,
    table_shapes,
    time_convolution,
    write_table,
)
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import FIXED, Wiring
from edge.errors import CompressionError
from edge.measure.host import fingerprint
from edge.reporting import say, track
from edge.spec import ModelSpec

__all__ = ["Pruner", "Target", "measured_cost", "read_plan", "table_path"]

_ROUNDS = 5
_NEAR = 0.96
Fit = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Attributes:
        kind: `ratio` of the channels to remove, `ms`, `share` of the full network's ms, `mb`.
        value: in that unit.
    """

    kind: Literal["ratio", "ms", "share", "mb"]
    value: float

    def __post_init__(self) -> None:
        below = 1.0 if self.kind in ("ratio", "share") else float("inf")
        if not 0 < self.value < below:
            raise CompressionError(f"a {self.kind} of {self.value:g} cannot be a target")


@dataclass(frozen=True, eq=False)
class Pruner:
    """A network, its importances, and how its channels are to be chosen.

    Attributes:
        spread, align, least, untouched: as `plan_channels` takes them.
        comparable: whether importances of different layers compare as they are.
    """

    module: nn.Module
    spec: ModelSpec
    wiring: Wiring
    importance: Importance
    comparable: bool = False
    spread: Spread = "global"
    align: int = 8
    least: float = 0.2
    untouched: Collection[str] = ()

    def plan(self, cost: Cost, budget: float) -> PrunePlan:
        """The plan that meets `budget` of `cost`; raises CompressionError where none does."""
        return plan_channels(
            self.wiring,
            self.importance,
            cost,
            budget,
            model=self.spec.name,
            spread=self.spread,
            comparable=self.comparable,
            align=self.align,
            least=self.least,
            untouched=self.untouched,
        )

    def for_ratio(self, ratio: float) -> PrunePlan:
        """The plan without `ratio` of the channels that may go, in all or of every layer."""
        if self.spread == "layer":
            return plan_share(
                self.wiring,
                self.importance,
                1 - ratio,
                model=self.spec.name,
                align=self.align,
                least=self.least,
                untouched=self.untouched,
            )
        free = sum(
            int((self.wiring.leaves[path] != FIXED).sum())
            for path in self.wiring.ends
            if path not in self.untouched
        )
        return self.plan(filters, total_cost(self.wiring, filters) - ratio * free)

    def for_megabytes(self, target: float, now: float) -> PrunePlan:
        """The plan of an ONNX file of `target` MB; the full one has `now`."""
        cost = megabytes(read_sites(self.wiring, self.spec.contract.hw))
        return self.plan(cost, target - (now - total_cost(self.wiring, cost)))

    def for_share(self, share: float, cost: Cost, measure: Fit | None) -> PrunePlan:
        """The plan that takes `share` of the full network's time.

        Args:
            cost: from the latency table.
            measure: the share that a pruned network really takes; the budget is corrected by it,
                since a network is more than the sum of its convolutions. None trusts the table.

        Raises:
            CompressionError: no plan is fast enough.
        """
        total = total_cost(self.wiring, cost)
        aim, best = share, None
        for _ in range(_ROUNDS if measure is not None else 1):
            plan = self.plan(cost, aim * total)
            if measure is None:
                return plan
            found = measure(prune_channels(self.module, plan))
            say(f"planned for {aim:.1%} of the time, measured {found:.1%}, wanted {share:.1%}")
            if found <= share and (best is None or found > best[0]):
                best = (found, plan)
            if share * _NEAR <= found <= share:
                break
            aim *= share * (1 + _NEAR) / 2 / found
        if best is None:
            raise CompressionError(
                f"{self.spec.name}: {share:.1%} of its time was not reached in {_ROUNDS} rounds; "
                "the machine may be busy, or too much time goes into other layers"
            )
        return best[1]


def table_path(threads: int) -> Path:
    """Where this host's latency table lies: $EDGE_CACHE or ~/.cache/edge."""
    folder = cache_root()
    host = repr(sorted(_host(threads).items()))
    return folder / "latency" / f"{sha256(host.encode()).hexdigest()[:16]}.json"


def _host(threads: int) -> dict[str, Any]:
    return {**fingerprint(), "threads": threads}


def measured_cost(
    wiring: Wiring, spec: ModelSpec, threads: int, given: str | Path | None = None
) -> tuple[Cost, str]:
    """Milliseconds from a table, and where that is from.

    Args:
        given: a table, perhaps of another machine, to take as it is; left out, this host's own
            in the cache, whose missing rows are measured now.

    Raises:
        CompressionError: the given table is damaged or lacks shapes of this network.
    """
    sites = read_sites(wiring, spec.contract.hw)
    fixed = {
        path: (
            bool((wiring.enters[path] == FIXED).all()),
            bool((wiring.leaves[path] == FIXED).all()),
        )
        for path in wiring.ends
    }
    if given is not None:
        table = read_table(given)
        return latency_cost(table, sites, fixed), f"{given} ({table.host.get('cpu', 'no host')})"
    path = table_path(threads)
    table = read_table(path) if path.is_file() else LatencyTable(_host(threads))
    missing = sorted(table_shapes(sites, fixed) - set(table.rows))
    if missing:
        timed = measure_table(missing, table, lambda shape: time_convolution(shape, threads))
        for _ in track(timed, "timing convolutions", len(missing)):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, path)
    return latency_cost(table, sites, fixed), str(path)


def read_plan(path: str | Path) -> PrunePlan:
    """A plan from its file.

    Raises:
        CompressionError: missing or no plan.
    """
    try:
        return PrunePlan.from_json(Path(path).read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path}: cannot be read: {error}") from error
