"""The one door to onnxruntime: every session of the project is opened here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.optional import require

__all__ = ["first_line", "open_session"]


def open_session(
    model: bytes,
    source: str | Path,
    *,
    threads: int | None = None,
    as_written: bool = False,
    safe_sums: bool = False,
    arena: bool = True,
    left_out: tuple[str, ...] = (),
    profile: str | None = None,
    folded: Path | None = None,
) -> Any:
    """Open an ONNX graph on the CPU.

    Args:
        model: the graph's bytes.
        source: what the graph is, for the message.
        threads: of the session; every core by default.
        as_written: run Q/DQ pairs as they stand instead of fusing them into INT8 kernels.
        safe_sums: take INT8 kernels whose sums do not overflow on x86 without VNNI; they are
            slower wherever the CPU has a choice.
        arena: keep memory from one run to the next; without it peaks are lower and runs slower.
        left_out: names of onnxruntime's optimizers to switch off.
        profile: prefix of a file that `end_profiling` of the session writes.
        folded: where to write the graph with its constants folded, in operators of ONNX alone.

    Raises:
        ArtifactError: onnxruntime cannot load the graph.
        MissingDependency: onnxruntime is not installed.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    # What it would write to stderr is in its exceptions too, and comes with names from the file.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.enable_cpu_mem_arena = arena
    if as_written:
        # onnxruntime 1.31 drops a ReLU in front of a quantizer once weights are constants.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if safe_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if folded is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
    try:
        return ort.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(left_out),
        )
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ArtifactError(f"{source}: onnxruntime cannot load it: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of a foreign exception's text, for a message of one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
