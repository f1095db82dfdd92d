"""What `export-engine` made, for people to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.dla import print_dla
from apps.search_report import print_search
from apps.table import show
from edge.reporting import say

__all__ = ["print_export"]


def print_export(result: dict[str, Any]) -> None:
    """What was made, as a table on stdout."""
    title = ", ".join([f"{result['model']} {result['precision'].upper()}", *result["labels"]])
    rows = [
        (kind, path, f"{Path(path).stat().st_size / 1e6:.2f}")
        for kind, path in result["files"].items()
    ]
    show(title, ("file", "path", "MB"), rows)
    calibration = result["calibration"]
    if calibration:
        say(
            f"scales: {calibration['method']} over {calibration['images']} images, "
            f"{calibration.get('equalised_tensors', 0)} tensors equalised, "
            f"{calibration.get('corrected_biases', 0)} biases corrected"
        )
    if result["search"]:
        print_search(result["search"])
    if result["scores"]:
        _print_scores(result["scores"])
    _print_engine(result)
    if result["verdict"]:
        say(f"verdict: {result['verdict']['sentence']}")


def _print_scores(scores: dict[str, Any]) -> None:
    say(
        f"score threshold: {scores['score']} fits best (F1 {scores['f1']:.3f}); FP32's "
        f"{scores['score_before']} would give {scores['f1_unchanged']:.3f}, and gives FP32 "
        f"{scores['f1_before']:.3f}"
    )


def _print_engine(result: dict[str, Any]) -> None:
    engine = result["engine"]
    if engine is None:
        say(f"no engine: {result['reason']}")
        return
    types = ", ".join(f"{count} {kind}" for kind, count in engine["convolutions"].items())
    say(
        f"engine: {engine['builder']} {engine['version']} ({engine['reason']}), "
        f"{engine['seconds']} s, peak memory {engine['peak_rss_mib']} MiB"
    )
    if "dla" in engine:
        print_dla(engine["dla"])
        return
    say(f"convolutions: {types}; layers: {engine['layers']}, {engine['reformats']} only move data")
    if engine["float_part"]:
        say(f"outside of INT8: {engine['float_part']['precision'].upper()}")
    if engine["sparse"]:
        say(f"two of four weights are zero in {len(engine['sparse'])} convolutions")
    for line in engine["sparsity"]:
        say(line)
    if result["precision"] in ("int8", "mixed") and engine["not_int8"]:
        say(f"not in INT8: {', '.join(engine['not_int8'])}")
