"""The report of a suite as one HTML file: no script, no request, nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from apps.gates import Gate
from apps.gather import Gathered
from apps.measurement import Measurement
from apps.report_images import worst_images, worst_of
from apps.report_plots import latency, noise, pareto, precision_recall, scores
from apps.report_style import STYLE
from apps.suite import Entry, Suite
from edge.artifact import write_atomic
from export.verify import LIMITS_DB, first_departure

__all__ = ["report", "write_report"]

# The order in which a reader wants them.
_ORDER = ("worse", "cannot tell", "not compared", "better", "same")
# Pictures are nearly all of the file.
_PAIRS = 16
_PAIRS_EACH = 4


def write_report(
    suite: Suite,
    gates: Sequence[Gate],
    gathered: Gathered,
    before: Mapping[str, Measurement],
    detectable: Mapping[tuple[str, str], float],
    target: str | Path,
) -> None:
    """Write `report` to a file."""
    page = report(suite, gates, gathered, before, detectable)
    write_atomic(Path(target), page.encode())


def report(
    suite: Suite,
    gates: Sequence[Gate],
    gathered: Gathered,
    before: Mapping[str, Measurement],
    detectable: Mapping[tuple[str, str], float],
) -> str:
    """The page; for what the arguments are see `apps.regression.Outcome`."""
    title = f"{suite.path.stem}: {_verdict(gates)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts(gathered),
        _gates(gates, detectable),
        _figures(gathered.measurements, before),
        _card("Accuracy, latency, size", pareto(gathered.measurements, before)),
    ]
    body += [_artifact(entry, gathered, before.get(entry.name), suite) for entry in suite.entries]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"</head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _verdict(gates: Sequence[Gate]) -> str:
    worse = sum(gate.verdict == "worse" for gate in gates)
    unsure = sum(gate.verdict == "cannot tell" for gate in gates)
    verdict = f"{worse} regression{'s' * (worse != 1)}" if worse else "no regression"
    return verdict + (f", {unsure} cannot be told" if unsure else "")


def _facts(gathered: Gathered) -> str:
    one = next(iter(gathered.measurements.values()))
    host = one.host
    packages = host.get("packages") or {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    words = [
        f"{one.images} images of {one.data} ({one.data_sha256[:12]})",
        f"{host.get('gpu') or host.get('cpu')}, {host.get('cores')} cores, {one.threads} threads",
        one.backend,
        versions,
        one.made,
    ]
    text = f'<p class="facts">{escape(" · ".join(words))}</p>'
    return text + "".join(f'<p class="warning">{escape(told)}</p>' for told in one.warnings)


def _gates(gates: Sequence[Gate], detectable: Mapping[tuple[str, str], float]) -> str:
    rows = []
    for gate in sorted(gates, key=lambda one: _ORDER.index(one.verdict)):
        drop = detectable.get((gate.artifact, gate.name))
        finds = "" if drop is None else f"{drop * 100:.1f}"
        kind = gate.verdict.replace(" ", "-")
        rows.append(
            f'<tr><td><b class="badge {kind}">{gate.verdict}</b></td><td>{escape(gate.artifact)}'
            f"<br><small>{escape(gate.name)}</small></td><td>{escape(gate.text)}</td>"
            f'<td class="number">{finds}</td></tr>'
        )
    head = "<th>verdict</th><th>artifact, gate</th><th>why</th>"
    head += '<th class="number" title="drop found with 95 %, points">finds</th>'
    return _table("Gates", head, rows, "stack")


def _figures(now: Mapping[str, Measurement], before: Mapping[str, Measurement]) -> str:
    head = "<th>artifact</th>" + "".join(
        f'<th class="number">{name}</th>'
        for name in (
            "mAP@.5 %",
            "mAP@.5:.95 %",
            "FPS engine",
            "FPS pipeline",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "speed-up",
            "MB",
            "memory MB",
        )
    )
    rows = [_figures_row(name, one, before.get(name)) for name, one in now.items()]
    baseline = next(iter(now.values())).baseline
    note = f"<p class='facts'>speed-up over {escape(baseline)} of this run</p>" if baseline else ""
    return _table("Figures, stored below", head, rows) + note


def _figures_row(name: str, now: Measurement, before: Measurement | None) -> str:
    old = [""] * 10 if before is None else _numbers(before)
    cells = "".join(
        f'<td class="number">{new}<br><small>{was}</small></td>'
        for new, was in zip(_numbers(now), old, strict=True)
    )
    return f"<tr><td>{escape(name)}<br><small>{escape(now.label)}</small></td>{cells}</tr>"


def _numbers(one: Measurement) -> list[str]:
    pipeline = one.latency_ms["pipeline"]
    return [
        f"{one.map50 * 100:.2f}",
        f"{one.map50_95 * 100:.2f}",
        f"{one.fps['engine']:.1f}",
        f"{one.fps['pipeline']:.1f}",
        *(f"{pipeline[name]:.2f}" for name in ("p50", "p95", "p99")),
        "-" if one.speedup is None else f"{one.speedup:.2f}",
        f"{one.bytes / 1e6:.2f}",
        "-" if one.memory_bytes is None else f"{one.memory_bytes / 1e6:.1f}",
    ]


def _table(title: str, head: str, rows: Sequence[str], kind: str = "") -> str:
    return (
        f'<section><h2>{escape(title)}</h2><div class="scroll"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h3>{escape(title)}</h3>{content}</section>'


def _artifact(entry: Entry, gathered: Gathered, before: Measurement | None, suite: Suite) -> str:
    now = gathered.measurements[entry.name]
    reference = gathered.accuracies.get(entry.reference) if entry.reference else None
    others = {} if before is None else {"stored": before.results}
    if reference is not None:
        others["reference"] = reference.results
    p50, p99 = (now.latency_ms["pipeline"][name] for name in ("p50", "p99"))
    cards = [
        _card("Precision and recall", precision_recall(now.results, others)),
        _card("Scores", scores(now.results)),
        _card("Latency", latency(gathered.frames_ms[entry.name], p50, p99)),
    ]
    noises = gathered.noises[entry.name]
    if noises:
        known = before.noise_db if before is not None else {}
        departs = first_departure(noises, LIMITS_DB[now.precision], known or None)
        departs = departs or first_departure(noises, LIMITS_DB[now.precision])
        cards.append(_card("Noise by layer, against the reference", noise(noises, known, departs)))
    return (
        f"<section><h2>{escape(entry.name)}</h2><div class='grid'>{''.join(cards)}</div>"
        f"{_pictures(entry, gathered, before, suite)}</section>"
    )


def _pictures(entry: Entry, gathered: Gathered, before: Measurement | None, suite: Suite) -> str:
    mine = gathered.accuracies[entry.path]
    reference = gathered.accuracies.get(entry.reference) if entry.reference else None
    beside = None if reference is None else (reference.detections, reference.classes)
    earlier = reference or before
    count = max(1, min(_PAIRS_EACH, _PAIRS // len(suite.entries)))
    results = None if earlier is None else earlier.results
    worst = worst_of(mine.results, results, len(gathered.dataset), count)
    if not worst:
        return ""
    pairs = worst_images(gathered.dataset, worst, mine.classes, mine.detections, beside)
    return f"<h3>Images that lost most</h3><div class='pairs'>{pairs}</div>"
