"""Are pictures that judge a training among those it learns from?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import load
from edge.data.distinct import digest
from edge.data.hashes import hash_image
from edge.data.items import Dataset, Item
from edge.data.overlap import Overlap, match
from edge.errors import DataError

__all__ = ["Fingerprints", "fingerprints_of", "refuse_shared", "shared_pictures"]

# Frames of one series look alike, and series may resemble each other across an honest split; one
# in three is no chance.
_MANY = 3


@dataclass
class Fingerprints:
    """What pictures are recognised by.

    Attributes:
        digests: sha256 of the pixels of each picture.
        hashes: perceptual hash of each picture.
        seeds: scenes of the built-in world, which are equal only if their seeds are.
    """

    digests: set[str] = field(default_factory=set)
    hashes: list[str] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)

    def add(self, item: Item, frame: NDArray[np.uint8]) -> None:
        """Add a picture, (H, W, 3) BGR."""
        if item.seed is not None:
            self.seeds.add(item.seed)
            return
        self.digests.add(digest(frame))
        self.hashes.append(hash_image(frame))


def fingerprints_of(items: Iterable[Item]) -> Fingerprints:
    """Return the fingerprints of all pictures that can be read."""
    known = Fingerprints()
    for item in items:
        if item.seed is not None:
            known.seeds.add(item.seed)
            continue
        try:
            known.add(item, load(item)[0])
        except DataError:
            continue
    return known


def shared_pictures(known: Fingerprints, dataset: Dataset) -> list[Overlap]:
    """Return the pictures of `dataset` that are, or look like, those of `known`."""
    found: list[Overlap] = []
    for item in dataset.items:
        if item.seed is not None:
            if item.seed in known.seeds:
                found.append(Overlap(str(item.image), True, 0))
            continue
        if not known.hashes:
            continue
        try:
            frame = load(item)[0]
        except DataError:
            continue
        one = match(str(item.image), frame, known.hashes, known.digests)
        if one is not None:
            found.append(one)
    return found


def refuse_shared(
    known: Fingerprints, validation: Dataset, data: str, *, allowed: bool = False
) -> str | None:
    """Refuse a validation set that shares pictures with the training set.

    Args:
        data: name of the training set, for the message.
        allowed: do not refuse, only tell.

    Returns:
        A line about pictures that look alike, or None where there are none.

    Raises:
        DataError: a picture is in both sets, or one in three or more looks alike.
    """
    found = shared_pictures(known, validation)
    if not found:
        return None
    exact = sum(one.exact for one in found)
    told = (
        f"{len(found)} of the {len(validation)} pictures of {validation.source} are, or look "
        f"like, training pictures of {data} ({exact} with the same pixels), such as "
        f"{found[0].image}"
    )
    if not allowed and (exact or _MANY * len(found) >= len(validation)):
        raise DataError(
            f"{told}; what is measured on them says nothing about new pictures: take other "
            "pictures, or --allow-overlap"
        )
    return f"{told}; the figures may flatter the network"
