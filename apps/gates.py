"""Each margin of a suite against what was measured: a verdict and one sentence that says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

from apps.gather import Gathered
from apps.image_results import ClassResults
from apps.measurement import Measurement, same_host
from apps.statistics import (
    Comparison,
    compare_percentile,
    compare_precision,
    compare_ratio,
    minimum_detectable_drop,
)
from apps.suite import Entry, Suite
from export.verify import LIMITS_DB, TensorNoise, first_departure

__all__ = ["Gate", "detectable", "gate_names", "judge_all"]

Results = Mapping[str, ClassResults]
_SLICES = 3
_POWER = 0.95
# What an allocator keeps or gives back differs by some megabytes from run to run.
_ALLOCATOR_BYTES = 16e6


@dataclass(frozen=True)
class Gate:
    """One margin of one artifact.

    Attributes:
        artifact, name: of the artifact in the suite, and of the margin.
        verdict: better, same, worse, cannot tell, or not compared.
        text: by how much, how sure, and where.
        comparison: the figures behind it, where it is a test.
    """

    artifact: str
    name: str
    verdict: str
    text: str
    comparison: Comparison | None = None


def gate_names(entry: Entry) -> list[str]:
    """The gates that an artifact's margins ask for, in the order of `judge_all`."""
    margins = entry.margins
    single = ("map50", "small", "reference")
    names = [name for name in single if getattr(margins, name) is not None]
    names += [f"class {name}" for name, _ in margins.classes]
    camera = ("frame_age_p99", "camera_fps")
    later = ("slowdown", "speedup", "p99_ms", *camera, "bytes", "memory", "noise_db")
    return names + [name for name in later if getattr(margins, name) is not None]


def detectable(suite: Suite, before: Mapping[str, Measurement]) -> dict[tuple[str, str], float]:
    """The drop that each accuracy gate finds with 95 %, from the stored results alone."""
    found = {}
    for entry in suite.entries:
        stored = before.get(entry.name)
        for name in gate_names(entry):
            results = None if stored is None else _slice(stored, name)
            margin = _margin(entry, name)
            if results and margin is not None:
                found[entry.name, name] = minimum_detectable_drop(
                    results, margin=margin, alarm=suite.alarm, power=_POWER
                )
    return found


def _margin(entry: Entry, name: str) -> float | None:
    if name.startswith("class "):
        return dict(entry.margins.classes)[name.removeprefix("class ")]
    value: float | None = getattr(entry.margins, name)
    return value


def _slice(measured: Measurement, name: str) -> Results | None:
    if name == "map50":
        return measured.results
    if name == "small":
        return measured.small
    if name.startswith("class "):
        kept = name.removeprefix("class ")
        return {key: one for key, one in measured.results.items() if key == kept}
    return None


def judge_all(suite: Suite, gathered: Gathered, before: Mapping[str, Measurement]) -> list[Gate]:
    """All gates of a suite; `before` holds the stored measurements by name, none on an update."""
    return [gate for entry in suite.entries for gate in _judge(suite, entry, gathered, before)]


def _judge(
    suite: Suite, entry: Entry, gathered: Gathered, before: Mapping[str, Measurement]
) -> Iterator[Gate]:
    for name in gate_names(entry):
        kind = "class" if name.startswith("class ") else name
        yield _KINDS[kind](_Case(suite, entry, gathered, before.get(entry.name), name))


@dataclass(frozen=True)
class _Case:
    suite: Suite
    entry: Entry
    gathered: Gathered
    stored: Measurement | None
    name: str

    @property
    def now(self) -> Measurement:
        return self.gathered.measurements[self.entry.name]

    @property
    def margin(self) -> float:
        value = _margin(self.entry, self.name)
        assert value is not None
        return value

    def gate(self, verdict: str, text: str, found: Comparison | None = None) -> Gate:
        return Gate(self.entry.name, self.name, verdict, text, found)

    def absent(self) -> Gate:
        return self.gate("not compared", "no stored result")


def _accuracy(case: _Case) -> Gate:
    if case.stored is None:
        return case.absent()
    before, now = _slice(case.stored, case.name), _slice(case.now, case.name)
    if not before or not now:
        return case.gate("not compared", "the images hold no such objects")
    what = {"map50": "mAP@.5", "small": "mAP@.5 of small objects"}.get(
        case.name, f"AP@.5 of {case.name.removeprefix('class ')}"
    )
    return _precision(case, before, now, what, "the stored result")


def _reference(case: _Case) -> Gate:
    assert case.entry.reference is not None
    before = case.gathered.accuracies[case.entry.reference].results
    what = f"its reference {case.entry.reference.name}"
    return _precision(case, before, case.now.results, "mAP@.5", what)


