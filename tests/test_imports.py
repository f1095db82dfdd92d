"""Who may import whom, read from the source; and the device side without the build side."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import edge

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edge", "calibration", "export", "apps")

# The groups in the order in which they may import: each one itself and those before it.
ORDER = (
    "core",
    "assets",
    "data",
    "edgez",
    "runtime",
    "video",
    "measure",
    "models",
    "train",
    "compress",
    "calibration",
    "export",
    "apps",
)
# Packages whose `__init__` names their public surface.
DOORS = {"edge", "calibration", "export", "apps"}
BUILD_SIDE = ("torch", "torchvision", "onnx", "safetensors")
DEVICE_GROUPS = ("core", "data", "runtime", "edgez", "video", "measure", "assets")
DEVICE_APPS = ("apps.camera.app", "apps.dashboard.dashboard", "apps.regress")


@cache
def sources() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def group(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "edge":
        return parts[0]
    return parts[1] if len(parts) > 1 and (ROOT / "edge" / parts[1]).is_dir() else "core"


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def named(tree: ast.AST, module: str) -> Iterator[str]:
    """Whatever a file imports at any depth, `require("x")` and `import_module("x")` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("require", "import_module"):
            target = node.args[0]
            if isinstance(target, ast.Constant):
                yield str(target.value)


@cache
def imports(module: str) -> frozenset[str]:
    tree = ast.parse(sources()[module].read_text())
    return frozenset(named(tree, module))


def inside(module: str) -> set[str]:
    """Modules of the product that `module` imports."""
    return {name for name in imports(module) if name in sources()} - {module}


def closure(module: str) -> set[str]:
    seen, open_ = set(), {module}
    while open_:
        one = open_.pop()
        seen.add(one)
        open_ |= inside(one) - seen
    return seen


def test_the_walk_sees_every_form_of_import() -> None:
    tree = ast.parse(
        "import a.b\nfrom c import d\ndef f():\n    import e\n    require('f.g')\n"
        "    importlib.import_module('h')\nif TYPE_CHECKING:\n    from i import j\n"
    )
    assert set(named(tree, "x")) == {"a.b", "c", "c.d", "e", "f.g", "h", "i", "i.j"}
    assert len(sources()) > 50
    assert inside("edge.runtime.backend") >= {
        "edge.runtime.backend_ort",
        "edge.runtime.backend_trt",
    }
    assert "edge.models.tracing" in inside("export.graph.writer")


def test_no_arrow_points_to_the_right() -> None:
    assert {group(module) for module in sources()} == set(ORDER)
    wrong = [
        f"{module} -> {target}"
        for module in sorted(sources())
        for target in sorted(inside(module))
        # Front doors name what lies behind them, and import it on demand.
        if module not in DOORS and ORDER.index(group(target)) > ORDER.index(group(module))
    ]
    assert wrong == []


def test_no_package_name_of_ours_is_imported_that_is_not_there() -> None:
    missing = [
        f"{module} -> {target}"
        for module in sorted(sources())
        for target in sorted(imports(module))
        if target.split(".")[0] in PACKAGES
        and target not in sources()
        and target.rpartition(".")[0] not in sources()
    ]
    assert missing == []


def test_no_cycles() -> None:
    # `edge/__init__` gives the core's names; core files never import it back.
    cycles = [
        f"{module} <-> {target}"
        for module in sorted(sources())
        for target in sorted(inside(module))
        if not {module, target} & DOORS and module in closure(target)
    ]
    assert cycles == []


def device_side() -> list[str]:
    return sorted(
        module
        for module in sources()
        if group(module) in DEVICE_GROUPS or module.startswith(DEVICE_APPS)
    )


def test_the_device_side_imports_nothing_of_the_build_side_at_any_depth() -> None:
    wrong = [
        f"{module} -> {reached} -> {name}"
        for module in device_side()
        for reached in sorted(closure(module))
        for name in sorted(imports(reached))
        if name.split(".")[0] in BUILD_SIDE
    ]
    assert wrong == []
    assert {"edge.runtime.detector", "edge.data.datasets", "edge.measure.bench"} <= set(
        device_side()
    )


def test_optional_packages_are_never_imported_when_a_module_is() -> None:
    optional = {"tensorrt", "tensorrt_rtx", "cuda", "pycuda", "pycocotools", "onnxruntime"}
    wrong = [
        f"{module}: {name}"
        for module, path in sorted(sources().items())
        for node in ast.parse(path.read_text()).body
        for name in named(node, module)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and name.split(".")[0] in optional
    ]
    assert wrong == []


WITHOUT = """
import sys
from pathlib import Path

class Absent:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(name + " is absent in this test")

sys.meta_path.insert(0, Absent())
from importlib import import_module
for module in {modules!r}:
    import_module(module)
assert not Absent.names & {{name.split(".")[0] for name in sys.modules}}

from edge import MissingDependency
from edge.optional import require
for name in sorted(Absent.names):
    try:
        require(name)
    except MissingDependency as error:
        assert "pip install" in str(error)
    else:
        raise AssertionError(name + " was found")

import numpy as np
from edge.runtime.detector import Detector
for artifact in {artifacts!r}:
    with Detector.open(artifact, threads=1, score=0.01) as detector:
        detector(np.full((90, 120, 3), 127, np.uint8))
        print(detector.spec.name)
"""


