"""The gates of a report: what got worse with where it did, then all of them as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from apps.regress.gate import Change, Clue, Gate
from apps.regress.gates import Reach

__all__ = ["falls", "gate_rows"]

_TITLES = {
    "class": "Classes that lost most",
    "size": "By size of the objects",
    "layer": "First layer that departs from the reference",
    "stage": "Stage that grew most",
}
# The order in which a reader wants them.
_ORDER = ("worse", "cannot tell", "not compared", "better", "same")
_COLUMNS = ("verdict", "artifact, gate", "change", "interval", "margin", "beyond it", "finds")


def falls(gates: Sequence[Gate]) -> str:
    """A card for each gate that got worse: by how much, how sure, where; nothing without one."""
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


def gate_rows(
    gates: Sequence[Gate], reach: Mapping[tuple[str, str], Reach]
) -> tuple[str, list[str]]:
    """The head and the rows of the table of all gates."""
    ordered = sorted(gates, key=lambda one: _ORDER.index(one.verdict))
    head = "".join(
        f'<th class="{"number" if number > 1 else ""}">{name}</th>'
        for number, name in enumerate(_COLUMNS)
    )
    return head, [_row(gate, reach.get((gate.artifact, gate.name))) for gate in ordered]


def _row(gate: Gate, reach: Reach | None) -> str:
    change = gate.change or Change("")
    finds = ""
    if reach is not None:
        finds = f"{reach.drop * 100:.1f}" + (" <br><small>advisory</small>" * reach.advisory)
    # What needs no reading has no sentence.
    plain = gate.change is not None and gate.verdict in ("same", "better", "worse")
    said = "" if plain else f"<br><small class='said'>{escape(gate.said)}</small>"
    cells = zip(
        _COLUMNS[2:],
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
