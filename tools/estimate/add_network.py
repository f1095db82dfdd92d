"""Add a network's kernels to the facts, so that published rows can name it.

    python tools/estimate/add_network.py yolo11n yolo11n-640.onnx

Rows and boards are written into `export/estimate/facts.json` by hand, each with its source; then
`fit.py` is run. A row is: network, size of the input in pixels, board, precision, milliseconds,
source.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import export.estimate
from export.estimate.graph import read_operators
from export.estimate.kernels import Kernel, fuse

FACTS = Path(export.estimate.__file__).parent / "facts.json"
COLUMNS = tuple(one.name for one in fields(Kernel) if one.name != "name")


def network(path: Path) -> dict[str, Any]:
    """What `facts.json` keeps of a graph: its size, and each different kernel with its count."""
    operators = read_operators(path)
    height, width = operators[0].entering[0][2:]
    if height != width:
        raise SystemExit(f"{path}: {height}x{width}; rows name one size, so give a square one")
    counts = Counter(replace(kernel, name="") for kernel in fuse(operators))
    rows = [
        [*(_plain(getattr(kernel, name)) for name in COLUMNS), count]
        for kernel, count in counts.items()
    ]
    return {"size": height, "kernels": rows}


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def dump(facts: dict[str, Any]) -> str:
    """The facts as JSON, a board, a row and a kernel on one line each."""

    def lines(values: list[Any], tight: bool = False) -> str:
        separators = (",", ":") if tight else None
        return ",\n".join(json.dumps(value, separators=separators) for value in values)

    networks = ",\n".join(
        f'"{name}": {{"size": {one["size"]}, "kernels": [\n{lines(one["kernels"], True)}\n]}}'
        for name, one in sorted(facts["networks"].items())
    )
    return (
        '{\n"boards": [\n' + lines(facts["boards"]) + "\n],\n"
        '"sources": ' + json.dumps(facts["sources"], indent=0) + ",\n"
        '"published": [\n' + lines(facts["published"]) + "\n],\n"
        '"columns": ' + json.dumps(facts["columns"]) + ",\n"
        '"networks": {\n' + networks + "\n}\n}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="as published rows call it, without the size")
    parser.add_argument("graph", type=Path, help="ONNX graph; its shapes suffice")
    args = parser.parse_args()
    facts = json.loads(FACTS.read_text("utf-8"))
    facts["networks"][args.name] = network(args.graph)
    facts["columns"] = [*COLUMNS, "count"]
    FACTS.write_text(dump(facts))


if __name__ == "__main__":
    main()
