"""The clock of a camera, read on this machine's clock."""

from __future__ import annotations

import math

__all__ = ["SourceClock"]

# Crystals differ by up to 100 parts in a million each way.
_DRIFT = 2e-4
# Frames that waited in a buffer come in a burst. If all frames of so long are late, the clock was
# set, and their age is not what it seems.
_LATE_S, _BURST_S = 0.5, 5.0


class SourceClock:
    """Turns a source's own time stamps into seconds of `time.monotonic`.

    The frame that took the shortest way from camera to reader tells how the two clocks differ. A
    frame that waited in a buffer, because the reader was stopped say, keeps its true age.
    """

    def __init__(self) -> None:
        self._offset, self._arrived = math.inf, 0.0
        self._late_since, self._least = math.inf, math.inf

    def captured(self, stamp: float, arrived: float) -> float:
        """Return when the frame of a stamp was taken, at most `arrived`.

        Args:
            stamp: seconds of the source's clock, from any start.
            arrived: seconds of `time.monotonic`, when the frame was read.
        """
        offset = arrived - stamp
        known = self._offset + _DRIFT * (arrived - self._arrived)
        late = offset - known
        if late < _LATE_S:
            self._late_since = self._least = math.inf
        else:
            self._late_since = min(self._late_since, arrived)
            self._least = min(self._least, late)
            if arrived - self._late_since > _BURST_S:
                known += self._least
                self._late_since = self._least = math.inf
        self._offset, self._arrived = min(offset, known), arrived
        return min(arrived, stamp + self._offset)