def _precision(case: _Case, before: Results, now: Results, what: str, against: str) -> Gate:
    found = compare_precision(before, now, margin=case.margin, alarm=case.suite.alarm)
    text = (
        f"{what} {_moved(found.loss)} against {against} "
        f"({_points(found.high)} to {_points(found.low)}; margin {_points(case.margin)}); "
        f"a loss beyond the margin has a probability of {found.beyond * 100:.1f} %"
    )
    if found.verdict == "worse":
        text += _where(case, before, now)
    return case.gate(found.verdict, text + _more(found, "images"), found)


def _points(loss: float) -> str:
    """A change of AP in points; a loss is negative, and nothing is +0.0."""
    return f"{round(-loss * 100, 1) + 0.0:+.1f}"


def _moved(loss: float) -> str:
    if abs(loss) < 5e-5:
        return "is the same"
    return f"{'fell' if loss > 0 else 'rose'} by {abs(loss) * 100:.1f} points"


def _more(found: Comparison, what: str) -> str:
    if found.verdict != "cannot tell":
        return ""
    if found.more == 0:
        return f"; the margin lies too near to tell with any number of {what}"
    return f"; run longer: {found.more} more {what}"


def _where(case: _Case, before: Results, now: Results) -> str:
    """Classes that lost for certain, sizes, and the layer where the network departs."""
    parts = []
    lost = {
        name: compare_precision(
            {name: before[name]}, {name: now[name]}, margin=0, alarm=0.05, draws=200
        )
        for name in before
        if name in now
    }
    worst = sorted(lost, key=lambda name: -lost[name].low)[:_SLICES]
    sure = [f"{name} -{lost[name].loss * 100:.1f}" for name in worst if lost[name].low > 0]
    if sure:
        parts.append(f"most in: {', '.join(sure)}")
    sizes = _sizes(case)
    if sizes:
        parts.append(f"by size: {sizes}")
    layer = _departure(case)
    if layer is not None:
        parts.append(f"first layer that departs: {layer.name} ({layer.db:.1f} dB)")
    return "".join(f"; {part}" for part in parts)


def _sizes(case: _Case) -> str:
    if case.name == "reference":
        assert case.entry.reference is not None
        before = case.gathered.accuracies[case.entry.reference].metrics.by_size
    elif case.name == "map50" and case.stored is not None:
        before = case.stored.by_size
    else:
        return ""
    return ", ".join(
        f"{size} {(case.now.by_size[size]['map50'] - before[size]['map50']) * 100:+.1f}"
        for size in before
        if size in case.now.by_size
    )


def _departure(case: _Case) -> TensorNoise | None:
    noises = case.gathered.noises[case.entry.name]
    known = case.stored.noise_db if case.stored is not None else None
    limit = LIMITS_DB[case.now.precision]
    return first_departure(noises, limit, known or None) or first_departure(noises, limit)


def _slowdown(case: _Case) -> Gate:
    if case.entry.faster_than is not None:
        logs = case.gathered.rivals[case.entry.name]
        found = compare_ratio(logs, margin=case.margin, alarm=case.suite.alarm)
        return _latency(case, found, f"{case.entry.faster_than.name} of the same run")
    if case.stored is None:
        return case.absent()
    differs = same_host(case.now, case.stored)
    if case.now.baseline != case.stored.baseline:
        differs.append(f"the baseline was {case.stored.baseline}, is {case.now.baseline}")
    if differs:
        return case.gate(
            "not compared",
            f"latency cannot be compared with the stored figure ({'; '.join(differs)}); what holds "
            f"is this run's: {case.now.speedup:.2f} times as fast as its baseline",
        )
    found = compare_ratio(
        case.now.pairs, case.stored.pairs, margin=case.margin, alarm=case.suite.alarm
    )
    gate = _latency(case, found, "the stored ratio to the baseline")
    return _unless_disturbed(gate, [*case.now.warnings, *case.stored.warnings])


def _unless_disturbed(gate: Gate, warnings: list[str]) -> Gate:
    """Two runs on a machine that did other work differ by what it did, whatever each interval."""
    if gate.verdict != "worse" or not warnings:
        return gate
    advice = "cannot be told from a stored figure; give faster_than, or run on a quiet machine"
    return replace(gate, verdict="cannot tell", text=f"{gate.text}; {warnings[0]}: {advice}")


def _latency(case: _Case, found: Comparison, against: str) -> Gate:
    growth, low, high = (math.expm1(one) * 100 for one in (found.loss, found.low, found.high))
    text = (
        f"latency {growth:+.1f} % against {against} ({low:+.1f} to {high:+.1f}; "
        f"margin +{case.margin * 100:.0f} %); growth beyond the margin has a probability of "
        f"{found.beyond * 100:.1f} %"
    )
    if found.verdict == "worse":
        text += _stage(case)
    return case.gate(found.verdict, text + _more(found, "rounds"), found)


