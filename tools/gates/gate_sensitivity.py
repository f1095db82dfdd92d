"""How small a regression the gates of `edge regress` find, and how often they cry wolf.

    python tools/gates/gate_sensitivity.py ARTIFACT.fp32.onnx --data DIR [--trials 200] [--images \
        300]
        [--resume trials.jsonl] [--json table.json]
    python tools/gates/gate_sensitivity.py --summary trials.jsonl

Accuracy: copies of the artifact whose weights are noised or of which one layer is mis-scaled, and
copies changed too little to matter. What a copy truly loses is measured on twice the images that
the gate sees. Latency: the artifact beside itself, and beside itself with a tenth of its time
added, in turns with a baseline; `same run` is the gate with `faster_than`, `stored` compares the
ratio to the baseline with that of the trial before. Blocks are half as long as a suite's, which
makes them noisier.

With `--resume` every trial is written as it ends; a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gate_accuracy import accuracy_trials
from gate_latency import Timing, latency_trials
from gate_trials import Trials, read, summary

from apps.commands.terminal import show
from edge.artifact import read_manifest
from edge.errors import EdgeError
from edge.files import sha256_of, write_json
from edge.measure.accuracy import data_digest, labelled
from edge.measure.host import fingerprint

ALARMS, GATES = 0.02, 4
ALARM = ALARMS / GATES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("artifact", type=Path, nargs="?")
    add("--baseline", type=Path, help="of the latency trials; default: ARTIFACT")
    add("--data", help="default: scenes, twice --images")
    add("--images", type=int, default=300, help="that the gate sees")
    add("--trials", type=int, default=200, help="of each kind")
    add("--rounds", type=int, default=20)
    add("--seconds", type=float, default=1.0, help="of timing each, at least")
    add("--longest", type=int, default=8, help="times that, where it is noisy")
    add("--margin", type=float, default=0.01, help="mean AP that may be lost")
    add("--slowdown", type=float, default=0.05, help="growth that is tolerated")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0, help="of the changes and of the images drawn")
    add("--only", choices=("accuracy", "latency"))
    add("--resume", type=Path, metavar="F", help="keep each trial there, and go on from it")
    add("--summary", type=Path, metavar="F", help="print the table of such a file, run nothing")
    add("--json", type=Path, metavar="F", help="write the table there too")
    args = parser.parse_args()
    if (args.artifact is None) == (args.summary is None):
        parser.error("it takes an ARTIFACT, or --summary FILE")
    return args


def settings(args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """What may not differ between the parts of one run."""
    host = fingerprint()
    return {
        "artifact": sha256_of(args.artifact),
        "baseline": sha256_of(args.baseline or args.artifact),
        "data": None if dataset is None else data_digest(dataset),
        "host": f"{host['cpu']}, {host['cores']} cores",
        "alarm": ALARM,
        **{name: getattr(args, name) for name in _SAME},
    }


_SAME = ("images", "rounds", "seconds", "longest", "margin", "slowdown", "threads", "seed", "only")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    dataset = None
    if args.only != "latency":
        data = args.data or f"scenes://?count={2 * args.images}"
        classes = read_manifest(args.artifact).spec.classes
        dataset = labelled(data, classes, 2 * args.images)
        args.images = len(dataset) // 2
    trials = Trials(settings(args, dataset), args.resume)
    if dataset is not None:
        accuracy_trials(
            args.artifact,
            dataset,
            trials,
            images=args.images,
            count=args.trials,
            margin=args.margin,
            alarm=ALARM,
            threads=args.threads,
            seed=args.seed,
        )
    if args.only != "accuracy":
        timing = Timing(args.rounds, args.seconds, args.longest, args.slowdown, ALARM, args.threads)
        baseline = args.baseline or args.artifact
        latency_trials(args.artifact, baseline, trials, args.trials, timing)
    return trials.lines


def print_tables(lines: list[dict[str, Any]], tables: dict[str, list[dict[str, Any]]]) -> None:
    start = lines[0]
    titles = {"latency": f"{start['rounds']} rounds of {start['seconds']} s in all, at least"}
    drops = [one["drop"] for one in lines if one["kind"] == "announced"]
    if drops:
        found = f"announced: {drops[0] * 100:.1f} points found with 95 %"
        titles["accuracy"] = f"{start['images']} images; {found}"
    for name, rows in tables.items():
        if rows:
            title = f"{start['host']}; level of each gate {start['alarm']:.3f}; {titles[name]}"
            columns = (name, "trials", "worse", "share %", "95 % interval", "cannot tell")
            show(title, columns, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share = f"{row['worse'] / row['trials'] * 100:.1f}" if row["trials"] else "-"
    low, high = (f"{end * 100:.1f}" for end in row["interval"])
    numbers = (str(row[key]) for key in ("trials", "worse"))
    return (row["what"], *numbers, share, f"{low} to {high}", str(row["cannot_tell"]))


def main() -> int:
    args = arguments()
    try:
        lines = run(args) if args.summary is None else read(args.summary)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 2
    tables = summary(lines)
    print_tables(lines, tables)
    if args.json is not None:
        result = {"settings": lines[0], **tables}
        write_json(result, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
