"""export: from a trained model to a verified engine, with every file between.

    from export import ExportOptions, export_engine

    result = export_engine("yolo.cfg", ExportOptions(precision="int8", calib="pictures/"))
    print(result.files, result.verdict)

Names are imported when they are first used: an engine is built without torch and onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.engine.build import build_engine
    from export.engine.options import BuildOptions
    from export.foreign.importing import import_model
    from export.int8.kept_layers import QuantizeOptions, quantize
    from export.options import ExportOptions, SourceOptions
    from export.pipeline import ExportResult, export_engine

__all__ = [
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

_MODULES = {
    "BuildOptions": "engine.options",
    "ExportOptions": "options",
    "ExportResult": "pipeline",
    "QuantizeOptions": "int8.kept_layers",
    "SourceOptions": "options",
    "build_engine": "engine.build",
    "export_engine": "pipeline",
    "import_model": "foreign.importing",
    "quantize": "int8.kept_layers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(import_module(f"export.{_MODULES[name]}"), name)
