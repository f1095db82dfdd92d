"""A detector behind Triton Inference Server's python backend; a copy of this file serves as its
`model.py`.

Pre-processing, decoding and suppression are edge's own, so that what Triton answers is what
`edge detect` answers. An ONNX file runs here on the CPU; a TensorRT plan runs as a model of its own
(`NETWORK` in `config.pbtxt`), and this one asks it. The environment that Triton's python backend
runs in needs `edge` with NumPy, OpenCV and, for an ONNX file, onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from edge.detections import Detections
from edge.files import read_file
from edge.runtime.detector import Detector
from edge.spec import Manifest

__all__ = ["TritonPythonModel"]


class PlanBackend:
    """A TensorRT plan that Triton runs as a model of its own; a `Backend` of edge."""

    on_device = False

    def __init__(self, manifest: Manifest, network: str) -> None:
        self.manifest, self._network = manifest, network
        self.name = f"Triton's {network}"

    def run(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Ask the server for the raw heads of one (1, 3, H, W) float32 tensor."""
        request = pb.InferenceRequest(
            model_name=self._network,
            requested_output_names=[output.name for output in self.manifest.outputs],
            inputs=[pb.Tensor(self.manifest.inputs[0].name, tensor)],
        )
        answer = request.exec()
        if answer.has_error():
            raise pb.TritonModelException(answer.error().message())
        heads = []
        for output in self.manifest.outputs:
            found = pb.get_output_tensor_by_name(answer, output.name)
            if not found.is_cpu():
                found = pb.Tensor.from_dlpack(output.name, found.to_dlpack())
            heads.append(np.asarray(found.as_numpy(), np.float32))
        return heads

    def close(self) -> None:
        """Nothing is held here."""

    def __enter__(self) -> PlanBackend:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class TritonPythonModel:
    """What the python backend calls: `initialize`, `execute`, `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact that lies in this version's folder."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = {
            name: value.get("string_value", "")
            for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        network = parameters.get("NETWORK", "")
        options: dict[str, Any] = {
            "score": float(parameters["SCORE"]),
            "iou": float(parameters["IOU"]),
        }
        if network:
            source = folder / "manifest.json"
            manifest = Manifest.from_json(read_file(source).decode(), str(source))
            self._detector = Detector(PlanBackend(manifest, network), **options)
        else:
            options |= {
                "exact": parameters["EXACT"] == "true",
                "threads": int(parameters["THREADS"]),
            }
            self._detector = Detector.open(folder / "model.onnx", **options)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, one picture each; what is wrong with one fails that one alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            found = self._detector(_picture(request))
        except (ValueError, RuntimeError) as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        return pb.InferenceResponse(output_tensors=_tensors(found))

    def finalize(self) -> None:
        """Close the network."""
        self._detector.close()


def _picture(request: Any) -> NDArray[np.uint8]:
    """(H, W, 3) BGR uint8 of `image`, or of the encoded bytes in `encoded`."""
    image = pb.get_input_tensor_by_name(request, "image")
    if image is not None:
        return np.ascontiguousarray(image.as_numpy())
    encoded = pb.get_input_tensor_by_name(request, "encoded")
    if encoded is None:
        raise ValueError(
            "give `image` (H, W, 3) BGR uint8, or `encoded`, the bytes of a JPEG or PNG"
        )
    data = np.frombuffer(encoded.as_numpy().reshape(-1)[0], np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        raise ValueError("`encoded` is no picture that OpenCV reads")
    return np.asarray(picture, np.uint8)


def _tensors(found: Detections) -> list[Any]:
    return [
        pb.Tensor("boxes", found.xyxy),
        pb.Tensor("scores", found.score),
        pb.Tensor("labels", found.class_id),
    ]
