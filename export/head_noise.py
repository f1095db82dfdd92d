"""How far quantization moves the raw outputs of a network, in decibels.

On held-out images this orders recipes as mAP does, with far less sampling noise: every cell of
every head counts, not only the objects that a threshold lets through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.runtime.backend import Backend, cpu_options, open_backend

__all__ = ["MOST_DB", "Heads", "decibel", "head_noise", "heads_of", "noise_share"]

Array = NDArray[np.float32]
Heads = list[list[Array]]
# Equal to the last bit; keeps figures finite.
MOST_DB = 300.0


def heads_of(
    artifact: str | Path | Backend, arrays: Iterable[Array], threads: int | None = None
) -> Heads:
    """The raw heads of each network input (1, 3, H, W); a Q/DQ graph runs as it is written.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    if isinstance(artifact, (str, Path)):
        with open_backend(
            artifact, **cpu_options(artifact, threads=threads, exact=True)
        ) as backend:
            return heads_of(backend, arrays)
    return [[np.array(head) for head in artifact.run(array)] for array in arrays]


def noise_share(reference: Heads, found: Heads) -> float:
    """Noise power over signal power, the mean over the heads; inf where a value is not finite.

    Raises:
        ValueError: no image.
    """
    if not reference:
        raise ValueError("no image to measure noise on")
    shares = [
        _share([image[i] for image in reference], [image[i] for image in found])
        for i in range(len(reference[0]))
    ]
    return float(np.mean(shares))


def _share(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        noise = sum(
            float(np.square(a.astype(np.float64) - b).sum())
            for a, b in zip(wanted, found, strict=True)
        )
    if not math.isfinite(noise):
        return math.inf
    return noise / max(signal, 1e-30)


def decibel(share: float) -> float:
    """A noise share in dB: 20 dB is a tenth of the signal's amplitude; within +-`MOST_DB`."""
    if share <= 0:
        return MOST_DB
    return (
        float(np.clip(-10 * math.log10(share), -MOST_DB, MOST_DB))
        if share < math.inf
        else (-MOST_DB)
    )


def head_noise(reference: Heads, found: Heads) -> float:
    """`noise_share` in dB."""
    return decibel(noise_share(reference, found))
