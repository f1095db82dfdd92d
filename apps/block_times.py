"""Raw times of a run, whole microseconds by block: every figure of speed is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apps.interleave import Runner

__all__ = ["PERCENTS", "Blocks", "block_logs", "flat", "percentiles", "stage_times", "whole"]

# Microseconds of each frame of each block.
Blocks = list[list[int]]
PERCENTS = {"p50": 50, "p95": 95, "p99": 99}


def whole(blocks_ms: Sequence[Sequence[float]]) -> Blocks:
    """Milliseconds as whole microseconds, one at least: a ratio of two must exist."""
    return [[max(1, round(value * 1e3)) for value in block] for block in blocks_ms]


def stage_times(runner: Runner) -> dict[str, Blocks]:
    """Of each stage of the pipeline's frames, in the pipeline's blocks."""
    ends = np.cumsum([len(block) for block in runner.latency_ms]).tolist()
    starts = [0, *ends[:-1]]
    return {
        stage: whole(
            [
                [one[stage] for one in runner.stages_ms[start:end]]
                for start, end in zip(starts, ends, strict=True)
            ]
        )
        for stage in runner.stages_ms[0]
    }


def flat(blocks: Blocks) -> NDArray[np.float64]:
    """Milliseconds of all frames."""
    return np.array([value for block in blocks for value in block], np.float64) / 1e3


def percentiles(blocks: Blocks) -> dict[str, float]:
    """p50, p95, p99 over all frames, milliseconds."""
    found = np.percentile(flat(blocks), list(PERCENTS.values())).tolist()
    return dict(zip(PERCENTS, found, strict=True))


def block_logs(mine: Blocks, other: Blocks) -> list[float]:
    """log(median / the other's median) of each round's neighbouring blocks."""
    pairs = zip(mine, other, strict=True)
    return [math.log(float(np.median(a)) / float(np.median(b))) for a, b in pairs]
