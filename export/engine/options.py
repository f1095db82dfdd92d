"""How an engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.options import count, option

__all__ = ["BuildOptions"]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        builder: what builds the engine: tensorrt needs the GPU that it builds for, rtx needs none,
            auto takes what is installed, none builds no engine.
        workspace_mib: scratch memory that the builder may use, MiB; more may give a faster engine
            (1024, or half of the free memory where that is less).
        targets: GPU architectures that rtx builds for, such as SM86,SM89 (all from Ampere on).
        sparse: use the sparse kernels of the GPU where two of every four weights are zero, as edge
            compress --two-four makes them.
        int8_float: precision of what an INT8 engine computes outside of INT8. Where FP16 cannot be
            had, the engine has FP32, and report and manifest say why.
    """

    builder: Literal["auto", "tensorrt", "rtx", "none"] = "auto"
    workspace_mib: int | None = option(None, flag="--workspace", metavar="MIB", check=count)
    targets: tuple[str, ...] = option((), metavar="SM")
    sparse: bool = False
    int8_float: Literal["fp16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        if self.builder not in ("auto", "tensorrt", "rtx", "none"):
            raise ValueError(f"builder is {self.builder!r}; known: auto, tensorrt, rtx, none")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace_mib is {self.workspace_mib}; it takes a positive number")
        if self.int8_float not in ("fp16", "fp32"):
            raise ValueError(f"int8_float is {self.int8_float!r}; known: fp16, fp32")
