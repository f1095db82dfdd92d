"""Damaged and malicious model files end in one line, quickly and without much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Run in a process of its own, where memory can be measured: the peak before and after each file.
WORKER = """
import json, resource, sys, time
from pathlib import Path
import torch
from edge.errors import EdgeError
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.zoo import load_model
from edge.train.checkpoints import resume
from edge.train.fit import begin
from edge.train.options import TrainOptions
from edge.train.schedule import Schedule
from edge.train.start import start_from
from tests.test_hostile_models import small_run

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
start_from("squeezedet-scenes", TrainOptions(random_weights=True))
run = small_run()
for name in sys.argv[1:]:
    path, before, began = Path(name), peak(), time.monotonic()
    try:
        if path.parent.name == "checkpoint":
            resume(run, path)
        elif path.suffix in (".cfg", ".json"):
            start_from(path)
        else:
            load_model(path)
        said = ""
    except EdgeError as error:
        said = str(error)
    except Exception as error:
        said = f"TRACEBACK {type(error).__name__}: {error}"
    print(json.dumps({"file": name, "said": said, "seconds": time.monotonic() - began,
                      "mib": peak() - before}), flush=True)
"""
KINDS = ("cfg", "checkpoint", "npz", "safetensors", "squeezedet-json")


def small_run() -> Any:
    from edge.train.fit import begin
    from edge.train.schedule import Schedule
    from tests.test_train_session import darknet

    return begin(darknet()[0], Schedule(10))


def told(files: list[Path]) -> list[dict[str, Any]]:
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *map(str, files)],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hostile(edge_data: Path) -> list[dict[str, Any]]:
    files = [path for kind in KINDS for path in sorted((edge_data / "hostile" / kind).iterdir())]
    return told([*files, edge_data / "hostile" / "bombs" / "bomb.cfg"])


def test_every_hostile_model_file_is_refused_in_one_line(hostile) -> None:
    assert len(hostile) > 40
    for one in hostile:
        assert one["said"] and "TRACEBACK" not in one["said"], one
        assert "\n" not in one["said"] and Path(one["file"]).name in one["said"], one


def test_no_hostile_model_file_costs_time_or_memory(hostile) -> None:
    for one in hostile:
        assert one["seconds"] < 2 and one["mib"] < 300, one
