"""Ask a real Triton server for what `edge detect` finds, picture by picture, and load it.

    python -m venv triton && triton/bin/pip install "nvidia-pytriton==0.7.0" "tritonclient[all]" \\
        "numpy<2" "opencv-python-headless<4.12" onnxruntime rich
    python tools/handover/triton_check.py ARTIFACT.onnx PICTURES... --triton triton/bin/python

The wheel of PyTriton holds tritonserver with its python backend, which runs on a CPU. The server is
started on the folder that `edge handover triton` wrote. Answers over HTTP and gRPC must equal those
of this process: the same boxes to 0.01 pixel. Then 16 clients ask at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from apps.commands.terminal import Terminal
from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.files import write_json
from edge.reporting import listen, say
from edge.runtime.detector import Detector
from export.handover.triton import TritonOptions, handover_triton

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("triton_server.py")


def main() -> int:
    """Exit status 0 where every answer is the same and the load passed without an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--triton", required=True, metavar="PYTHON")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--json", metavar="F")
    args = parser.parse_args()
    files = [path for one in args.pictures for path in (images_in(one) if one.is_dir() else [one])]
    files = files[: args.count]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = TritonOptions(name="detector", instances=args.instances)
        handover_triton(args.artifact, folder / "models", options)
        found = ask_server(args.triton, folder, "detector", files)
        if not found["ready"]:
            say(f"the server did not take the repository: {found['log'][-2000:]}")
            return 1
        result = compare(args.artifact, files, found)
    write_json(result, args.json)
    say(json.dumps({key: value for key, value in result.items() if key != "different"}))
    for line in result["different"]:
        say(line)
    return int(bool(result["different"]) or any(one["errors"] for one in found["load"].values()))


def ask_server(python: str, folder: Path, name: str, files: list[Path]) -> dict[str, object]:
    """What a server on `folder/models` answers to each picture, and under load."""
    (folder / "pictures.json").write_text(json.dumps([str(path.resolve()) for path in files]))
    target = folder / "answers.json"
    command = [python, str(INSIDE), str(folder / "models"), name, str(folder / "pictures.json")]
    subprocess.run(
        [*command, str(target)], check=True, env={**os.environ, "EDGE_ROOT": str(ROOT)}, timeout=900
    )
    found: dict[str, object] = json.loads(target.read_text())
    return found | {"log": target.with_suffix(".log").read_text()}


def compare(artifact: str, files: list[Path], found: dict[str, object]) -> dict[str, object]:
    """Answers against a `Detector` of this process."""
    different, boxes, worst = [], 0, 0.0
    answers: dict[str, dict[str, list[list[float]]]] = found["answers"]  # type: ignore[assignment]
    with Detector.open(artifact, threads=1, exact=True) as detector:
        for path in files:
            mine = detector(read_image(path))
            boxes += len(mine)
            for how, (xyxy, score, label) in answers[str(path.resolve())].items():
                if list(label) != mine.class_id.tolist():
                    different.append(f"{path}, {how}: {len(label)} boxes, here {len(mine)}")
                    continue
                off = np.abs(np.reshape(xyxy, (-1, 4)) - mine.xyxy).max(initial=0.0)
                worst = max(worst, float(off), float(np.abs(score - mine.score).max(initial=0.0)))
                if off > 0.01:
                    different.append(f"{path}, {how}: a box is {off:.3f} pixels off")
    load: dict[str, dict[str, float]] = found["load"]  # type: ignore[assignment]
    return {
        "pictures": len(files),
        "boxes": boxes,
        "worst": worst,
        "different": different,
        "per_second": {clients: round(one["per_second"], 1) for clients, one in load.items()},
        "errors": sum(len(one["errors"]) for one in load.values()),  # type: ignore[arg-type]
        "without_input": found["empty"],
    }


if __name__ == "__main__":
    listen(Terminal())
    sys.exit(main())