@pytest.fixture
def artifacts(tmp_path: Path) -> list[str]:
    """An FP32 and an INT8 file, made by the build side beforehand."""
    from calibration.qdq import convolutions
    from calibration.table import CalibrationTable
    from edge.files import sha256_of
    from export.int8.quantize import write_int8
    from tests.support.small_models import write_small

    fp32, int8 = tmp_path / "a.onnx", tmp_path / "a.int8.onnx"
    manifest = write_small(fp32)
    model = import_module("onnx").load(str(fp32))
    amax = tuple(dict.fromkeys((node.input[0], 2.0) for node in convolutions(model)))
    digest = manifest.spec.contract.digest
    write_int8(fp32, CalibrationTable(amax, "minmax", sha256_of(fp32), digest, ()), int8)
    return [str(fp32), str(int8)]


def test_the_device_side_runs_where_the_build_side_is_absent(artifacts: list[str]) -> None:
    absent = {"torch", "onnx", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "pycocotools"}
    script = WITHOUT.format(
        names={*absent, "safetensors"}, modules=device_side(), artifacts=artifacts
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["small", "small"]


def test_import_edge_needs_numpy_alone() -> None:
    script = (
        "import sys, edge\n"
        "heavy = {'cv2', 'torch', 'onnx', 'onnxruntime', 'rich', 'google'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def with_names() -> list[str]:
    """All but empty package files and a program that is only ever run."""
    texts = {module: path.read_text() for module, path in sources().items()}
    return sorted(m for m, text in texts.items() if text.strip() and m != "export.engine.child")


@pytest.mark.parametrize("module", with_names())
def test_public_names_are_declared_and_there(module: str) -> None:
    tree = ast.parse(sources()[module].read_text())
    declared: list[str] = []
    defined: set[str] = set()
    named_for_types = [n for node in tree.body if isinstance(node, ast.If) for n in node.body]
    for node in [*tree.body, *named_for_types]:
        targets = (
            [node.target]
            if isinstance(node, (ast.AnnAssign, ast.AugAssign))
            else node.targets
            if isinstance(node, ast.Assign)
            else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and target.id == "__all__":
                declared += ast.literal_eval(node.value)  # type: ignore[union-attr]
            elif isinstance(target, ast.Name):
                defined.add(target.id)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
    assert declared, "no __all__"
    assert len(set(declared)) == len(declared)
    assert set(declared) <= defined
    assert not [name for name in declared if name.startswith("_") and name != "__version__"]


def test_public_names_of_edge() -> None:
    assert sorted(edge.__all__) == [
        "ArtifactError",
        "BenchOptions",
        "BenchResult",
        "BuildError",
        "CalibrationError",
        "CameraError",
        "CompressionError",
        "DataError",
        "DetectOptions",
        "DetectResult",
        "Detections",
        "Detector",
        "DeviceError",
        "EdgeError",
        "EngineMismatch",
        "EvaluateOptions",
        "EvaluateResult",
        "HeadSpec",
        "InputContract",
        "Letterbox",
        "Manifest",
        "MissingDependency",
        "ModelSpec",
        "TensorSpec",
        "__version__",
        "bench",
        "detect_pictures",
        "draw",
        "evaluate",
        "open_source",
    ]
    assert all(hasattr(edge, name) for name in edge.__all__)


def test_public_names_of_the_packages_that_make_artifacts() -> None:
    calibration, export = import_module("calibration"), import_module("export")
    assert sorted(calibration.__all__) == [
        "Calibration",
        "CalibrationRecipe",
        "CalibrationTable",
        "calibrate",
        "compare_tables",
        "read_table",
        "write_table",
    ]
    assert sorted(export.__all__) == [
        "BuildOptions",
        "ExportOptions",
        "ExportResult",
        "QuantizeOptions",
        "SourceOptions",
        "build_engine",
        "export_engine",
        "import_model",
        "quantize",
    ]
    assert import_module("apps").__all__ == ["export_engine", "main"]
    for package in (calibration, export, import_module("apps")):
        assert all(callable(getattr(package, name)) for name in package.__all__)
        with pytest.raises(AttributeError, match="has no attribute"):
            _ = package.no_such_name


def test_naming_a_public_function_loads_neither_torch_nor_onnx() -> None:
    script = (
        "import sys, edge, calibration, export\n"
        "from calibration import calibrate, CalibrationRecipe\n"
        "from export import export_engine, build_engine, ExportOptions\n"
        "print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_only_apps_parses_arguments_and_prints() -> None:
    # Programs that run alone: in a child process of the builder, and where clients are.
    programs = {"export.engine.child", "export.engine.dla_child", "export.handover.triton_client"}
    wrong = [
        f"{module}: {name}"
        for module, path in sorted(sources().items())
        if module.split(".")[0] != "apps" and module not in programs
        for name in [
            *(one for one in imports(module) if one in ("argparse", "rich")),
            *(
                "print"
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and called(node) == "print"
            ),
        ]
    ]
    assert wrong == []


def test_every_error_is_an_edge_error_and_what_its_doc_says() -> None:
    bases = {
        "MissingDependency": ImportError,
        "ArtifactError": ValueError,
        "EngineMismatch": edge.ArtifactError,
        "DataError": ValueError,
        "CalibrationError": ValueError,
        "CompressionError": ValueError,
        "BuildError": RuntimeError,
        "DeviceError": RuntimeError,
        "CameraError": OSError,
    }
    for name, base in bases.items():
        assert issubclass(getattr(edge, name), edge.EdgeError)
        assert issubclass(getattr(edge, name), base)
    errors = import_module("edge.errors")
    assert set(errors.__all__) == {*bases, "EdgeError"}


def test_one_door_to_onnxruntime() -> None:
    using = {
        module
        for module, path in sources().items()
        if "InferenceSession(" in path.read_text() or "SessionOptions(" in path.read_text()
    }
    assert using == {"edge.runtime.session"}
