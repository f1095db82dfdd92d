"""A model repository that Triton Inference Server takes as it is.

Layout and `config.pbtxt`: Triton's documentation, "Model Repository" and "Model Configuration"
(model_config.proto). An ONNX file is served by the python backend with onnxruntime on the CPU; an
engine as `tensorrt_plan`, the plain plan without any header, with a small python model before it
that does edge's own pre- and post-processing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge.artifact import read_engine, read_manifest
from edge.errors import ArtifactError
from edge.files import check_name, make_folder, plain_text, read_file, write_file
from edge.options import count, option, share
from edge.spec import Manifest, TensorSpec

__all__ = ["HandoverResult", "TritonOptions", "handover_triton"]

_HERE = Path(__file__).parent
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}


@dataclass(frozen=True)
class TritonOptions:
    """How the server runs the detector.

    Attributes:
        name: name that clients call the model by; by default the detector's own
        score: score from which a detection is answered; by default what was fitted to the artifact,
            or 0.25
        iou: IoU above which two boxes of one class count as one object
        instances: copies of the model that answer at the same time; more take more memory and, on a
            CPU, share its cores
        threads: threads of onnxruntime in each copy of an ONNX model
        fast_int8: run an INT8 graph on onnxruntime's own kernels, which round a little differently
            from TensorRT, in place of the graph as it is written
    """

    name: str | None = option(None, metavar="NAME")
    score: float | None = option(None, check=share, metavar="S")
    iou: float = option(0.45, check=share, metavar="I")
    instances: int = option(1, check=count, metavar="N")
    threads: int = option(1, check=count, metavar="N")
    fast_int8: bool = False


@dataclass(frozen=True)
class HandoverResult:
    """What was written.

    Attributes:
        kind: `triton` or `deepstream`.
        files: relative to the folder.
        notes: what the reader must know.
    """

    kind: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def handover_triton(
    artifact: str | Path, folder: str | Path, options: TritonOptions | None = None
) -> HandoverResult:
    """Write a model repository for `artifact` into `folder`.

    Args:
        artifact: .onnx of edge, or .engine with its manifest beside it.

    Raises:
        ArtifactError: the artifact or the folder cannot be used, or the name cannot be a file name.
        EngineMismatch: the engine's bytes are not those of its manifest.
    """
    options, path = options or TritonOptions(), Path(artifact)
    if path.suffix not in (".onnx", ".engine"):
        raise ArtifactError(f"{path}: neither .onnx nor .engine; make one with: export-engine")
    plan, manifest = read_engine(path) if path.suffix == ".engine" else (b"", read_manifest(path))
    name = check_name(options.name or manifest.spec.name, "--name")
    root, files = make_folder(folder), {}
    network = f"{name}-network" if plan else ""
    version = f"{name}/1"
    files[f"{name}/config.pbtxt"] = _python_config(name, manifest, options, network).encode()
    files[f"{name}/labels.txt"] = "".join(
        f"{plain_text(c)}\n" for c in manifest.spec.classes
    ).encode()
    files[f"{version}/model.py"] = read_file(_HERE / "triton_model.py")
    if plan:
        files[f"{version}/manifest.json"] = manifest.to_json(indent=1).encode()
        files[f"{network}/config.pbtxt"] = _plan_config(network, manifest, options).encode()
        files[f"{network}/1/model.plan"] = plan
    else:
        files[f"{version}/model.onnx"] = read_file(path)
    client = read_file(_HERE / "triton_client.py").decode().replace("@MODEL@", name)
    files["client.py"] = client.encode()
    notes = _notes(path, network)
    files["README.md"] = _readme(name, manifest, notes).encode()
    for place, data in files.items():
        make_folder((root / place).parent)
        write_file(root / place, data)
    _remove_others(root, name, network, set(files))
    return HandoverResult("triton", tuple(files), notes)


def _remove_others(root: Path, name: str, network: str, files: set[str]) -> None:
    """A model of this name that was handed over as the other kind must not stay half there."""
    if not network and (root / f"{name}-network" / "1" / "model.plan").is_file():
        shutil.rmtree(root / f"{name}-network")
    for stale in ("model.onnx", "manifest.json"):
        if f"{name}/1/{stale}" not in files:
            (root / name / "1" / stale).unlink(missing_ok=True)


def _python_config(name: str, manifest: Manifest, options: TritonOptions, network: str) -> str:
    score = options.score if options.score is not None else manifest.score or 0.25
    parameters = {
        "SCORE": f"{score:g}",
        "IOU": f"{options.iou:g}",
        "NETWORK": network,
        "EXACT": "false" if options.fast_int8 else "true",
        "THREADS": str(options.threads),
    }
    written = "\n".join(
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in parameters.items()
    )
    return f"""# A picture in, boxes out: pre- and post-processing of edge around the network.
