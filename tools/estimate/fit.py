"""Fit the constants of `edge estimate` to the published rows, and print how far off it is.

    python tools/estimate/fit.py               # seconds; writes export/estimate/constants.json
    python tools/estimate/fit.py --check       # prints the table, writes nothing
    python tools/estimate/fit.py --rows        # and each row's error
    python tools/estimate/fit.py --check --plot docs/estimate.svg

Each constant has a prior: a value that data sheets and common sense suggest, and how far, as a
factor, it may lie from that. A board's own factor has one, too: boards of one family differ by a
few per cent; the only board of a family is less certain. The loss grows linearly where a row is far
off, so that a wrong row bends nothing. Errors are those of rows that the fit did not see: all rows
of a network left out, or all of a board. A roofline of six constants is fitted and judged in the
same way.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

import export.estimate
from apps.charts.estimate import published_chart
from export.estimate.facts import Facts, Published, read_facts
from export.estimate.times import Board, Constants, KernelTable, Workload, network_ms, workload

Array = NDArray[np.float64]
TARGET = Path(export.estimate.__file__).parent / "constants.json"
# By constant: the expected value, and the standard deviation of its logarithm.
PRIORS = {
    "tensor": (0.8, 0.15),
    "tf32": (0.9, 0.15),
    "staging": (64.0, 0.4),
    "tile_cycles": (1500.0, 0.5),
    "memory": (0.7, 0.2),
    "cache": (0.5, 0.5),
    "kernel_cycles": (3000.0, 0.5),
    "launch_us": (3.0, 0.5),
    "swish": (0.6, 0.5),
    "swish_int8": (0.4, 0.5),
    "reformat": (0.7, 0.5),
    "call_ms": (0.5, 0.5),
    "blackwell_int8": (1.0, 0.4),
}
# Standard deviation of the logarithm of a row, and of a board's factor.
ROW = 0.06
BOARD, LONELY_BOARD = 0.06, 0.25
# One run of one script gives many rows whose errors are alike; each counts less.
WEIGHTS = {"trtutils": 0.5}
# Rows outside the range of the others; they are not fitted.
BEYOND = "trtutils, 160 pixels"
COVERAGE = 0.8
# 80 % of a normal distribution lie within so many standard deviations.
Z80 = 1.2816


@dataclass(frozen=True)
class Row:
    """A published row with all that the models need of it."""

    facts: Published
    board: Board
    table: KernelTable
    work: Workload

    @property
    def extra(self) -> bool:
        return self.facts.source in ("trtutils", "hokwangchoi")


# From a row, and what a fit found, to milliseconds.
Predictor = Callable[[Row], float]
Fitter = Callable[[Sequence[Row], "Predictor | None"], Predictor]


def rows_of(facts: Facts) -> list[Row]:
    """All published rows, in the order of the facts."""
    found = []
    for one in facts.rows:
        board, table = facts.boards[one.board], facts.networks[one.network, one.size]
        found.append(Row(one, board, table, workload(table, board, one.precision)))
    return found


def fit_constants(rows: Sequence[Row], start: Constants | None = None) -> Constants:
    """The constants that fit `rows` best, given the priors."""
    names, boards = list(PRIORS), sorted({row.board.name for row in rows})
    count = len(names)
    centre = np.array([PRIORS[name][0] for name in names])
    families = [row.board.family for row in rows]
    lonely = {
        row.board.name
        for row in rows
        if len({r.board.name for r in rows if r.board.family == row.board.family}) == 1
        and len(set(families)) > 1
    }
    deviations = np.array(
        [PRIORS[name][1] for name in names]
        + [LONELY_BOARD if board in lonely else BOARD for board in boards]
    )
    weights = np.array([WEIGHTS.get(row.facts.source, 1.0) for row in rows]) / ROW
    target = np.log([row.facts.ms for row in rows])
    which = np.array([boards.index(row.board.name) for row in rows])

    def raw(shifts: Array) -> Array:
        values = dict(zip(names, (centre * np.exp(shifts)).tolist(), strict=True))
        constants = Constants(**values)
        return np.log([network_ms(row.work, constants) for row in rows])

    def residuals(x: Array) -> Array:
        errors = (raw(x[:count]) + x[count:][which] - target) * weights
        return np.concatenate([errors, x / deviations])

    def slopes(x: Array) -> Array:
        at = raw(x[:count])
        found = np.zeros((len(rows) + len(x), len(x)))
        for number in range(count):
            moved = x[:count].copy()
            moved[number] += 1e-3
            found[: len(rows), number] = (raw(moved) - at) / 1e-3 * weights
        found[np.arange(len(rows)), count + which] = weights
        found[len(rows) + np.arange(len(x)), np.arange(len(x))] = 1 / deviations
        return found

    first = np.zeros(count + len(boards))
    if start is not None:
        first[:count] = np.log([getattr(start, name) for name in names] / centre)
        first[count:] = [start.boards.get(board, 0.0) for board in boards]
    found = least_squares(
        residuals, first, slopes, loss="soft_l1", f_scale=2.0, max_nfev=40, xtol=1e-6, ftol=1e-8
    ).x
    values = dict(zip(names, (centre * np.exp(found[:count])).tolist(), strict=True))
    factors = dict(zip(boards, found[count:].tolist(), strict=True))
    return Constants(**values, boards=factors)


def roofline(rows: Sequence[Row]) -> Predictor:
    """A roofline: shares of the peaks by precision and of the bandwidth, launch and call."""
    peak = {"fp32": 0.5, "fp16": 1.0, "int8": 2.0}
    size = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
    order = list(peak)

    def ms(row: Row, x: Array) -> float:
        board, table, precision = row.board, row.table, row.facts.precision
        share = np.exp(x)
        macs = board.multiprocessors * board.tensor_macs * board.gpu_mhz * 1e3
        rate = macs * peak[precision] * share[order.index(precision)]
        products = table.m * table.n * table.k * table.groups
        moved = (table.read + table.written + table.weights) * size[precision]
        times = np.maximum(products / rate, moved / (board.memory_gbs * 1e6 * share[3]))
        return float(times @ table.count + share[4] * 1e-3 * table.count.sum() + share[5])

    def residuals(x: Array) -> Array:
        return np.array([np.log(ms(row, x) / row.facts.ms) for row in rows]) / ROW

    start = np.log([0.4, 0.4, 0.4, 0.5, 5.0, 0.3])
    x = least_squares(residuals, start, loss="soft_l1", f_scale=2.0, max_nfev=60).x
    return lambda row: ms(row, x)


def left_out(
    rows: Sequence[Row], key: Callable[[Row], str], fit: Callable[[Sequence[Row]], Predictor]
) -> Array:
    """Logarithms of predicted over published, each row predicted without its group."""
    errors = np.zeros(len(rows))
    for group in sorted({key(row) for row in rows}):
        predict = fit([row for row in rows if key(row) != group])
        for number, row in enumerate(rows):
            if key(row) == group:
                errors[number] = np.log(predict(row) / row.facts.ms)
    return errors


def half_width(errors: Array) -> float:
    """Half width that holds `COVERAGE` of `errors`, with the correction for few of them."""
    share = min(1.0, COVERAGE * (len(errors) + 1) / len(errors))
    return float(np.quantile(np.abs(errors), share))


def coverage(errors: Array, groups: Sequence[str]) -> float:
    """Share of rows within an interval made without the errors of their own group."""
    names = np.array(groups)
    inside = [
        np.abs(errors[names == name]) <= half_width(errors[names != name])
        for name in sorted(set(groups))
    ]
    return float(np.mean(np.concatenate(inside)))


def right_pairs(rows: Sequence[Row], errors: Array) -> tuple[int, int]:
    """Pairs of INT8 and FP16 that differ by more than 5 %: right, and all."""
    published = {
        (r.facts.model, r.board.name, r.facts.source, r.facts.precision): n
        for n, r in enumerate(rows)
    }
    right = pairs = 0
    for (*who, precision), low in published.items():
        half = published.get((*who, "fp16"))
        if precision != "int8" or half is None:
            continue
        true = np.log(rows[low].facts.ms / rows[half].facts.ms)
        if abs(true) <= np.log(1.05):
            continue
        pairs += 1
        right += bool((true + errors[low] - errors[half]) * true > 0)
    return right, pairs


def summary(errors: Array) -> dict[str, float]:
    """Median and 90th percentile of the error in per cent, and the share within 20 %."""
    off = np.abs(np.expm1(errors))
    return {
        "rows": len(off),
        "median_percent": round(100 * float(np.median(off)), 1),
        "p90_percent": round(100 * float(np.quantile(off, 0.9)), 1),
        "within_20_percent": round(100 * float(np.mean(off <= 0.2)), 1),
    }


def judge(rows: Sequence[Row], constants: Constants) -> tuple[dict[str, Any], dict[str, Array]]:
    """All tables of errors, and the errors themselves."""

    def model(some: Sequence[Row]) -> Predictor:
        found = fit_constants(some, constants)
        return lambda row: network_ms(row.work, found)

    networks, boards = (lambda row: row.facts.network), (lambda row: row.board.name)

    def precisions(row: Row) -> str:
        return f"{row.board.name} {row.facts.precision}"

    errors = {
        "fitted": np.array([np.log(network_ms(r.work, constants) / r.facts.ms) for r in rows]),
        "network left out": left_out(rows, networks, model),
        "board left out": left_out(rows, boards, model),
        "precision of a board left out": left_out(rows, precisions, model),
        "roofline, network left out": left_out(rows, networks, roofline),
        "roofline, board left out": left_out(rows, boards, roofline),
    }
    main = np.array([not row.extra for row in rows])
    tables: dict[str, Any] = {}
    for name, found in errors.items():
        tables[name] = summary(found[main])
        tables[f"{name}, further sources"] = summary(found[~main])
        right, pairs = right_pairs(rows, found)
        tables[name] |= {"int8_right": right, "int8_pairs": pairs}
    new = errors["network left out"]
    tables["network left out"]["covered_percent"] = round(
        100 * coverage(new[main], [networks(r) for r in rows if not r.extra]), 1
    )
    return tables, errors


def spread_of(rows: Sequence[Row], errors: Array) -> float:
    """Half width from the rows of the sources whose figures are to be predicted."""
    return round(half_width(errors[[not row.extra for row in rows]]), 4)


def by_family(rows: Sequence[Row], errors: Array) -> dict[str, float]:
    """Half width by family of boards, from the rows of the sources to be predicted."""
    return {
        family: round(
            half_width(
                errors[[not row.extra and row.board.family == family for row in rows]],
            ),
            4,
        )
        for family in sorted({row.board.family for row in rows})
    }


def operations_of(row: Row) -> int:
    """Multiplications and additions of a frame."""
    table = row.table
    return int(2 * (table.m * table.n * table.k * table.groups) @ table.count)


def extrapolation(
    every: Sequence[Row], rows: Sequence[Row], constants: Constants, spread: float
) -> float:
    """Half width by which the error grows per factor e outside the range of `rows`.

    What the error has beyond `spread` there, in squares, over how far outside the rows are.
    """
    least = min(map(operations_of, rows))
    outside = [r for r in every if r.facts.source == BEYOND and operations_of(r) < least]
    errors = [np.log(network_ms(row.work, constants) / row.facts.ms) for row in outside]
    far = [np.log(least / operations_of(row)) for row in outside]
    more = float(np.mean(np.square(errors))) - (spread / Z80) ** 2
    return round(Z80 * float(np.sqrt(max(0.0, more) / np.mean(np.square(far)))), 4)


def print_tables(tables: dict[str, Any]) -> None:
    print(f"{'':42}{'rows':>5}{'median':>9}{'90 %':>8}{'within 20 %':>13}{'INT8/FP16':>11}")
    for name, one in tables.items():
        pairs = f"{one['int8_right']}/{one['int8_pairs']}" if "int8_pairs" in one else ""
        print(
            f"{name:42}{one['rows']:>5}{one['median_percent']:>8.1f}%{one['p90_percent']:>7.1f}%"
            f"{one['within_20_percent']:>12.0f}%{pairs:>11}"
        )
    covered = tables["network left out"]["covered_percent"]
    print(f"the 80 % intervals hold {covered} % of the left-out rows")


def plot(rows: Sequence[Row], errors: Array, spread: float) -> str:
    """Predicted over published of the rows whose sources are to be predicted, as an SVG."""
    points = []
    for row, error in zip(rows, errors, strict=True):
        one = row.facts
        if not row.extra:
            likely = one.ms * float(np.exp(error))
            ends = likely * float(np.exp(-spread)), likely, likely * float(np.exp(spread))
            points.append((f"{one.model}, {one.board}, {one.precision}", one.ms, *ends))
    return published_chart(points) + "\n"


def print_rows(rows: Sequence[Row], errors: dict[str, Array]) -> None:
    for number, row in enumerate(rows):
        one = row.facts
        cells = "".join(f"{100 * float(np.expm1(e[number])):>+8.1f}" for e in errors.values())
        print(f"{one.model:14}{one.board:17}{one.precision:6}{one.ms:>8.2f}{cells}  {one.source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="print only")
    parser.add_argument("--rows", action="store_true", help="print each row's errors, too")
    parser.add_argument("--plot", type=Path, metavar="F.svg", help="predicted over published")
    args = parser.parse_args()
    every = rows_of(read_facts())
    rows = [row for row in every if row.facts.source != BEYOND]
    constants = fit_constants(rows)
    tables, errors = judge(rows, constants)
    print_tables(tables)
    if args.rows:
        print_rows(rows, errors)
    spread = spread_of(rows, errors["network left out"])
    if args.plot:
        args.plot.write_text(plot(rows, errors["network left out"], spread))
    if args.check:
        return
    found = {
        "date": datetime.date.today().isoformat(),
        "constants": {
            key: {k: round(v, 4) for k, v in value.items()}
            if isinstance(value, dict)
            else float(f"{value:.5g}")
            for key, value in asdict(constants).items()
        },
        "spread": spread,
        "new_board": spread_of(rows, errors["board left out"]),
        "new_precision": by_family(rows, errors["precision of a board left out"]),
        "operations": [min(map(operations_of, rows)), max(map(operations_of, rows))],
        "extrapolation": extrapolation(every, rows, constants, spread),
        "errors": tables,
    }
    TARGET.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{TARGET}: written")


if __name__ == "__main__":
    main()
