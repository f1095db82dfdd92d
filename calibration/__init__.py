"""calibration: INT8 scales of an FP32 graph, measured on pictures.

    from calibration import CalibrationRecipe, calibrate, write_table

    table = calibrate("out/yolo.fp32.onnx", "pictures/", CalibrationRecipe(images=200)).table
    write_table(table, "out/yolo.calib.json")

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.compare import compare_tables
    from calibration.pipeline import calibrate
    from calibration.recipe import CalibrationRecipe
    from calibration.scales import Calibration
    from calibration.table import CalibrationTable, read_table, write_table

__all__ = [
    "Calibration",
    "CalibrationRecipe",
    "CalibrationTable",
    "calibrate",
    "compare_tables",
    "read_table",
    "write_table",
]

_MODULES = {
    "Calibration": "scales",
    "CalibrationRecipe": "recipe",
    "CalibrationTable": "table",
    "calibrate": "pipeline",
    "compare_tables": "compare",
    "read_table": "table",
    "write_table": "table",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'calibration' has no attribute {name!r}")
    return getattr(import_module(f"calibration.{_MODULES[name]}"), name)
