"""onnxruntime on the CPU: the backend of every machine without a GPU, and the tests' reference."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.decoding import decode_json
from edge.errors import ArtifactError, EdgeError
from edge.onnx_file import OnnxFile
from edge.onnx_metadata import LOW_KEY
from edge.optional import require
from edge.runtime.cpu import int8_flags, int8_sums_overflow
from edge.runtime.ort_lowering import fold_weights, is_quantized, lower
from edge.runtime.session import first_line, open_session

__all__ = ["OrtBackend"]


class OrtBackend:
    """One ONNX file in an onnxruntime session.

    Args:
        file: an ONNX file that edge wrote, or its path.
        threads: of the session; all cores by default.
        exact: run a Q/DQ graph as it is written, which is what TensorRT computes, on float
            kernels; the default rearranges it for INT8 kernels (`edge.runtime.ort_lowering`).
        rearrange: False leaves a Q/DQ graph to onnxruntime alone: for graphs of other tools.
        profile: prefix of a file that `end_profiling` writes; none without it.

    Raises:
        ArtifactError: the file is not an ONNX file of edge, or onnxruntime cannot load it.
    """

    on_device = False

    def __init__(
        self,
        file: Path | OnnxFile,
        *,
        threads: int | None = None,
        exact: bool = False,
        rearrange: bool = True,
        profile: str | None = None,
    ) -> None:
        ort = require("onnxruntime")
        opened = file if isinstance(file, OnnxFile) else OnnxFile(file)
        self.manifest = opened.manifest
        self._path, threads = opened.path, threads or os.cpu_count() or 1
        # Other tools put their quantizers elsewhere than these rearrangements expect them.
        rearrange = rearrange and not self.manifest.quantized_elsewhere
        model, kernels = _prepared(opened, exact) if rearrange else (opened.data, "")
        self._session = open_session(
            model,
            opened.path,
            threads=threads,
            as_written=exact,
            safe_sums=rearrange and int8_sums_overflow(),
            # It moves quantizers up through float pooling, away from where they were put.
            left_out=("QDQPropagationTransformer",),
            profile=profile,
        )
        self.name = f"onnxruntime {ort.__version__} CPU, {threads} threads{kernels}"
        self._outputs = [tensor.name for tensor in self.manifest.outputs]
        self._shapes = [tensor.shape[1:] for tensor in self.manifest.outputs]
        self._input = self._check_graph()

    def _check_graph(self) -> str:
        """Check the graph against its manifest before anything is run; returns the input's name.

        Raises:
            ArtifactError: they tell two stories.
        """
        manifest = self.manifest
        for kind, told, found in (
            ("input", manifest.inputs[:1], self._session.get_inputs()),
            ("output", manifest.outputs, self._session.get_outputs()),
        ):
            shapes = {tensor.name: tuple(tensor.shape) for tensor in found}
            if not told:
                raise ArtifactError(f"{self._path}: its manifest names no {kind}; export it again")
            for tensor in told:
                shape = shapes.get(tensor.name)
                # A side that the graph leaves open is a name or nothing.
                if (
                    shape is None
                    or len(shape) != len(tensor.shape)
                    or any(
                        isinstance(side, int) and side != wanted
                        for side, wanted in zip(shape[1:], tensor.shape[1:], strict=True)
                    )
                ):
                    raise ArtifactError(
                        f"{self._path}: its manifest has the {kind} {tensor.name} of shape "
                        f"{tensor.shape}, its graph {shape or 'none of that name'}; export it again"
                    )
        return manifest.inputs[0].name

    def run(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See `Backend.run`.

        Raises:
            ArtifactError: onnxruntime loaded the graph and cannot run it.
        """
        try:
            raw: list[NDArray[np.float32]] = self._session.run(self._outputs, {self._input: tensor})
        except Exception as error:  # onnxruntime's exceptions share no other base
            said = first_line(error)
            raise ArtifactError(f"{self._path}: onnxruntime cannot run it: {said}") from error
        if [array.shape[1:] for array in raw] != self._shapes:
            raise ArtifactError(
                f"{self._path}: its outputs have the shapes {[array.shape for array in raw]}, its "
                f"manifest says {[tensor.shape for tensor in self.manifest.outputs]}; export it "
                "again"
            )
        return raw

    def end_profiling(self) -> str:
        """Path of the profile, in onnxruntime's JSON; for a backend opened with `profile`."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Give back the session."""
        self._session = None

    def __enter__(self) -> OrtBackend:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _prepared(file: OnnxFile, exact: bool) -> tuple[bytes, str]:
    """The model to load and, for the backend's name, which kernels a quantized one gets."""
    try:
        model = file.data
        if not is_quantized(model):
            return model, ""
        if exact:
            return fold_weights(model), ", Q/DQ as written"
        low = decode_json(
            file.metadata.get(LOW_KEY, "{}"), dict[str, float], str(file), f"its {LOW_KEY}"
        )
        return lower(model, low), f", INT8 kernels{_instructions()}"
    except EdgeError:
        raise
    except Exception as error:  # protobuf's exceptions share no other base
        raise ArtifactError(f"{file}: onnxruntime cannot load it: {first_line(error)}") from error


def _instructions() -> str:
    """Which instructions the INT8 kernels rest on, for the backend's name."""
    if int8_sums_overflow():
        return " without VNNI"
    flags = int8_flags()
    return f" ({flags[0]})" if flags else ""
