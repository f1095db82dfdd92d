"""A benchmark against the JSON of an earlier one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DataError
from edge.measure.statistics import Comparison, compare_ratio

__all__ = ["compare_with", "read_bench"]

# What one pair of runs is judged by; a suite shares out a smaller one.
_ALARM = 0.01
_MARGIN = 0.05


def read_bench(source: str | Path) -> dict[str, Any]:
    """The JSON that `edge bench --json` wrote.

    Raises:
        DataError: missing, not JSON, or not of a benchmark.
    """
    try:
        data: dict[str, Any] = json.loads(Path(source).read_bytes())
        for row in data["rows"]:
            row["label"], row["rounds_ms"]["pipeline"]
        data["host"]["cpu"], data["threads"]
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read: {error.strerror}; write it: edge bench --json {source}"
        ) from error
    except KeyError as error:
        raise DataError(
            f"{source}: not a result of edge bench --json: it has no {error.args[0]}"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: not a result of edge bench --json: {error}") from error
    return data


def compare_with(now: dict[str, Any], before: dict[str, Any]) -> list[dict[str, str]]:
    """One verdict for each row that both runs have: `label`, `verdict`, `text`.

    The ratio to the first row of each run is compared: whatever slowed one run slowed both its
    rows. Where the hosts or the first rows differ nothing is compared, and where the machine was
    disturbed nothing is called worse. A row that is alone has no such ratio.
    """
    earlier = {row["label"]: row for row in before["rows"]}
    reason = _differs(now, before)
    lines = [_alone(now["rows"][0], earlier)] if len(now["rows"]) == 1 else []
    for row in now["rows"][1:]:
        known = earlier.get(row["label"])
        if known is None or known is before["rows"][0]:
            verdict, text = "not compared", "the earlier run has no such row"
        elif reason:
            verdict = "not compared"
            text = f"{reason}; in this run it is {row['speedup']:.2f} times as fast as the baseline"
        else:
            found = compare_ratio(
                _logs(row, now["rows"][0]),
                _logs(known, before["rows"][0]),
                margin=_MARGIN,
                alarm=_ALARM,
            )
            verdict, text = found.verdict, _text(found)
            disturbed = [*now["warnings"], *before.get("warnings", ())]
            if verdict == "worse" and disturbed:
                verdict, text = "cannot tell", f"{text}; {disturbed[0]}"
        lines.append({"label": row["label"], "verdict": verdict, "text": text})
    return lines


def _alone(row: dict[str, Any], earlier: dict[str, Any]) -> dict[str, str]:
    text = "it takes a second artifact in both runs, such as --baseline FULL.onnx"
    if row["label"] in earlier:
        p50 = [np.median(one["rounds_ms"]["pipeline"]) for one in (earlier[row["label"]], row)]
        text += f"; for what it is worth, p50 was {p50[0]:.2f} ms and is {p50[1]:.2f} ms"
    return {"label": row["label"], "verdict": "not compared", "text": text}


def _differs(now: dict[str, Any], before: dict[str, Any]) -> str:
    for key in ("cpu", "cores"):
        if now["host"].get(key) != before["host"].get(key):
            return f"{key} was {before['host'].get(key)}, is {now['host'].get(key)}"
    if now["threads"] != before["threads"]:
        return f"threads were {before['threads']}, are {now['threads']}"
    labels = [run["rows"][0]["label"] for run in (now, before)]
    return "" if labels[0] == labels[1] else f"the baseline was {labels[1]}, is {labels[0]}"


def _logs(row: dict[str, Any], first: dict[str, Any]) -> list[float]:
    pairs = zip(row["rounds_ms"]["pipeline"], first["rounds_ms"]["pipeline"], strict=True)
    return [math.log(mine / other) for mine, other in pairs]


def _text(found: Comparison) -> str:
    growth, low, high = (math.expm1(one) * 100 for one in (found.loss, found.low, found.high))
    more = f"; run longer: {found.more} more rounds" if found.more else ""
    return (
        f"latency {growth:+.1f} % against the earlier run's ratio to the baseline "
        f"({low:+.1f} to {high:+.1f}; margin +{_MARGIN * 100:.0f} %){more}"
    )
