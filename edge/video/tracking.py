"""Joins the boxes of successive frames to tracks, as SORT does (Bewley 2016, arXiv:1602.00763)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections, iou_matrix

__all__ = ["Tracker", "assign"]

Array = NDArray[np.float64]


@dataclass
class _Track:
    box: Array  # centre x, centre y, width, height; pixels
    speed: Array  # pixels a second
    class_id: int
    seen: float
    hits: int = 1
    number: int = 0


class Tracker:
    """Gives the objects of one camera stable numbers.

    A track moves at constant velocity by the clock, so dropped frames do no harm. Its state is
    corrected with fixed gains, as SORT's Kalman filter settles to such.

    Args:
        iou: smallest overlap of a box with the prediction of its track.
        hits: matches before a track gets its number, so that a flicker gets none.
        lost_s: seconds without a match after which a track is forgotten.

    Attributes:
        counts: how many numbers were given so far, by class_id.
    """

    def __init__(self, iou: float = 0.3, hits: int = 3, lost_s: float = 1.0) -> None:
        self.iou, self.hits, self.lost_s = iou, hits, lost_s
        self.counts: Counter[int] = Counter()
        self._tracks: list[_Track] = []
        self._given = 0
        self._now: float | None = None

    def update(self, found: Detections, now: float) -> NDArray[np.int64]:
        """Return the track number of each detection, (N,) int64; 0 where it has none yet.

        Args:
            found: of one frame, in pixels.
            now: when the frame was captured, seconds.
        """
        self._predict(now)
        boxes = _centred(found.xyxy)
        pairs = assign(self._overlap(found), self.iou)
        numbers = np.zeros(len(found), np.int64)
        for row, column in pairs:
            numbers[row] = self._correct(self._tracks[column], boxes[row], now)
        taken = {row for row, _ in pairs}
        # SORT forgets a tentative track at its first miss.
        self._tracks = [each for each in self._tracks if each.number or each.seen == now]
        for row in sorted(set(range(len(found))) - taken):
            track = _Track(boxes[row], np.zeros(4), int(found.class_id[row]), now, hits=0)
            self._tracks.append(track)
            numbers[row] = self._count(track)
        return numbers

    def _predict(self, now: float) -> None:
        step_s = 0.0 if self._now is None else max(0.0, now - self._now)
        self._now = now
        # After a long absence the objects are others.
        self._tracks = [track for track in self._tracks if now - track.seen <= self.lost_s]
        for track in self._tracks:
            track.box[:2] += track.speed[:2] * step_s
            track.box[2:] = np.maximum(1.0, track.box[2:] + track.speed[2:] * step_s)

    def _overlap(self, found: Detections) -> Array:
        corners = [_corners(track.box) for track in self._tracks]
        overlap = iou_matrix(found.xyxy, np.reshape(corners, (-1, 4))).astype(np.float64)
        classes = np.array([track.class_id for track in self._tracks], np.int64)
        overlap[found.class_id[:, None] != classes[None, :]] = 0
        return overlap

    def _correct(self, track: _Track, box: Array, now: float) -> int:
        residual, passed = box - track.box, max(now - track.seen, 1e-3)
        track.box = track.box + 0.7 * residual
        # The first two boxes are all that is known about the speed.
        gain = np.array((0.4, 0.4, 0.1, 0.1)) if track.hits > 1 else np.array((1.0, 1.0, 0.2, 0.2))
        track.speed = track.speed + gain * residual / passed
        track.seen = now
        return self._count(track)

    def _count(self, track: _Track) -> int:
        track.hits += 1
        if not track.number and track.hits >= self.hits:
            self._given += 1
            track.number = self._given
            self.counts[track.class_id] += 1
        return track.number


def _centred(xyxy: NDArray[Any]) -> Array:
    boxes = np.asarray(xyxy, np.float64)
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def _corners(box: Array) -> Array:
    return np.concatenate((box[:2] - box[2:] / 2, box[:2] + box[2:] / 2))


def assign(overlap: Array, least: float) -> list[tuple[int, int]]:
    """Return the pairs (row, column) with the greatest sum of overlap, none below `least`.

    Args:
        overlap: (N, M), 0..1.
    """
    worth = np.where(overlap >= least, overlap, 0.0)
    if not worth.any():
        return []
    found: list[tuple[int, int]] = []
    for rows, columns in _islands(worth > 0):
        small = worth[np.ix_(rows, columns)]
        if len(rows) <= len(columns):
            found += zip(rows, (columns[each] for each in _hungarian(-small)), strict=True)
        else:
            found += zip((rows[each] for each in _hungarian(-small.T)), columns, strict=True)
    return sorted(pair for pair in found if worth[pair] > 0)


def _islands(touch: NDArray[np.bool_]) -> list[tuple[list[int], list[int]]]:
    """Return groups of rows and columns that depend on each other; a street has many small ones."""
    free = set(np.flatnonzero(touch.any(axis=1)).tolist())
    islands: list[tuple[list[int], list[int]]] = []
    while free:
        rows, columns = {free.pop()}, np.zeros(touch.shape[1], bool)
        fresh = rows
        while fresh:
            columns |= touch[sorted(fresh)].any(axis=0)
            fresh = free.intersection(np.flatnonzero(touch[:, columns].any(axis=1)).tolist())
            rows, free = rows | fresh, free - fresh
        islands.append((sorted(rows), np.flatnonzero(columns).tolist()))
    return islands


def _hungarian(cost: Array) -> list[int]:
    """Return the column of each row in the cheapest assignment of (N, M) costs, N <= M.

    Shortest augmenting paths with potentials, O(N^2 M) (Jonker and Volgenant 1987).
    """
    count, wide = cost.shape
    if count == 1:
        return [int(cost[0].argmin())]
    row_price, column_price = np.zeros(count + 1), np.zeros(wide + 1)
    owner = np.zeros(wide + 1, np.int64)  # of each column its row, from 1; 0: free
    for row in range(1, count + 1):
        owner[0], column = row, 0
        nearest, before = np.full(wide + 1, np.inf), np.zeros(wide + 1, np.int64)
        used = np.zeros(wide + 1, bool)
        while owner[column]:
            used[column] = True
            at = owner[column]
            reach = cost[at - 1] - row_price[at] - column_price[1:]
            closer = ~used[1:] & (reach < nearest[1:])
            nearest[1:][closer], before[1:][closer] = reach[closer], column
            following = int(np.where(used[1:], np.inf, nearest[1:]).argmin()) + 1
            step = nearest[following]
            row_price[owner[used]] += step
            column_price[used] -= step
            nearest[~used] -= step
            column = following
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    result = np.zeros(count, np.int64)
    result[owner[1:][owner[1:] > 0] - 1] = np.flatnonzero(owner[1:])
    return [int(column) for column in result]
