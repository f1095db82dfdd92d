"""Verdicts as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.regress.gate import Gate
from apps.regress.measurement import Measurement
from edge.files import write_file

__all__ = ["markdown", "write_markdown"]


def markdown(
    suite: str,
    gates: Sequence[Gate],
    now: Mapping[str, Measurement],
    before: Mapping[str, Measurement],
) -> str:
    """Return a verdict, the figures, and the gates, those that failed first."""
    worse = [gate for gate in gates if gate.verdict == "worse"]
    unsure = [gate for gate in gates if gate.verdict == "cannot tell"]
    title = f"{len(worse)} regression{'s' * (len(worse) != 1)}" if worse else "no regression"
    doubt = f", {len(unsure)} cannot tell" if unsure else ""
    lines = [f"### {suite}: {title}{doubt}", ""]
    for gate in worse:
        lines.append(f"- **{gate.artifact}, {gate.name}**: {gate.said}")
        lines += [f"  - {line}" for line in gate.where]
    lines += ["", "| artifact | mAP@.5 % | FPS | p99 ms | speed-up | MB |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    lines += [_row(name, one, before.get(name)) for name, one in now.items()]
    lines += ["", "<details><summary>every gate</summary>", "", "| artifact | gate | verdict | |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {_cell(g.artifact)} | {_cell(g.name)} | {g.verdict} | {_cell(g.said)} |" for g in gates
    ]
    lines += ["", "</details>", "", _host(next(iter(now.values())))]
    return "\n".join(lines) + "\n"


def _row(name: str, now: Measurement, before: Measurement | None) -> str:
    old: list[float | None] = [None] * 5 if before is None else _figures(before)
    pairs = zip(_figures(now), old, (2, 1, 2, 2, 2), strict=True)
    cells = [_change(*each) for each in pairs]
    return f"| {_cell(name)} | {' | '.join(cells)} |"


def _figures(one: Measurement) -> list[float | None]:
    pipeline = one.latency_ms["pipeline"]
    return [one.map50 * 100, one.fps["pipeline"], pipeline["p99"], one.speedup, one.bytes / 1e6]


def _change(now: float | None, before: float | None, digits: int) -> str:
    if now is None:
        return "-"
    change = "" if before is None else f" ({now - before:+.{digits}f})"
    return f"{now:.{digits}f}{change}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _host(one: Measurement) -> str:
    cpu, cores = one.host.get("cpu"), one.host.get("cores")
    doubts = "".join(f" Warning: {text}." for text in one.warnings)
    return (
        f"{one.images} images of {one.data}; {one.backend}; {cpu}, {cores} cores, "
        f"{one.threads} threads.{doubts}"
    )


def write_markdown(
    suite: str,
    gates: Sequence[Gate],
    now: Mapping[str, Measurement],
    before: Mapping[str, Measurement],
    target: str | Path,
) -> None:
    """Write `markdown` to a file."""
    write_file(Path(target), markdown(suite, gates, now, before).encode())
