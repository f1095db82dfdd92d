"""From what a user asks for (a share of the channels, megabytes, milliseconds) to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from edge.compress.channels.budget import plan_channels, plan_share, total_cost, untouched_paths
from edge.compress.channels.cost import ConvShape, Cost, filters, megabytes, read_shapes
from edge.compress.channels.importance import Importances
from edge.compress.channels.latency_table import convolution_costs, predicted_costs
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import FIXED, Wiring
from edge.compress.options import ChannelOptions
from edge.errors import CompressionError
from edge.reporting import say
from edge.spec import ModelSpec

__all__ = ["Pruner"]

_ROUNDS = 5
_NEAR = 0.96


@dataclass(frozen=True, eq=False)
class Pruner:
    """A network, the importance of its channels, and how they are to be chosen."""

    module: nn.Module
    spec: ModelSpec
    wiring: Wiring
    importance: Importances
    options: ChannelOptions

    def plan(self, cost: Cost, budget: float) -> PrunePlan:
        """Return the plan that meets `budget` of `cost`.

        Raises:
            CompressionError: no plan does.
        """
        return plan_channels(
            self.wiring, self.importance, cost, budget, self.options, self.spec.name
        )

    def for_ratio(self, ratio: float) -> PrunePlan:
        """Return the plan without `ratio` of the channels that may go, in all or in every layer."""
        if self.options.spread == "layer":
            return plan_share(self.wiring, self.importance, 1 - ratio, self.options, self.spec.name)
        untouched = untouched_paths(self.wiring, self.options)
        free = sum(
            int((self.wiring.leaves[path] != FIXED).sum())
            for path in self.wiring.ends
            if path not in untouched
        )
        return self.plan(filters, total_cost(self.wiring, filters) - ratio * free)

    def for_megabytes(self, target: float, now: float) -> PrunePlan:
        """Return the plan of an ONNX file of `target` MB; the full network's file has `now`."""
        cost = megabytes(read_shapes(self.wiring, self.spec.contract.hw))
        return self.plan(cost, target - (now - total_cost(self.wiring, cost)))

    def for_share(
        self, share: float, cost: Cost, measure: Callable[[nn.Module], float] | None
    ) -> tuple[PrunePlan, float | None]:
        """Return the plan that takes `share` of the full network's time, and what was measured.

        Args:
            cost: from a latency table.
            measure: returns the share that a pruned network really takes. The budget is corrected
                by it, since a network is more than the sum of its convolutions. None trusts the
                table.

        Raises:
            CompressionError: no plan is fast enough.
        """
        total = total_cost(self.wiring, cost)
        aim, best = share, None
        for _ in range(_ROUNDS if measure is not None else 1):
            plan = self.plan(cost, aim * total)
            if measure is None:
                return plan, None
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
        return best[1], best[0]

    def milliseconds(
        self, table: str | None, timer: Callable[[ConvShape], float] | None = None
    ) -> Cost:
        """Return the milliseconds of the network's convolutions, from a table or measured here.

        Args:
            table: file of a table.
            timer: predicts the time of a convolution, in place of both.

        Raises:
            CompressionError: the given table is damaged or lacks shapes of this network.
        """
        wiring, options = self.wiring, self.options
        fixed = {
            path: (
                bool((wiring.enters[path] == FIXED).all()),
                bool((wiring.leaves[path] == FIXED).all()),
            )
            for path in wiring.ends
        }
        shapes = read_shapes(wiring, self.spec.contract.hw)
        if timer is not None:
            return predicted_costs(shapes, fixed, timer)
        cost, source = convolution_costs(shapes, fixed, options.threads, table)
        say(f"milliseconds of single convolutions: {source}")
        return cost
