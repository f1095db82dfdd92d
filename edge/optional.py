"""Optional packages are imported where they are used, through one function with one message."""

from __future__ import annotations

import importlib
from typing import Any

from edge.errors import MissingDependency

__all__ = ["require"]

_EXTRA = {
    "torch": "build",
    "onnx": "build",
    "safetensors": "build",
    "pycocotools": "build",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "cuda": "cuda",
    "pycuda": "pycuda",
    "pynvml": "serve",
    "tensorboard": "monitor",
}
_BY_HAND = {
    "cv2": "pip install opencv-python  (a Jetson has it from JetPack: apt install python3-opencv)",
    "onnxruntime": "pip install onnxruntime",
    "google": "pip install protobuf",
}


def require(name: str) -> Any:
    """Import the package or submodule `name` and return that module.

    Raises:
        MissingDependency: it cannot be imported; the text names the command that installs it
            and carries the importer's own words (a shared library may be what is missing).
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        extra = _EXTRA.get(top)
        command = _BY_HAND.get(top) or (
            f'pip install "edge-deploy[{extra}]"' if extra else f"pip install {top}"
        )
        raise MissingDependency(f"{name} is needed for this: {command}  ({error})") from error
