"""What `edge regress --update` changes: old and new of every class, size and tensor that moved."""

from __future__ import annotations

from collections.abc import Mapping

from apps.regress.measurement import Measurement

__all__ = ["moved"]

# What two decimals do not show has not moved.
_SEEN = 0.00005
Row = tuple[str, str, str, str, str]


def moved(before: Measurement, now: Measurement) -> tuple[list[Row], int]:
    """Rows of the slices that moved, and how many did not.

    Slices are all classes together at IoU 0.5 and 0.5 to 0.95, sizes of objects, then classes, the
    greatest loss first. One that is only in the old or the new record has moved.
    """
    whole = [
        ("all", before.map50, now.map50),
        ("all, AP@.5:.95", before.map50_95, now.map50_95),
    ]
    slices: list[tuple[str, float | None, float | None]] = [*whole]
    slices += _pairs(before.by_size, now.by_size, "map50")
    classes = _pairs(before.by_class, now.by_class, "ap50")
    slices += sorted(classes, key=lambda one: (one[2] or 0.0) - (one[1] or 0.0))
    boxes = {
        name: one.get("boxes")
        for side in (before, now)
        for name, one in {**side.by_size, **side.by_class}.items()
    }
    rows = [_row(each, boxes.get(each[0])) for each in slices if _differs(*each[1:])]
    return rows, len(slices) - len(rows)


def _pairs(
    before: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]], key: str
) -> list[tuple[str, float | None, float | None]]:
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name, {}).get(key), now.get(name, {}).get(key)) for name in names]


def _differs(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) >= _SEEN


def _row(slices: tuple[str, float | None, float | None], boxes: float | None) -> Row:
    name, old, new = slices
    change = "-" if old is None or new is None else f"{(new - old) * 100:+.2f}"
    return name, "" if boxes is None else f"{boxes:g}", _percent(old), _percent(new), change


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.2f}"
