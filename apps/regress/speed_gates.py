"""Gates on latency, on the camera's loop, and on bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from apps.regress.gate import Case, Change, Clue, Gate, more, undisturbed
from apps.regress.measurement import same_host
from edge.measure.statistics import Comparison, compare_percentile, compare_ratio

__all__ = ["SPEED"]

# What an allocator keeps or gives back differs by some megabytes from run to run.
_ALLOCATOR_BYTES = 16e6
# A manifest's date or a tool's version is a few bytes and no gain.
_SMALLER = 0.001
_NO_CAMERA = "the camera's loop did not run"


def _slowdown(case: Case) -> Gate:
    if case.entry.faster_than is not None:
        logs = case.now.rival_pairs
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
    return undisturbed(gate, [*case.now.warnings, *case.stored.warnings])


def _latency(case: Case, found: Comparison, against: str) -> Gate:
    growth, low, high = (math.expm1(one) * 100 for one in (found.loss, found.low, found.high))
    change = Change(
        f"{growth:+.1f} %",
        f"{low:+.1f} to {high:+.1f}",
        f"+{case.margin * 100:.0f} %",
        f"{found.beyond * 100:.1f} %",
    )
    said = (
        f"latency {change.by} against {against} ({change.interval}; margin {change.margin}); "
        f"growth beyond the margin has a probability of {change.beyond}"
    )
    return case.gate(found.verdict, said + more(found, "rounds"), found, change, _stage(case))


def _stage(case: Case) -> tuple[Clue, ...]:
    if case.stored is None or same_host(case.now, case.stored):
        return ()
    grown = {
        name: one["p50"] - case.stored.latency_ms[name]["p50"]
        for name, one in case.now.latency_ms.items()
        if name != "pipeline" and name in case.stored.latency_ms
    }
    if not grown:
        return ()
    worst = max(grown, key=lambda name: grown[name])
    was, now = (one.latency_ms[worst]["p50"] for one in (case.stored, case.now))
    return (Clue("stage", worst, f"{grown[worst]:+.2f} ms", f"{was:.2f} -> {now:.2f} ms"),)


def _speedup(case: Case) -> Gate:
    logs = [one + math.log(case.margin) for one in case.now.pairs]
    found = compare_ratio(logs, margin=0, alarm=case.suite.alarm)
    low, high = (case.margin * math.exp(-one) for one in (found.high, found.low))
    # Faster than asked for is what was asked for.
    verdict = "same" if found.verdict == "better" else found.verdict
    least = f"at least {case.margin:g}"
    change = Change(f"{case.now.speedup:.2f} x", f"{low:.2f} to {high:.2f}", least)
    said = (
        f"{case.now.speedup:.2f} times as fast as the baseline of the same run "
        f"({change.interval}; {least})"
    )
    return case.gate(verdict, said + more(found, "rounds"), found, change)


def _p99(case: Case) -> Gate:
    p99 = case.now.latency_ms["pipeline"]["p99"]
    verdict = "worse" if p99 > case.margin else "same"
    change = Change(f"{p99:.2f} ms", "", f"at most {case.margin:g} ms")
    said = f"p99 of the pipeline is {change.by}; {change.margin}"
    return undisturbed(case.gate(verdict, said, None, change), case.now.warnings)


def _frame_age(case: Case) -> Gate:
    camera = case.now.camera
    if camera is None:
        return case.gate("not compared", _NO_CAMERA)
    found = compare_percentile(camera.age_ms, 99, case.margin, alarm=case.suite.alarm)
    p99, low, high = (case.margin * math.exp(one) for one in (found.loss, found.low, found.high))
    dropped, frames = sum(camera.dropped), sum(len(ages) for ages in camera.age_ms)
    change = Change(f"{p99:.1f} ms", f"{low:.1f} to {high:.1f}", f"at most {case.margin:g} ms")
    said = (
        f"p99 of the frame age is {change.by} ({change.interval}; {change.margin}) "
        f"over {frames} frames of {camera.source}, {dropped} dropped"
    )
    return _level(case, found, said, change)


def _camera_fps(case: Case) -> Gate:
    camera = case.now.camera
    if camera is None:
        return case.gate("not compared", _NO_CAMERA)
    logs = [math.log(case.margin / fps) for fps in camera.fps]
    found = compare_ratio(logs, margin=0, alarm=case.suite.alarm)
    low, high = (case.margin * math.exp(-one) for one in (found.high, found.low))
    fps = median(camera.fps)
    change = Change(f"{fps:.1f} FPS", f"{low:.1f} to {high:.1f}", f"at least {case.margin:g}")
    said = (
        f"the camera's loop takes {fps:.1f} frames a second of "
        f"{camera.source} ({change.interval}; {change.margin})"
    )
    return _level(case, found, said, change)


def _level(case: Case, found: Comparison, said: str, change: Change) -> Gate:
    """Return the gate of a figure with a level; better than asked for is what was asked for."""
    verdict = "same" if found.verdict == "better" else found.verdict
    rounds = 1 if case.now.camera is None else len(case.now.camera.fps)
    seconds = math.ceil(found.more / rounds * case.suite.camera_seconds)
    longer = more(replace(found, more=seconds), "camera_seconds")
    return undisturbed(case.gate(verdict, said + longer, found, change), case.now.warnings)


def _size(case: Case) -> Gate:
    field = "bytes" if case.name == "bytes" else "memory_bytes"
    now = getattr(case.now, field)
    before = None if case.stored is None else getattr(case.stored, field)
    if now is None or not before:
        return case.absent()
    growth = now / before - 1
    verdict = "worse" if growth > case.margin else "better" if growth < -_SMALLER else "same"
    if field == "memory_bytes" and abs(now - before) < _ALLOCATOR_BYTES:
        verdict = "same"
    change = Change(
        f"{round(growth * 100, 1) + 0.0:+.1f} %",
        f"{before / 1e6:.2f} -> {now / 1e6:.2f} MB",
        f"+{case.margin * 100:.0f} %",
    )
    what = "file" if field == "bytes" else "memory"
    said = f"{what} {change.interval} ({change.by}; margin {change.margin})"
    return case.gate(verdict, said, None, change)


SPEED = {
    "slowdown": _slowdown,
    "speedup": _speedup,
    "p99_ms": _p99,
    "frame_age_p99": _frame_age,
    "camera_fps": _camera_fps,
    "bytes": _size,
    "memory": _size,
}
