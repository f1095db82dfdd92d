"""The report of a suite as one HTML file: no script, no request, nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median

import numpy as np

from apps.charts.style import STYLE
from apps.charts.svg import legend
from apps.regress.gate import Change, Clue, Gate
from apps.regress.gates import Reach
from apps.regress.gather import Gathered
from apps.regress.measurement import Measurement
from apps.regress.suite import Entry, Suite
from apps.report.pictures import worst_images, worst_of
from apps.report.plots import latency, noise, pareto, precision_recall, scores
from edge.files import write_file
from edge.measure.noise import LIMITS_DB, first_departure
from edge.measure.turns import flat

__all__ = ["report", "write_report"]

# Pictures are nearly all of the file.
_PAIRS = 16
_PAIRS_EACH = 4
_KEYS = (
    ("bad", "lost: not found any more"),
    ("new", "new: found, and not on the other side"),
    ("kept", "on both sides"),
)
Figure = Callable[[Measurement], str]
_TITLES = {
    "class": "Classes that lost most",
    "size": "By size of the objects",
    "layer": "First layer that departs from the reference",
    "stage": "Stage that grew most",
}
# What a reader looks for first comes first.
_ORDER = ("worse", "cannot tell", "not compared", "better", "same")
_GATE_COLUMNS = ("verdict", "artifact, gate", "change", "interval", "margin", "beyond it", "finds")


def write_report(
    suite: Suite,
    gates: Sequence[Gate],
    gathered: Gathered,
    before: Mapping[str, Measurement],
    detectable: Mapping[tuple[str, str], Reach],
    target: str | Path,
) -> None:
    """Write `report` to a file."""
    page = report(suite, gates, gathered, before, detectable)
    write_file(Path(target), page.encode())


def report(
    suite: Suite,
    gates: Sequence[Gate],
    gathered: Gathered,
    before: Mapping[str, Measurement],
    detectable: Mapping[tuple[str, str], Reach],
) -> str:
    """Return the page; `apps.regress.run.Outcome` says what the arguments are."""
    title = f"{suite.path.stem}: {_verdict(gates)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts(gathered),
        _falls(gates),
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
    return verdict + (f", {unsure} cannot tell" if unsure else "")


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


def _gates(gates: Sequence[Gate], reach: Mapping[tuple[str, str], Reach]) -> str:
    head, rows = _gate_rows(gates, reach)
    note = (
        "<p class='facts'>beyond it: probability that the loss exceeds the margin; finds: drop in "
        "points that is found with 95 %; advisory: several times the margin, so that a loss "
        "between the two may pass as cannot tell</p>"
    )
    return _table("Gates", head, rows, "stack", note)


def _falls(gates: Sequence[Gate]) -> str:
    """Return a card for each gate that got worse, with how much, how sure and where."""
    cards = "".join(_fall(gate) for gate in gates if gate.verdict == "worse")
    return f"<section><h2>What got worse</h2><div class='falls'>{cards}</div></section>" * bool(
        cards
    )


def _fall(gate: Gate) -> str:
    change = gate.change or Change("")
    facts = (
        ("interval", change.interval),
        ("margin", change.margin),
        ("beyond the margin", change.beyond),
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value
    )
    kinds = dict.fromkeys(clue.kind for clue in gate.clues)
    where = "".join(
        _clues(kind, [clue for clue in gate.clues if clue.kind == kind]) for kind in kinds
    )
    return (
        f'<article class="card fall"><h3>{escape(gate.artifact)}<small> {escape(gate.name)}'
        f'</small></h3><p class="by">{escape(change.by)}</p><dl>{shown}</dl>{where}'
        f'<p class="facts">{escape(gate.said)}</p></article>'
    )


def _clues(kind: str, clues: Sequence[Clue]) -> str:
    most = max((abs(clue.loss) for clue in clues if clue.loss is not None), default=0.0)
    rows = "".join(_clue(clue, most) for clue in clues)
    return f'<h4>{_TITLES[kind]}</h4><div class="clues">{rows}</div>'


def _clue(clue: Clue, most: float) -> str:
    bar = ""
    if clue.loss is not None and most > 0:
        kind = "bad" if clue.loss > 0 else "good"
        share = abs(clue.loss) / most * 100
        bar = f'<i class="{kind}" style="width:{share:.0f}%"></i>'
    # Long names break between their words.
    name = escape(clue.name).replace("_", "_<wbr>").replace(".", ".<wbr>")
    name = f"<code>{name}</code>" if clue.kind == "layer" else name
    sure = f"<small>{escape(clue.sure)}</small>" if clue.sure else ""
    return (
        f"<div class='clue'><span>{name}</span><span class='figure'><b>{escape(clue.by)}</b> "
        f"{sure}</span><span class='track'>{bar}</span></div>"
    )


def _gate_rows(
    gates: Sequence[Gate], reach: Mapping[tuple[str, str], Reach]
) -> tuple[str, list[str]]:
    """Return the head and the rows of the table of all gates."""
    ordered = sorted(gates, key=lambda one: _ORDER.index(one.verdict))
    head = "".join(
        f'<th class="{"number" if number > 1 else ""}">{name}</th>'
        for number, name in enumerate(_GATE_COLUMNS)
    )
    return head, [_gate_row(gate, reach.get((gate.artifact, gate.name))) for gate in ordered]


def _gate_row(gate: Gate, reach: Reach | None) -> str:
    change = gate.change or Change("")
    finds = ""
    if reach is not None:
        finds = f"{reach.drop * 100:.1f}" + (" <br><small>advisory</small>" * reach.advisory)
    # A verdict that its figures explain needs no sentence.
    plain = gate.change is not None and gate.verdict in ("same", "better", "worse")
    said = "" if plain else f"<br><small class='said'>{escape(gate.said)}</small>"
    cells = zip(
        _GATE_COLUMNS[2:],
        (
            *(escape(text) for text in (change.by, change.interval, change.margin, change.beyond)),
            finds,
        ),
        strict=True,
    )
    figures = "".join(f'<td class="number" data-what="{name}">{text}</td>' for name, text in cells)
    return (
        f'<tr><td><b class="badge {gate.verdict.replace(" ", "-")}">{gate.verdict}</b></td>'
        f"<td>{escape(gate.artifact)} <b>{escape(gate.name)}</b>{said}</td>{figures}</tr>"
    )


def _figures(now: Mapping[str, Measurement], before: Mapping[str, Measurement]) -> str:
    baseline = next(iter(now.values())).baseline
    note = f"<p class='facts'>speed-up over {escape(baseline)} of this run</p>" if baseline else ""
    tables = [_columns(title, now, before, columns) for title, columns in _FIGURES.items()]
    return tables[0] + note + "".join(tables[1:])


def _columns(
    title: str,
    now: Mapping[str, Measurement],
    before: Mapping[str, Measurement],
    columns: Mapping[str, Figure],
) -> str:
    """Return a table of the columns that an artifact fills; nothing where none does."""
    shown = {
        name: figure
        for name, figure in columns.items()
        if any(figure(one) != "-" for one in now.values())
    }
    if not shown:
        return ""
    head = "<th>artifact</th>" + "".join(f'<th class="number">{name}</th>' for name in shown)
    rows = [_row(name, one, before.get(name), shown.values()) for name, one in now.items()]
    return _table(title, head, rows)


def _row(name: str, now: Measurement, before: Measurement | None, figures: Iterable[Figure]) -> str:
    cells = "".join(
        f'<td class="number">{figure(now)}<br>'
        f"<small>{'' if before is None else figure(before)}</small></td>"
        for figure in figures
    )
    return f"<tr><td>{escape(name)}<br><small>{escape(now.label)}</small></td>{cells}</tr>"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pipeline(percent: str) -> Figure:
    return lambda one: _number(one.latency_ms["pipeline"][percent], 2)


def _age(percent: str) -> Figure:
    return lambda one: _number((one.frame_age_ms or {}).get(percent), 1)


def _camera(key: str, over: Callable[[list[float]], float], digits: int) -> Figure:
    return lambda one: _number(over(getattr(one.camera, key)) if one.camera else None, digits)


_FIGURES: dict[str, dict[str, Figure]] = {
    "Figures, stored below": {
        "mAP@.5 %": lambda one: _number(one.map50 * 100, 2),
        "mAP@.5:.95 %": lambda one: _number(one.map50_95 * 100, 2),
        "FPS engine": lambda one: _number(one.fps["engine"], 1),
        "FPS pipeline": lambda one: _number(one.fps["pipeline"], 1),
        **{f"{percent} ms": _pipeline(percent) for percent in ("p50", "p95", "p99")},
        "speed-up": lambda one: _number(one.speedup, 2),
        "MB": lambda one: _number(one.bytes / 1e6, 2),
        "memory MB": lambda one: _number(one.memory_bytes and one.memory_bytes / 1e6, 1),
        "J / frame": lambda one: _number(one.energy_j, 3),
    },
    "Camera, stored below": {
        "FPS": lambda one: _number(one.fps.get("camera"), 1),
        "FPS at its pace": _camera("paced_fps", median, 1),
        **{f"age {percent} ms": _age(percent) for percent in ("p50", "p95", "p99")},
        "dropped": _camera("dropped", sum, 0),
    },
}


def _table(title: str, head: str, rows: Sequence[str], kind: str = "", note: str = "") -> str:
    return (
        f'<section><h2>{escape(title)}</h2><div class="scroll"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}</section>"
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
        _card("Latency", latency(flat(now.frames_us["pipeline"]), p50, p99)),
    ]
    if now.camera is not None and now.frame_age_ms is not None:
        ages = np.concatenate(now.camera.age_ms)
        chart = latency(ages, now.frame_age_ms["p50"], now.frame_age_ms["p99"], "frame age")
        cards.append(_card(f"Frame age, {now.camera.source}", chart))
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
    pairs = worst_images(
        gathered.dataset,
        worst,
        mine.classes,
        mine.detections,
        beside,
        f"picture{suite.entries.index(entry)}-",
    )
    return f"<h3>Images that lost most</h3>{legend(_KEYS)}<div class='pairs'>{pairs}</div>"
