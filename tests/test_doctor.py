"""`edge doctor` tells what is there and what to do about the rest, and survives what is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import cv2
import onnxruntime
import pytest

from apps.cli import main
from apps.doctor import doctor as app
from apps.doctor import machine as doctor_machine
from apps.doctor import software as doctor_software
from apps.doctor.check import Check
from apps.doctor.doctor import Diagnosis, doctor
from apps.doctor.machine import COMMANDS, check_programs, jetson_software
from edge.errors import DeviceError
from export.engine.build import BuilderInfo
from tests.conftest import ROOT
from tests.test_docs import blocks


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return doctor()


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_here_every_check_works_and_advises_where_something_lacks(found: Diagnosis) -> None:
    checks = by_name(found.checks)
    assert {check.status for check in checks.values()} <= {"ok", "missing", "problem"}
    assert not [check for check in checks.values() if "check itself" in check.found]
    assert checks["torch"].found == metadata.version("torch")
    assert checks["onnxruntime"].found.startswith(onnxruntime.__version__)
    assert "CPUExecutionProvider" in checks["onnxruntime"].found
    assert checks["OpenCV"].found == cv2.__version__
    streamer = "GStreamer:                   YES" in cv2.getBuildInformation()
    assert (checks["OpenCV with GStreamer"].status == "ok") == streamer
    assert found.can_run_onnx
    needed = {"CUDA driver", "engines run here", "gst-launch-1.0", "Jetson"}
    assert needed <= set(checks)


def test_table_and_json_have_every_check(
    found: Diagnosis,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(app, "doctor", lambda: found)
    assert main(["doctor", "--json", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "runs .onnx: yes" in out
    assert all(check.name in out for check in found.checks)
    written = json.loads((tmp_path / "r.json").read_text())
    wanted = "host ok can_run_onnx can_run_engines can_build_engines checks"
    assert list(written) == wanted.split()
    assert [set(row) for row in written["checks"]] == [
        {"name", "status", "found", "advice"} for _ in found.checks
    ]


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def _broken_part() -> Iterable[Check]:
        raise OSError("no such thing")

    monkeypatch.setattr(app, "_CHECKS", (_broken_part, lambda: [Check("fine", "ok", "yes")]))
    found = doctor()
    assert [(check.name, check.status) for check in found.checks] == [
        ("broken part", "problem"),
        ("fine", "ok"),
    ]
    assert not found.ok and "no such thing" in found.checks[0].found


def test_it_works_where_build_packages_cannot_be_imported(tmp_path: Path) -> None:
    """Those and all child processes meet packages that fail on import."""
    names = ("torch", "onnx", "safetensors", "pycocotools", "tensorrt", "tensorrt_rtx", "cuda")
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    code = (
        "from apps.doctor.doctor import doctor; from edge.files import write_json\n"
        "write_json(doctor(), '-')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert not [check for check in checks.values() if "check itself" in check["found"]]
    assert found["can_run_onnx"] and not found["can_build_engines"]
    assert checks["torch"]["status"] == "problem" and "not here" in checks["torch"]["found"]
    assert "edge-deploy[build]" in checks["torch"]["advice"]
    assert checks["builder tensorrt_rtx"]["status"] == "missing"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libfoo.so.3: cannot open')", "libfoo.so.3"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("import sys; sys.exit(3)", "no reason given"),
    ],
)
def test_a_package_that_breaks_on_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "fragile.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor_software, "version_of", lambda *_: "2.0")
    check = doctor_software.package("fragile", "fragile", "a test", "build")
    assert check.status == "problem" and reason in check.found and "2.0" in check.found


def test_a_package_that_is_not_installed_is_missing() -> None:
    check = doctor_software.package("no_such_package", "no-such-package", "a test", "")
    assert check == Check("no-such-package", "missing", "for a test", "pip install no-such-package")


def test_a_jetson_is_named_with_its_jetpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As JetPack 6.1 writes them.
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Kit\0")
    (tmp_path / "l4t").write_text("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic")
    monkeypatch.setattr(doctor_machine, "BOARD", tmp_path / "model")
    monkeypatch.setattr(doctor_machine, "L4T", tmp_path / "l4t")
    monkeypatch.setattr(doctor_machine, "_package_version", lambda _: "")
    check = next(iter(doctor_machine.check_jetson()))
    assert check.status == "ok"
    assert check.found.endswith("Orin Nano Engineering Reference Kit, JetPack 6.x, L4T 36.4.0")
    (tmp_path / "l4t").write_text("?")
    (check,) = doctor_machine.check_jetson()
    assert check.status == "problem"


def test_every_program_of_the_jetson_page_is_one_that_is_looked_for() -> None:
    known = {name for programs in COMMANDS.values() for name in programs}
    # These are in the environment itself, and looked for as packages.
    own = {"~/edge/bin/edge", "~/edge/bin/export-engine", "~/edge/bin/pip", "~/edge/bin/python"}
    own |= {name.replace("~/", "/opt/") for name in own}
    asked = {
        words[1] if words[0] == "sudo" else words[0]
        for block in blocks(ROOT / "docs" / "jetson.md")
        if not block.startswith(("[", "/"))
        for line in block.splitlines()
        if (words := line.split())
    }
    # These two stand in the text or before another one.
    assert asked - own == known - {"sudo", "usermod"}


def test_programs_that_are_missing_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("sudo", "apt", "cat", "install", "python3", "systemctl", "gst-launch-1.0"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor_machine, "_ADMIN", ())
    monkeypatch.setattr(doctor_machine, "L4T", tmp_path / "sudo")
    found = by_name(check_programs())
    assert found["programs to install"].status == "ok"
    assert found["programs for cameras"].advice == "sudo apt install v4l-utils"
    assert found["programs for a service"].found == "without journalctl, useradd, usermod"
    assert "nvpmodel" in found["programs of a Jetson"].found
    monkeypatch.setattr(doctor_machine, "L4T", tmp_path / "none")
    assert "programs of a Jetson" not in by_name(check_programs())
    (tmp_path / "sudo").unlink()
    # A command that begins with sudo would not install it.
    assert by_name(check_programs())["programs to install"].advice == "as root: apt install sudo"


def test_a_jetsons_clocks_and_power_mode_are_told(tmp_path: Path) -> None:
    # As the Orin's GPU shows itself: Jetson Linux Developer Guide, "GPU".
    gpu = tmp_path / "sys/class/devfreq/17000000.gpu"
    (gpu / "device").mkdir(parents=True)
    (gpu / "device" / "load").write_text("0")
    (gpu / "min_freq").write_text("306000000\n")
    (gpu / "max_freq").write_text("918000000\n")
    (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
    (tmp_path / "var/lib/nvpmodel/status").write_text("pmode:0002")
    found = by_name(jetson_software(tmp_path))
    assert found["clocks"].found == "the governor moves the GPU's from 306 to 918 MHz"
    assert "jetson_clocks" in found["clocks"].advice
    assert found["power mode"].found == "pmode:0002"
    (gpu / "min_freq").write_text("918000000\n")
    assert by_name(jetson_software(tmp_path))["clocks"].status == "ok"
    nothing = by_name(jetson_software(tmp_path / "nothing"))
    assert nothing["clocks"].found == nothing["power mode"].found == "unknown"


def test_pips_opencv_that_hides_jetpacks_is_told() -> None:
    assert doctor_software.opencv_of_jetpack("/usr/lib/python3/dist-packages/cv2.so").status == "ok"
    hidden = doctor_software.opencv_of_jetpack(
        "/home/me/edge/lib/python3.10/site-packages/cv2/__init__.py"
    )
    assert hidden.status == "missing" and "pip uninstall opencv-python" in hidden.advice


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "status", "found"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\nflags\t\t: fpu\n", "ok", "avx512_vnni"),
        ("x86_64", "flags\t\t: fpu avx2\n", "missing", "none of"),
        ("aarch64", "Features\t: fp asimd asimddp\n", "ok", "asimddp"),
        ("riscv64", "isa: rv64\n", "missing", "unknown for riscv64"),
    ],
)
def test_int8_instructions_are_those_of_the_cpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    cpuinfo: str,
    status: str,
    found: str,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(doctor_machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(doctor_machine.platform, "machine", lambda: machine)
    check = doctor_machine.int8_instructions()
    assert check.status == status and check.found.startswith(found)


class Gpu:
    """What `open_device` gives for the GPUs 0 and 1 of a machine with two."""

    name, compute_capability, integrated = "NVIDIA Orin", (8, 7), True
    driver_version, binding = "12.6", "ctypes"

    def __init__(self, index: int) -> None:
        if index > 1:
            raise DeviceError("there is no GPU of that index")
        self.index = index

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_gpus_and_a_runtime_make_engines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = BuilderInfo("tensorrt_rtx", "1.7.1", True, "")
    broken = BuilderInfo("tensorrt", "", False, "No module named 'tensorrt'")
    monkeypatch.setattr(doctor_software, "open_device", Gpu)
    monkeypatch.setattr(doctor_software, "available_builders", lambda: [broken, rtx])
    checks = by_name(doctor_software.check_engines())
    assert checks["CUDA driver"].found == "supports CUDA 12.6, through ctypes"
    assert checks["GPU 1"].found.startswith("NVIDIA Orin, compute capability 8.7, shares memory")
    assert checks["engines run here"] == Check("engines run here", "ok", "tensorrt_rtx 1.7.1")
    assert checks["builder tensorrt"].advice == 'pip install "edge-deploy[tensorrt]"'


def test_without_a_gpu_the_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(index: int) -> Gpu:
        raise DeviceError(f"no driver for {index}")

    monkeypatch.setattr(doctor_software, "open_device", absent)
    monkeypatch.setattr(doctor_software, "available_builders", list)
    checks = by_name(doctor_software.check_engines())
    assert checks["CUDA driver"].found == "no driver for 0"
    assert checks["engines run here"].found == "needs TensorRT and an NVIDIA GPU"


def test_a_camera_without_permission_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "video0").touch()
    (tmp_path / "names" / "video0").mkdir(parents=True)
    (tmp_path / "names" / "video0" / "name").write_text("HD Webcam\n")
    monkeypatch.setattr(doctor_machine, "DEV", tmp_path)
    monkeypatch.setattr(doctor_machine, "VIDEO4LINUX", tmp_path / "names")
    monkeypatch.setattr(doctor_machine.os, "access", lambda *_: True)
    camera = str(tmp_path / "video0")
    assert by_name(doctor_machine.check_cameras())[camera] == Check(camera, "ok", "HD Webcam")
    monkeypatch.setattr(doctor_machine.os, "access", lambda *_: False)
    refused = by_name(doctor_machine.check_cameras())[camera]
    assert refused.status == "problem" and "usermod" in refused.advice


def test_little_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((0, "missing"), (500, "problem"), (5000, "ok")):
        monkeypatch.setattr(doctor_machine, "memory_available_mib", lambda free=free: free)
        assert doctor_machine.memory().status == status


@pytest.mark.parametrize("which", ["nvrtc", "nvcc", None])
def test_kernel_compiler_is_told_with_its_cache(
    which: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "one.cubin").write_bytes(b"")
    for name in ("nvrtc", "nvcc"):
        there = SimpleNamespace(name=f"{name} 13.0") if name == which else None
        monkeypatch.setattr(doctor_software.compile, name, lambda there=there: there)
    check = doctor_software.kernel_compiler()
    assert check.status == ("missing" if which is None else "ok")
    assert f"1 images kept in {tmp_path / 'kernels'}" in check.found
    assert f"{which} 13.0" in check.found if which else "cuda" in check.advice
