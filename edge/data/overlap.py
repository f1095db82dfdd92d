"""Does a set of pictures hold those that scales were made from?

INT8 judged on its own calibration images flatters itself. Needs no build package, so that a
device can ask it too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.data.distinct import Seen, digest, pictures
from edge.data.hashes import NEAR, distances, hash_image
from edge.data.items import Dataset
from edge.errors import CalibrationError
from edge.spec import Manifest

__all__ = [
    "DIGITS",
    "HASHES_KEY",
    "IMAGES_KEY",
    "Overlap",
    "calibrated_on",
    "either_way",
    "match",
    "overlap",
    "refuse_overlap",
]

# What a quantized artifact's manifest says of its calibration images, among its arguments: the
# first digits of each sha256, and the perceptual hashes.
IMAGES_KEY = "calibration_images"
HASHES_KEY = "calibration_hashes"
DIGITS = 16


@dataclass(frozen=True)
class Overlap:
    """A picture that a calibration has seen.

    Attributes:
        image: its name.
        exact: the very pixels; else only alike: re-encoded, resized, mirrored, or the frame beside
            it.
        bits: how many of the hash's 64 differ.
    """

    image: str
    exact: bool
    bits: int


def match(
    name: str, frame: NDArray[np.uint8], hashes: Sequence[str], digests: Collection[str] = ()
) -> Overlap | None:
    """`frame` (H, W, 3) BGR among pictures of `hashes` and `digests`, if it is.

    Args:
        digests: sha256 of pixels, or their first digits, all of one length.
    """
    length = len(next(iter(digests), ""))
    if length and digest(frame)[:length] in digests:
        return Overlap(name, True, 0)
    if not hashes:
        return None
    bits = int(distances(either_way(frame), hashes).min())
    return Overlap(name, False, bits) if bits <= NEAR else None


def either_way(frame: NDArray[np.uint8]) -> list[str]:
    """Perceptual hashes of a picture and of its mirror image, which augmented sets hold."""
    return [hash_image(frame), hash_image(np.ascontiguousarray(frame[:, ::-1]))]


def calibrated_on(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Perceptual hashes, and first digits of the sha256, of an artifact's calibration images.

    Both are empty for what was never calibrated, or by an older version.
    """
    known = dict(manifest.arguments)
    hashes, digests = (json.loads(known.get(key, "[]")) for key in (HASHES_KEY, IMAGES_KEY))
    return list(hashes), list(digests)


def overlap(
    hashes: Sequence[str], dataset: Dataset, digests: Collection[str] = ()
) -> list[Overlap]:
    """The pictures of `dataset` that are among those of `hashes` and `digests`."""
    known = frozenset(digests)
    found = (match(name, frame, hashes, known) for name, frame in pictures(dataset, Seen()))
    return [one for one in found if one is not None]


def refuse_overlap(found: Sequence[Overlap], calibration: str, evaluation: str) -> None:
    """Say what is in both sets.

    Raises:
        CalibrationError: something is; one line with the count, an example and what to do.
    """
    if not found:
        return
    exact = sum(one.exact for one in found)
    first = found[0]
    raise CalibrationError(
        f"{evaluation}: {len(found)} of its images are calibration images of {calibration} "
        f"({exact} the same pixels, {len(found) - exact} alike), such as {first.image}; INT8 "
        "would be judged on what its scales were fitted to: take other images, or "
        "--allow-overlap"
    )
