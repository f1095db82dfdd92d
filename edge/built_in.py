"""The detectors that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUILT_IN", "PACKAGED"]

_ASSETS = Path(__file__).parent / "assets"
# Trained on the built-in world; ONNX files, so that using them needs no torch.
BUILT_IN = {name: _ASSETS / f"{name}.onnx" for name in ("tiny-yolo-scenes", "squeezedet-scenes")}
# Trained on photographs; folded small.
PACKAGED = {"squeezedet-photo": _ASSETS / "squeezedet-photo.edgez"}
