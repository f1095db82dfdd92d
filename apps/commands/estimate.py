"""`edge estimate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse

from apps.charts.estimate import layer_chart
from apps.commands.options import (
    add_options,
    count,
    json_option,
    read_options,
    target,
    words,
)
from apps.commands.terminal import show
from edge.files import plain_text, write_file, write_json
from edge.reporting import say
from export.estimate.estimate import (
    Estimate,
    EstimateOptions,
    Network,
    estimate,
    read_measurements,
    read_network,
)
from export.estimate.facts import read_facts, read_fit
from export.estimate.fleet import Fleet, FleetOptions, plan_fleet

__all__ = ["arguments", "run"]

_LAYERS = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge estimate`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="ONNX graph (its shapes suffice), cfg, package, or a built-in or zoo name",
    )
    parser.add_argument(
        "--board",
        type=words,
        required=True,
        metavar="NAME,...|all",
        help="boards to predict for: " + ", ".join(read_facts().boards),
    )
    add_options(parser, EstimateOptions)
    parser.add_argument(
        "--measured",
        metavar="F",
        help="refine with figures of your own: what edge bench --json wrote on that board",
    )
    parser.add_argument(
        "--layers",
        type=count,
        metavar="N",
        help=f"show the N layers that cost most on the last board (of a single one {_LAYERS})",
    )
    parser.add_argument(
        "--plot",
        type=target(),
        metavar="F.svg",
        help="plot what each layer costs on the last board named",
    )
    add_options(parser, FleetOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Estimate and print."""
    options = read_options(args, EstimateOptions)
    wanted = read_options(args, FleetOptions)
    boards = list(read_facts().boards) if args.board == ["all"] else args.board
    network = read_network(args.model, options.hw)
    measured = read_measurements(args.measured) if args.measured else []
    found = estimate(network, boards, options, measured=measured)
    _print_rows(network, found)
    last = found[-1]
    if args.layers or len(boards) == 1:
        _print_layers(last, args.layers or _LAYERS)
    plans = (
        []
        if wanted.cameras is None
        else [plan_fleet(one, wanted.cameras, wanted.fps, options.frame_hw) for one in found]
    )
    if plans:
        _print_fleet(plans, wanted)
    if args.plot:
        title = f"{network.name} on {last.board.name}, {last.precision}: {last.likely_ms:.2f} ms"
        layers = [(one.name, one.ms, one.bound_by) for one in last.layers]
        write_file(args.plot, layer_chart(title, layers).encode())
    result = {
        "model": network.name,
        "fitted": read_fit().date,
        "operations": network.operations,
        "rows": found,
        **({"fleet": plans} if plans else {}),
    }
    write_json(result, args.json)
    return 0


def _print_rows(network: Network, found: list[Estimate]) -> None:
    fit = read_fit()
    error = fit.errors["network left out"]
    show(
        f"{plain_text(network.name)}: {network.operations / 1e9:.2f} GFLOP in "
        f"{len(network.kernels)} kernels; predicted, batch 1, the network alone",
        (
            "board",
            "precision",
            "low",
            "likely",
            "high, ms",
            "FPS",
            "bound by",
            "before",
            "after, ms",
            "most alike, published",
        ),
        [
            (
                one.board.name,
                one.precision,
                f"{one.low_ms:.2f}",
                f"{one.likely_ms:.2f}",
                f"{one.high_ms:.2f}",
                f"{one.fps:.0f}",
                one.bound_by,
                f"{one.prepare_ms:.2f}",
                f"{one.finish_ms:.2f}",
                _alike(one),
            )
            for one in found
        ],
    )
    say(
        "nothing was measured: a model fitted to published figures; for networks that it did not "
        f"see its median error is {error['median_percent']} %, and the interval holds 80 %"
    )
    for note in dict.fromkeys(note for one in found for note in one.notes):
        boards = dict.fromkeys(one.board.name for one in found if note in one.notes)
        say(f"wider: {plain_text(note)} ({', '.join(boards)})")


def _alike(one: Estimate) -> str:
    like = one.like
    where = "" if like["board"] == one.board.name else f" on {like['board']}"
    how = "" if like["precision"] == one.precision else f" in {like['precision']}"
    return f"{like['network']}{where}{how} {like['ms']:.2f} ms"


def _print_layers(one: Estimate, number: int) -> None:
    show(
        f"{one.board.name}, {one.precision}: the layers that cost most",
        ("layer", "kind", "ms", "share", "bound by"),
        [
            (
                plain_text(layer.name),
                layer.kind,
                f"{layer.ms:.3f}",
                f"{layer.share:.1%}",
                layer.bound_by,
            )
            for layer in one.costliest(number)
        ],
    )


def _print_fleet(plans: list[Fleet], wanted: FleetOptions) -> None:
    show(
        f"{wanted.cameras} cameras at {wanted.fps:g} FPS",
        ("board", "precision", "cameras a board", "boards", "limit", "W", "in, Mbit/s a board"),
        [
            (
                plan.board,
                plan.precision,
                str(plan.cameras_per_board),
                str(plan.boards) if plan.boards else "too slow",
                plan.limit,
                f"{plan.watts:.0f}",
                f"{plan.stream_mbits:.0f}",
            )
            for plan in plans
        ],
    )
    say(f"results of all cameras as JSON: {plans[0].result_mbits:.1f} Mbit/s")
