"""Every call of ours exists, with that signature, in each TensorRT that we claim to serve.

mypy --strict reads our files against stubs made from the releases' own Python bindings
(tools/stubs/make_stubs.py). They are made once and kept; where the wheels cannot be had, this
skips.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("pybind11_stubgen")

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("10.3.0", "10.16.1", "11.4.0", "rtx-1.7.1")
OURS = ("edge/runtime/backend_trt.py", "export/engine/child.py", "export/engine/build.py")
REMOVED = """
from __future__ import annotations
import tensorrt as trt
class Calibrator(trt.IInt8EntropyCalibrator2):
    def get_batch_size(self) -> int:
        return 1
def build(builder: trt.Builder) -> trt.IHostMemory | None:
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.INT8)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    return builder.build_serialized_network(network, config)
"""


def _cache() -> Path:
    kept = os.environ.get("EDGE_CACHE")
    user = getattr(os, "getuid", lambda: 0)()
    return Path(kept) if kept else Path(tempfile.gettempdir()) / f"edge-cache-{user}"


def _stubs(label: str) -> Path:
    """The folder for MYPYPATH; its name carries the makers' text, so a change makes it anew."""
    makers = sorted((ROOT / "tools" / "stubs").glob("*stub*.py"))
    mark = hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()[:12]
    folder = _cache() / "trt-stubs" / mark
    if not (folder / label / "tensorrt" / "__init__.pyi").is_file():
        wheels = _cache() / "trt-wheels"
        maker = [sys.executable, str(ROOT / "tools" / "stubs" / "make_stubs.py"), "--only", label]
        done = subprocess.run(
            [*maker, "--out", str(folder), "--cache", str(wheels)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            pytest.skip(f"no stubs of TensorRT {label}: {lines[0]}")
    return folder / label


def _mypy(label: str, folder: Path, *files: str) -> tuple[int, str]:
    """Run mypy with a configuration of its own, in which nothing in `files` is ignored.

    The modules that they import are read, but their errors are not: OpenCV's stubs, which the
    project's own configuration passes over, are at odds with themselves.
    """
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\npython_version = 3.10\nfollow_imports = silent\n")
    stubs = _stubs(label)
    cache = stubs.parent / f"mypy-{label}"
    options = ["--config-file", str(config), "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("label", LABELS)
def test_our_calls_are_in(label: str, tmp_path: Path) -> None:
    status, said = _mypy(label, tmp_path, *OURS)
    assert status == 0, said


def test_the_stubs_know_what_tensorrt_11_removed(tmp_path: Path) -> None:
    source = tmp_path / "removed.py"
    source.write_text(REMOVED)
    old, _ = _mypy("10.3.0", tmp_path, str(source))
    new, said = _mypy("11.4.0", tmp_path, str(source))
    assert old == 0 and new != 0
    for name in ("IInt8EntropyCalibrator2", "INT8", "EXPLICIT_BATCH"):
        assert name in said


def test_a_wrong_call_in_our_files_is_seen(tmp_path: Path) -> None:
    text = (ROOT / "edge/runtime/backend_trt.py").read_text()
    wrong = text.replace("trt.Runtime(", "trt.Runtimes(")
    wrong = wrong.replace("engine.get_tensor_name(", "engine.get_binding_name(")
    source = tmp_path / "wrong.py"
    source.write_text(wrong)
    status, said = _mypy("11.4.0", tmp_path, str(source))
    assert status != 0 and "Runtimes" in said and "get_binding_name" in said