name: {_text(name)}
backend: "python"
max_batch_size: 0
input [
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true }},
  {{ name: "encoded" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "boxes" data_type: TYPE_FP32 dims: [ -1, 4 ] }},
  {{ name: "scores" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "labels" data_type: TYPE_INT32 dims: [ -1 ] label_filename: "labels.txt" }}
]
instance_group [ {{ kind: KIND_CPU count: {options.instances} }} ]
{written}
"""


def _plan_config(network: str, manifest: Manifest, options: TritonOptions) -> str:
    hw = manifest.spec.contract.hw
    inputs = ",\n".join(_binding(tensor) for tensor in manifest.inputs)
    outputs = ",\n".join(_binding(tensor) for tensor in manifest.outputs)
    dims = ", ".join(map(str, manifest.inputs[0].shape))
    return f"""# The network alone, {hw[1]}x{hw[0]}: the plan as TensorRT wrote it.
name: {_text(network)}
platform: "tensorrt_plan"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ kind: KIND_GPU count: {options.instances} }} ]
model_warmup [ {{
  name: "zeros"
  inputs {{
    key: {_text(manifest.inputs[0].name)}
    value: {{ data_type: {_type(manifest.inputs[0])} dims: [ {dims} ] zero_data: true }}
  }}
}} ]
"""


def _binding(tensor: TensorSpec) -> str:
    dims = ", ".join(map(str, tensor.shape))
    return f"  {{ name: {_text(tensor.name)} data_type: {_type(tensor)} dims: [ {dims} ] }}"


def _type(tensor: TensorSpec) -> str:
    if tensor.dtype not in _TYPES:
        raise ArtifactError(
            f"tensor {tensor.name} is {tensor.dtype}, which Triton has no name for here"
        )
    return _TYPES[tensor.dtype]


def _text(value: str) -> str:
    """A string of protobuf's text format; JSON's escapes are among its own."""
    return json.dumps(value)


def _notes(path: Path, network: str) -> tuple[str, ...]:
    if network:
        return (
            "model.plan runs only on the GPU and the TensorRT release that it was built with; the "
            "server's TensorRT must be that release",
            "the python backend's environment needs edge (pip install .) with OpenCV",
        )
    return (
        "the network runs on the CPU with onnxruntime; hand over an .engine for a GPU",
        "the python backend's environment needs edge (pip install .) with OpenCV and onnxruntime",
    )


def _readme(name: str, manifest: Manifest, notes: tuple[str, ...]) -> str:
    listed = "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes)
    labels = "".join(f" ({label})" for label in manifest.labels)
    return f"""# {name} for Triton Inference Server

{plain_text(manifest.spec.name)}{labels}, {manifest.precision}; classes in `{name}/labels.txt`.

    tritonserver --model-repository=. --http-address=127.0.0.1 --grpc-address=127.0.0.1
    python client.py photo.jpg

Inputs: `image`, (H, W, 3) uint8 in OpenCV's BGR order, or `encoded`, the bytes of a JPEG or PNG;
one picture a request. Outputs: `boxes` (N, 4), left, top, right and bottom in pixels of the
picture; `scores` (N,); `labels` (N,), numbers of the lines of `labels.txt`. The server answers what
`edge detect` answers for the same artifact. Score and IoU thresholds, instances and threads are in
`{name}/config.pbtxt`.

{listed}
"""
