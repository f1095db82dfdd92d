"""tools/gpu/gpu_check.py, which runs once on a GPU: its steps on a fake driver, and its
failures."""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.device import driver_facts, open_device

pytest_plugins = ("tests.support.fake_driver",)

TOOLS = Path(__file__).resolve().parent.parent / "tools" / "gpu"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tools' modules by name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_kernels_are_timed_at_every_size(
    on_host: ctypes.CDLL, driver: ctypes.CDLL, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = tools("gpu_times")
    frames = ((36, 64), (54, 96), (108, 192))
    for name, value in {"ROUNDS": 2, "ROTATED_BYTES": 1 << 18, "MOST_FRAMES": 4}.items():
        monkeypatch.setattr(times, name, value)
    monkeypatch.setattr(times, "FRAMES", frames)
    monkeypatch.setattr(times, "PASSING", (0, 300))
    monkeypatch.setattr(times, "CONTRACT", times.InputContract((32, 32)))
    driver.fake_integrated(0)
    with open_device() as device:
        found = times.kernel_times(device)
        assert len(device.held) == 2  # the kernels and their stream
    rows = found["preprocess"]
    assert [row["frame_hw"] for row in rows] == [hw for hw in frames for _ in range(2)]
    # 32 x 18 inside the tensor: two rows of the frame for each of its own, where they differ.
    assert rows[2]["bytes"] == 36 * 96 * 3 + 3 * 32 * 32 * 4
    assert all(row["share_of_copy_bandwidth_overlapping"] > 0 for row in rows)
    post = found["postprocess"]
    assert post[0]["candidates"] == post[0]["boxes"] == 0
    assert 200 < post[1]["candidates"] < 400 and 0 < post[1]["boxes"] <= 300
    assert found["whole"]["p50_us"] > 0 and found["whole"]["with_upload"]["p50_us"] > 0
    json.dumps(found)


def event(kind: str, name: str, at: float) -> dict[str, Any]:
    return {"cat": kind, "name": name, "ts": at}


def frame_at(start: float, *more: dict[str, Any]) -> list[dict[str, Any]]:
    names = ["Memcpy HtoD (Pinned -> Device)", "letterbox_bgr_float32", "decode", "keep"]
    kinds = ["gpu_memcpy", "kernel", "kernel", "kernel"]
    work = [event(*each, start + n) for n, each in enumerate(zip(kinds, names, strict=True))]
    return [*work, event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", start + 9), *more]


@pytest.mark.parametrize(
    ("more", "ok"),
    [
        (event("cpu_op", "aten::copy_", 14), True),
        (event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 14), True),
        (event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 14), False),
        (event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 14), False),
    ],
)
def test_a_copy_between_upload_and_boxes_is_seen(tools: Any, more: Any, ok: bool) -> None:
    judged = tools("gpu_engines").judged
    events = [*frame_at(20), *frame_at(0), *frame_at(10, more)]
    found = judged(events, 3)
    assert found["ok"] == ok and found["last_frame"][0].startswith("Memcpy HtoD")
    assert not judged(events[:-7], 3)["ok"] and not judged([], 3)["ok"]


def test_the_verdict_is_none_where_a_figure_is_missing(tools: Any) -> None:
    verdict = tools("gpu_check").verdict
    row = {"frame_hw": (1080, 1920), "share_of_copy_bandwidth": 0.5}
    row["share_of_copy_bandwidth_overlapping"] = 0.7
    kernels = {
        "preprocess": [{**row, "frame_hw": (720, 1280), "share_of_copy_bandwidth": 0.1}, row],
        "postprocess": [{"candidates": 30, "p50_us": 9}, {"candidates": 300, "p50_us": 61}],
        "whole": {"p50_us": 20},
    }
    found = verdict({"kernels": kernels, "torch": {"p50_us": 500}, "trace": {"ok": True}})
    assert found["preprocess"] == {"share": 0.5, "ok": False}
    assert found["preprocess_overlapping"] == {"share": 0.7, "ok": True}
    assert found["postprocess"] == {"p50_us": 61, "ok": False}
    assert found["whole"] == {"share": 0.04, "ok": True} and found["trace"] == {"ok": True}
    found = verdict({"kernels": {"error": "x"}, "torch": {"error": "y"}})
    assert not any(found[name] for name in ("preprocess", "postprocess", "whole", "trace"))


def test_a_step_that_breaks_hangs_or_lacks_something_is_written_down(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = tools("gpu_check")
    script = tmp_path / "steps.py"
    script.write_text(
        "import ctypes, json, sys, time\n"
        "step = sys.argv[2]\n"
        "if step == 'break': ctypes.string_at(0)\n"
        "if step == 'hang': time.sleep(60)\n"
        "if step == 'lack': sys.exit('no such thing here')\n"
        "if step == 'mute': sys.exit(0)\n"
        "print('chatter'); print(json.dumps({'name': step}))\n"
    )
    monkeypatch.setattr(check, "__file__", str(script))
    steps = dict.fromkeys(("device", "break", "hang", "lack", "mute", "late"), (None, 2))
    monkeypatch.setattr(check, "STEPS", steps)
    target = tmp_path / "result.json"
    assert check.main([str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["device"]["name"] == "device" and result["late"]["name"] == "late"
    assert result["break"]["error"].startswith("signal SIGSEGV")
    assert result["hang"]["error"] == "not done after 2 s"
    assert result["lack"]["error"] == "status 1: no such thing here"
    assert result["mute"]["error"] == "status 0: no reason given"
    monkeypatch.setattr(check, "WHOLE_S", 5.0)
    assert check.main([str(target)]) == 1
    assert json.loads(target.read_text())["late"] == {"skipped": "no time left"}


def test_without_a_gpu_the_step_says_so() -> None:
    if driver_facts() is not None:
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--step", "kernels"]
    environment = {"PYTHONPATH": str(TOOLS.parent.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "DeviceError: no NVIDIA driver" in done.stderr
