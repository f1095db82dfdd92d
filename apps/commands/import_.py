"""`edge import` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from apps.commands.options import json_option, size
from apps.commands.terminal import listing
from edge.reporting import say

if TYPE_CHECKING:
    from export.foreign.importing import ImportResult

__all__ = ["arguments", "print_import", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge import`."""
    parser.add_argument("model", metavar="MODEL.onnx", help="a trained detector of another project")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="pictures to look at; where they are labelled, head and input are proved on them",
    )
    parser.add_argument(
        "--names", metavar="F", help="class names, one on a line, where the file has none"
    )
    parser.add_argument(
        "--head",
        metavar="KIND",
        help="read the outputs as this family has them, such as yolov8; a wrong word lists all",
    )
    parser.add_argument(
        "--contract",
        type=_contract,
        metavar="K=V,...",
        help="prepare pictures so, such as channel_order=BGR,resize=stretch,mean=0,scale=1/255",
    )
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="input size, where the file leaves it open"
    )
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the file (%(default)s)"
    )
    json_option(parser)


def _contract(text: str) -> dict[str, Any]:
    from export.foreign.importing import parse_contract

    try:
        return parse_contract(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    """`edge import`: 0; what cannot be recognised is an error with its candidates."""
    from export.foreign.importing import import_model

    result = import_model(
        args.model,
        data=args.data,
        names=args.names,
        head=args.head,
        contract=args.contract,
        hw=args.size,
        output=args.output,
        json_path=args.json,
    )
    print_import(result)
    return 0


def print_import(result: ImportResult) -> None:
    """What was found, and the evidence for it."""
    rows = [(each.of, each.says) for each in result.evidence]
    listing(f"{result.model}: {result.head}", ("from", "what it says"), rows)
    sure = (
        "confirmed by the file or by labels"
        if result.sure
        else ("not confirmed: prove it with labelled pictures, --data DIR")
    )
    say(f"{len(result.classes)} classes; {sure}")
    say(f"wrote {result.file}")
