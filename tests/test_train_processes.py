"""Several processes train as one would: run for real under `torchrun`, on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.train.epochs import Hooks, run_epochs
from tests.test_train_session import OPTIONS, darknet, session, squeezedet

WORKER = """
import json, sys
from tests.test_train_session import *
from edge.train.distributed import team
from edge.train.epochs import Hooks, run_epochs
from edge.train.session import open_session

torch.set_num_threads(1)
with team("cpu") as members:
    options = replace(OPTIONS, freeze_norm=True, loss=sys.argv[2])
    make = {"darknet": darknet, "squeezedet": squeezedet}[sys.argv[1]]
    one = session(options, make, team=members)
    scores = iter([0.1, 0.2])
    run_epochs(one, Hooks(validate=lambda module: (next(scores), 0.0)))
    if members.rank == 0:
        total = sum(float(p.detach().double().abs().sum()) for p in one.run.model.parameters())
        history = [record.to_json() for record in one.history]
        told = {"size": members.size, "history": history, "weights": total}
        open(sys.argv[3], "w").write(json.dumps(told))
"""


def alone(model, loss):
    one = session(replace(OPTIONS, freeze_norm=True, loss=loss), model)
    run_epochs(one, Hooks())
    return one


@pytest.mark.parametrize(("model", "loss"), [(darknet, "ciou"), (squeezedet, "published")])
def test_two_processes_have_the_loss_of_one(tmp_path, model, loss):
    told = tmp_path / "told.json"
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script)]
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, model.__name__, loss, str(told)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result, one = json.loads(told.read_text()), alone(model, loss)
    assert result["size"] == 2 and len(result["history"]) == 2
    assert [entry["map50"] for entry in result["history"]] == [0.1, 0.2]
    for ours, theirs in zip(one.history, result["history"], strict=True):
        # Sums of the two halves in another order, ten steps of it.
        assert theirs["loss"] == pytest.approx(ours.loss, rel=2e-4)
    total = sum(float(p.detach().double().abs().sum()) for p in one.run.model.parameters())
    assert result["weights"] == pytest.approx(total, rel=1e-4)
