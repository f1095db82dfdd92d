"""Run a handed-over model.py with a stand-in for `triton_python_backend_utils`; see test_handover.

The stand-in has what Triton's documentation of the python backend lists and no more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from edge.data.datasets import load, open_dataset
from edge.runtime.detector import Detector


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


backend = ModuleType("triton_python_backend_utils")
backend.Tensor = Tensor  # type: ignore[attr-defined]
backend.TritonError = str  # type: ignore[attr-defined]
backend.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(  # type: ignore[attr-defined]
    tensors={one.name: one.as_numpy() for one in output_tensors}, error=error
)
backend.get_input_tensor_by_name = lambda request, name: request.get(name)  # type: ignore[attr-defined]
sys.modules[backend.__name__] = backend

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder / "1"))
from model import TritonPythonModel  # type: ignore[import-not-found]  # noqa: E402

text = (folder / "config.pbtxt").read_text()
message = text_format.Parse(text, model_config_pb2.ModelConfig())
config = json_format.MessageToDict(message, preserving_proto_field_name=True)
model = TritonPythonModel()
model.initialize(
    {
        "model_repository": str(folder),
        "model_version": "1",
        "model_config": json.dumps(config),
    }
)
frame = load(open_dataset("scenes://?seed=5400000&count=1").items[0])[0]
encoded = np.array([cv2.imencode(".png", frame)[1].tobytes()], object)
answers = model.execute(
    [
        {"image": Tensor("image", frame)},
        {"encoded": Tensor("encoded", encoded)},
        {"encoded": Tensor("encoded", np.array([b"no picture"], object))},
        {},
    ]
)
with Detector.open(folder / "1" / "model.onnx", exact=True, threads=1) as detector:
    wanted = detector(frame)
assert len(wanted)
for answer in answers:
    if answer.error is not None:
        print("refused")
        continue
    found = answer.tensors
    same = np.array_equal(found["boxes"], wanted.xyxy) and np.array_equal(
        found["scores"], wanted.score
    )
    print("same" if same and np.array_equal(found["labels"], wanted.class_id) else "different")
model.finalize()
