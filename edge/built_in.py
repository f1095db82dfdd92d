"""The detectors that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUILT_IN", "OF_SCENES", "PACKAGED"]

_ASSETS = Path(__file__).parent / "assets"
# Trained on the built-in world; ONNX files, so that using them needs no torch.
BUILT_IN = {name: _ASSETS / f"{name}.onnx" for name in ("tiny-yolo-scenes", "squeezedet-scenes")}
# Folded small: one trained on photographs, and smaller forms of those of the built-in world.
PACKAGED = {
    name: _ASSETS / f"{name}.edgez"
    for name in (
        "squeezedet-photo",
        "squeezedet-scenes-deep",
        "squeezedet-scenes-half",
        "tiny-yolo-scenes-deep",
        "tiny-yolo-scenes-half",
    )
}
# The built-in world's scenes calibrate, judge and train these.
OF_SCENES = frozenset(name for name in (*BUILT_IN, *PACKAGED) if "-scenes" in name)