def _stage(case: _Case) -> str:
    if case.stored is None or same_host(case.now, case.stored):
        return ""
    grown = {
        name: one["p50"] - case.stored.latency_ms[name]["p50"]
        for name, one in case.now.latency_ms.items()
        if name != "pipeline" and name in case.stored.latency_ms
    }
    if not grown:
        return ""
    worst = max(grown, key=lambda name: grown[name])
    return f"; most in: {worst} ({grown[worst]:+.2f} ms)"


def _speedup(case: _Case) -> Gate:
    logs = [one + math.log(case.margin) for one in case.now.pairs]
    found = compare_ratio(logs, margin=0, alarm=case.suite.alarm)
    low, high = (case.margin * math.exp(-one) for one in (found.high, found.low))
    # Faster than asked for is what was asked for.
    verdict = "same" if found.verdict == "better" else found.verdict
    text = (
        f"{case.now.speedup:.2f} times as fast as the baseline of the same run "
        f"({low:.2f} to {high:.2f}; at least {case.margin:g})"
    )
    return case.gate(verdict, text + _more(found, "rounds"), found)


def _p99(case: _Case) -> Gate:
    p99 = case.now.latency_ms["pipeline"]["p99"]
    verdict = "worse" if p99 > case.margin else "same"
    gate = case.gate(verdict, f"p99 of the pipeline is {p99:.2f} ms; at most {case.margin:g} ms")
    return _unless_disturbed(gate, case.now.warnings)


def _frame_age(case: _Case) -> Gate:
    camera = case.now.camera
    assert camera is not None
    found = compare_percentile(camera["age_ms"], 99, case.margin, alarm=case.suite.alarm)
    p99, low, high = (case.margin * math.exp(one) for one in (found.loss, found.low, found.high))
    dropped, frames = sum(camera["dropped"]), sum(len(ages) for ages in camera["age_ms"])
    text = (
        f"p99 of the frame age is {p99:.1f} ms ({low:.1f} to {high:.1f}; at most {case.margin:g} "
        f"ms) over {frames} frames of {camera['source']}, {dropped} dropped"
    )
    return _level(case, found, text)


def _camera_fps(case: _Case) -> Gate:
    camera = case.now.camera
    assert camera is not None
    logs = [math.log(case.margin / fps) for fps in camera["fps"]]
    found = compare_ratio(logs, margin=0, alarm=case.suite.alarm)
    low, high = (case.margin * math.exp(-one) for one in (found.high, found.low))
    text = (
        f"the camera's loop takes {median(camera['fps']):.1f} frames a second of "
        f"{camera['source']} ({low:.1f} to {high:.1f}; at least {case.margin:g})"
    )
    return _level(case, found, text)


def _level(case: _Case, found: Comparison, text: str) -> Gate:
    """Better than asked for is what was asked for."""
    verdict = "same" if found.verdict == "better" else found.verdict
    assert case.now.camera is not None
    rounds = len(case.now.camera["fps"])
    seconds = math.ceil(found.more / rounds * case.suite.camera_seconds)
    more = _more(replace(found, more=seconds), "camera_seconds")
    return _unless_disturbed(case.gate(verdict, text + more, found), case.now.warnings)


def _size(case: _Case) -> Gate:
    field = "bytes" if case.name == "bytes" else "memory_bytes"
    now = getattr(case.now, field)
    before = None if case.stored is None else getattr(case.stored, field)
    if now is None or not before:
        return case.absent()
    growth = now / before - 1
    verdict = "worse" if growth > case.margin else "better" if growth < 0 else "same"
    if field == "memory_bytes" and abs(now - before) < _ALLOCATOR_BYTES:
        verdict = "same"
    text = (
        f"{'file' if field == 'bytes' else 'memory'} {before / 1e6:.2f} -> {now / 1e6:.2f} MB "
        f"({growth * 100:+.1f} %; margin +{case.margin * 100:.0f} %)"
    )
    return case.gate(verdict, text)


def _noise(case: _Case) -> Gate:
    noises = case.gathered.noises[case.entry.name]
    heads = [one for one in noises if one.name in case.gathered.heads[case.entry.name]]
    if not heads:
        return case.gate("not compared", "layers can be compared between ONNX files of one model")
    worst = min(heads, key=lambda one: one.db)
    verdict = "worse" if worst.db < case.margin else "same"
    text = f"head {worst.name} keeps {worst.db:.1f} dB; at least {case.margin:g} dB"
    layer = _departure(case)
    if verdict == "worse" and layer is not None:
        text += f"; first layer that departs: {layer.name} ({layer.db:.1f} dB)"
    return case.gate(verdict, text)


_KINDS: dict[str, Callable[[_Case], Gate]] = {
    "map50": _accuracy,
    "small": _accuracy,
    "class": _accuracy,
    "reference": _reference,
    "slowdown": _slowdown,
    "speedup": _speedup,
    "p99_ms": _p99,
    "frame_age_p99": _frame_age,
    "camera_fps": _camera_fps,
    "bytes": _size,
    "memory": _size,
    "noise_db": _noise,
}
