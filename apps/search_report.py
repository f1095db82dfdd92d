"""What a search found, as JSON values and as a table."""

from __future__ import annotations

from typing import Any

from apps.mixed_trials import Trials
from apps.table import show
from edge.reporting import say
from export.search import (
    Found,
    Trial,
    fits,
    pareto,
)

__all__ = ["print_search", "search_report"]


def search_report(
    found: Found,
    bench: Trials,
    layers: dict[str, str],
    ms: dict[frozenset[str], float],
    backend: str,
) -> dict[str, Any]:
    """JSON values of a search.

    Args:
        layers: precision of each kept layer.
        ms: of the trials that were timed, each as a whole graph.
        backend: what ran them.
    """
    images = len(bench.selection.frames)
    return {
        "budget": bench.budget,
        "holds": fits(found.chosen, bench.budget),
        "images": images,
        "costs": f"whole graphs in turns, {backend}",
        "bound": "one-sided 95 % of the drop by a paired bootstrap over the images and moved "
        "copies of them; a gain counts as none",
        "chosen": _facts(found.chosen, ms),
        "layers": layers,
        "all_layers": len(bench.cost_ms),
        "pareto": [_facts(trial, ms) for trial in pareto(found.trials, ms)],
        "tried": len(found.trials),
    }


def _facts(trial: Trial, ms: dict[frozenset[str], float]) -> dict[str, Any]:
    return {
        "kept": len(trial.kept),
        "kept_layers": sorted(trial.kept),
        "map50": round(trial.map50, 6),
        "drop": round(trial.drop, 6),
        "drop_upper": round(trial.upper, 6),
        "head_db": round(trial.head_db, 2),
        "ms": round(ms[trial.kept], 4),
        "kept_ms": round(trial.kept_ms, 4),
        "mb": round(trial.size / 1e6, 4),
        "pictures": trial.pictures,
    }


def print_search(report: dict[str, Any]) -> None:
    """The Pareto table on stdout, the choice on stderr."""
    chosen = report["chosen"]
    rows = [
        (
            f"{one['kept']} of {report['all_layers']}" + (" <" if one == chosen else ""),
            f"{one['map50'] * 100:.2f}",
            f"{one['drop'] * 100:+.2f}",
            f"{one['drop_upper'] * 100:.2f}",
            f"{one['head_db']:.1f}",
            f"{one['ms']:.2f}",
            f"{one['mb']:.2f}",
            str(one["pictures"]),
        )
        for one in ([] if chosen in report["pareto"] else [chosen]) + report["pareto"]
    ]
    columns = (
        "kept layers",
        "mAP@.5 %",
        "lost",
        "lost at most",
        "heads dB",
        "ms",
        "MB",
        "pictures",
    )
    show(f"mixed precision on {report['images']} images of {report['data']}", columns, rows)
    if len({one["pictures"] for one in report["pareto"]}) > 1:
        say("mAP@.5 is over so many pictures, moved copies of the images among them: compare lost")
    if not report["holds"]:
        say(
            f"no mixture is sure to lose at most {report['budget'] * 100:g} points on these "
            f"{report['images']} images; more labelled images tell closer"
        )
    if chosen["kept"] == report["all_layers"]:
        say("no mixture that fits is faster than keeping every layer: ship the FP16 graph instead")
    kept = ", ".join(report["layers"]) or "none"
    say(f"kept out of INT8 (<): {kept}; costs by {report['costs']}; {report['tried']} graphs tried")
