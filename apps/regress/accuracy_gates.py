"""Gates on accuracy and on layers, with the classes, sizes and layers behind a loss."""

from __future__ import annotations

from collections.abc import Mapping

from apps.regress.gate import Case, Change, Clue, Gate, more
from apps.regress.measurement import Measurement
from edge.files import to_plain
from edge.measure.noise import LIMITS_DB, TensorNoise, first_departure
from edge.measure.results import ClassResults
from edge.measure.statistics import Comparison, compare_precision

__all__ = ["ACCURACY", "sliced"]

Results = Mapping[str, ClassResults]
_SLICES = 3
# Of any one class or size of a gate that failed already.
_SURE = 0.05
_DRAWS = 300


def sliced(measured: Measurement, name: str) -> Results | None:
    """Return the results behind a gate's name; None for a gate that judges no stored accuracy."""
    if name == "map50":
        return measured.results
    if name == "small":
        return measured.small
    if name.startswith("class "):
        kept = name.removeprefix("class ")
        return {key: one for key, one in measured.results.items() if key == kept}
    return None


def _accuracy(case: Case) -> Gate:
    if case.stored is None:
        return case.absent()
    before, now = sliced(case.stored, case.name), sliced(case.now, case.name)
    if not before or not now:
        return case.gate("not compared", "the images hold no such objects")
    what = {"map50": "mAP@.5", "small": "mAP@.5 of small objects"}.get(
        case.name, f"AP@.5 of {case.name.removeprefix('class ')}"
    )
    return _precision(case, before, now, what, "the stored result")


def _reference(case: Case) -> Gate:
    if case.entry.reference is None:
        return case.absent()
    before = case.gathered.accuracies[case.entry.reference].results
    what = f"its reference {case.entry.reference.name}"
    return _precision(case, before, case.now.results, "mAP@.5", what)


def _precision(case: Case, before: Results, now: Results, what: str, against: str) -> Gate:
    found = compare_precision(before, now, margin=case.margin, alarm=case.suite.alarm)
    change = Change(
        f"{_points(found.loss)} points",
        f"{_points(found.high)} to {_points(found.low)}",
        _points(case.margin),
        f"{found.beyond * 100:.1f} %",
    )
    said = (
        f"{what} {_moved(found.loss)} against {against} ({change.interval}; margin "
        f"{change.margin}); a loss beyond the margin has a probability of {change.beyond}"
    )
    if found.few and found.verdict == "cannot tell":
        said += f"; too few objects of {', '.join(found.few[:5])}"
    clues = _where(case, before, now) if found.verdict == "worse" else ()
    return case.gate(found.verdict, said + more(found, "images"), found, change, clues)


def _points(loss: float) -> str:
    """Return a change of AP in points; a loss is negative, and no change is +0.0."""
    return f"{round(-loss * 100, 1) + 0.0:+.1f}"


def _moved(loss: float) -> str:
    if abs(loss) < 5e-5:
        return "is the same"
    return f"{'fell' if loss > 0 else 'rose'} by {abs(loss) * 100:.1f} points"


def _where(case: Case, before: Results, now: Results) -> tuple[Clue, ...]:
    """Return classes that lost for certain, sizes, and the layer where the network departs."""
    return (*_classes(before, now), *_sizes(case), *_layers(case))


def _classes(before: Results, now: Results) -> list[Clue]:
    names = [name for name in before if name in now]
    alarm = _SURE / len(names)
    lost = {name: _compare({name: before[name]}, {name: now[name]}, alarm) for name in names}
    worst = sorted(lost, key=lambda name: -lost[name].low)[:_SLICES]
    return [_lost("class", name, lost[name]) for name in worst if lost[name].low > 0]


def _compare(before: Results, now: Results, alarm: float) -> Comparison:
    return compare_precision(before, now, margin=0, alarm=alarm, draws=_DRAWS)


def _lost(kind: str, name: str, found: Comparison) -> Clue:
    sure = f"{_points(found.high)} to {_points(found.low)}"
    return Clue(kind, name, _points(found.loss), sure, found.loss)


def _sizes(case: Case) -> list[Clue]:
    """Return losses by size, with an interval for small objects, whose results are kept."""
    if case.name == "reference" and case.entry.reference is not None:
        right = case.gathered.accuracies[case.entry.reference]
        before, small = to_plain(right.metrics.by_size), right.small
    elif case.name == "map50" and case.stored is not None:
        before, small = case.stored.by_size, case.stored.small
    else:
        return []
    found = []
    for size in before:
        if size not in case.now.by_size:
            continue
        if size == "small" and set(small) & set(case.now.small):
            found.append(_lost("size", size, _compare(small, case.now.small, _SURE)))
            continue
        loss = before[size]["map50"] - case.now.by_size[size]["map50"]
        found.append(Clue("size", size, _points(loss), loss=loss))
    return found


def _layers(case: Case) -> list[Clue]:
    layer = _departure(case)
    if layer is None:
        return []
    known = {} if case.stored is None else case.stored.noise_db
    before = f"was {known[layer.name]:.1f} dB" if layer.name in known else "of its signal to noise"
    return [Clue("layer", layer.name, f"{layer.db:.1f} dB", before)]


def _departure(case: Case) -> TensorNoise | None:
    noises = case.gathered.noises[case.entry.name]
    known = case.stored.noise_db if case.stored is not None else None
    limit = LIMITS_DB[case.now.precision]
    return first_departure(noises, limit, known or None) or first_departure(noises, limit)


def _noise(case: Case) -> Gate:
    noises = case.gathered.noises[case.entry.name]
    heads = [one for one in noises if one.name in case.gathered.heads[case.entry.name]]
    if not heads:
        return case.gate("not compared", "layers can be compared between ONNX files of one model")
    worst = min(heads, key=lambda one: one.db)
    verdict = "worse" if worst.db < case.margin else "same"
    change = Change(f"{worst.db:.1f} dB", "", f"at least {case.margin:g} dB")
    said = f"head {worst.name} keeps {change.by}; {change.margin}"
    return case.gate(verdict, said, None, change, tuple(_layers(case)))


ACCURACY = {
    "map50": _accuracy,
    "small": _accuracy,
    "class": _accuracy,
    "reference": _reference,
    "noise_db": _noise,
}
