"""The same inputs through two artifacts: noise of each tensor, and where it begins.

Tensor names are the join: every graph made from one model carries its module paths, and a Q/DQ
graph adds `NAME.dequantized`, which is compared with NAME. Engines show only their heads.
Neither torch nor the onnx package is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import read_manifest
from edge.detections import Detections, iou_matrix
from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.backend import Backend, open_backend
from edge.runtime.onnx_proto import model_class
from edge.runtime.ort_lowering import fold_weights, is_quantized
from edge.runtime.session import first_line, open_session

__all__ = [
    "LIMITS_DB",
    "MOST_DB",
    "Agreement",
    "Heads",
    "Network",
    "TensorNoise",
    "agreement",
    "compare_tensors",
    "decibel",
    "first_departure",
    "head_noise",
    "heads_of",
    "noise_share",
    "open_network",
    "signal_to_noise_db",
]

Tensors = Mapping[str, NDArray[Any]]
_DEQUANTIZED = ".dequantized"
# Below this a tensor departs. FP32 sums in another order keep 100 dB and more, FP16's 11 bits some
# 50 dB after twenty layers; a sound INT8 network keeps 12 dB to its heads.
LIMITS_DB = {"fp32": 80.0, "fp16": 30.0, "int8": 12.0, "mixed": 12.0}
# Equal to the last bit; keeps figures finite.
MOST_DB = 300.0
Array = NDArray[np.float32]
Heads = list[list[Array]]


@dataclass(frozen=True)
class Network:
    """Something that can be looked into.

    Attributes:
        name: for messages.
        precision: of its convolutions.
        run: (1, 3, H, W) float32 to its tensors by name, in the graph's order.
        inputs: the tensors that each tensor is made from; empty where they are not known.
        shape: of the input.
        contract: digest of its pre-processing.
        heads: its raw outputs.
        equalised: whether its inner tensors have gains of their own (`calibration.equalise`).
    """

    name: str
    precision: str
    run: Callable[[NDArray[np.float32]], Tensors]
    inputs: Mapping[str, tuple[str, ...]]
    shape: tuple[int, ...]
    contract: str
    heads: frozenset[str] = frozenset()
    equalised: bool = False


@dataclass(frozen=True)
class TensorNoise:
    """How a tensor of the second network differs from the first's.

    Attributes:
        name: of the tensor; with `.dequantized`, what its quantizer makes of it.
        db: signal to noise, 10 log10(sum a² / sum (a - b)²); 20 dB is a tenth of the amplitude.
        own_db: the same of the noise that arises here: what the noisiest of the tensors that it
            is made from brings along is taken away.
    """

    name: str
    db: float
    own_db: float


@dataclass(frozen=True)
class Agreement:
    """How alike the detections of two networks are.

    Attributes:
        share: of boxes with a partner of the same class at IoU 0.5 or more, both sides, 0..1.
        iou: mean over the pairs; nan without any.
        score: mean absolute difference of scores over the pairs; nan without any.
        boxes: of the first and the second.
    """

    share: float
    iou: float
    score: float
    boxes: tuple[int, int]


def open_network(artifact: str | Path | OnnxFile, threads: int | None = None) -> Network:
    """An ONNX file of edge with all its tensors, or an engine with its heads.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    path = Path(artifact)
    file = artifact if isinstance(artifact, OnnxFile) else OnnxFile(artifact)
    manifest = file.manifest if path.suffix == ".onnx" else read_manifest(path)
    equalised = dict(manifest.arguments).get("equalised_tensors", "0") != "0"
    heads = [tensor.name for tensor in manifest.outputs]
    digest = manifest.spec.contract.digest
    facts = (manifest.inputs[0].shape, digest, frozenset(heads), equalised)
    if path.suffix == ".onnx":
        run, inputs = _onnx(file, threads)
        return Network(str(path), manifest.precision, run, inputs, *facts)
    backend = open_backend(path)

    def engine(tensor: NDArray[np.float32]) -> Tensors:
        return dict(zip(heads, backend.run(tensor), strict=True))

    return Network(str(path), manifest.precision, engine, {}, *facts)


def _onnx(
    file: OnnxFile, threads: int | None
) -> tuple[Callable[[NDArray[np.float32]], Tensors], dict[str, tuple[str, ...]]]:
    try:
        data = file.data
        model = model_class().FromString(fold_weights(data) if is_quantized(data) else data)
        inputs = {name: tuple(n.input) for n in model.graph.node for name in n.output if name}
        present = {output.name for output in model.graph.output}
        for name in inputs:
            if name not in present:
                model.graph.output.add(name=name)
        shown = model.SerializeToString()
    except Exception as error:  # protobuf's exceptions share no other base
        raise ArtifactError(f"{file}: not a readable ONNX graph: {first_line(error)}") from error
    session = open_session(shown, file.path, threads=threads)
    feed = session.get_inputs()[0].name
    names = list(inputs)

    def run(tensor: NDArray[np.float32]) -> Tensors:
        return {feed: tensor, **dict(zip(names, session.run(names, {feed: tensor}), strict=True))}

    return run, inputs


def compare_tensors(
    first: Network, second: Network, images: Iterable[NDArray[np.float32]]
) -> list[TensorNoise]:
    """Noise of every tensor of `second` that `first` has too, in the order of `second`.

    Args:
        images: network inputs (1, 3, H, W), at least one.

    Raises:
        ArtifactError: another input shape or pre-processing, or no tensor in common.
    """
    if (first.shape, first.contract) != (second.shape, second.contract):
        raise ArtifactError(
            f"{second.name}: its input or its pre-processing is not that of {first.name}; "
            "compare two artifacts of one model"
        )
    sums: dict[str, NDArray[np.float64]] = {}
    for image in images:
        wanted = first.run(image)
        for name, found in second.run(image).items():
            same = wanted.get(name.removesuffix(_DEQUANTIZED))
            if same is not None and same.shape == found.shape:
                sums[name] = sums.get(name, np.float64(0)) + _sums(same, found)
    if not sums:
        raise ArtifactError(f"{second.name}: no tensor in common with {first.name}")
    free = first.equalised != second.equalised
    db = {name: _db(one, free and name not in second.heads) for name, one in sums.items()}
    return [TensorNoise(name, db[name], _own(name, db, second.inputs)) for name in db]


def _sums(wanted: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """Sums by channel of a², a b, b² and (a - b)²: (4, C)."""
    channels = wanted.shape[1] if wanted.ndim > 1 else 1
    a, b = (side.astype(np.float64).reshape(channels, -1) for side in (wanted, found))
    with np.errstate(over="ignore", invalid="ignore"):
        sums: NDArray[np.float64] = np.stack([(x * y).sum(1) for x, y in ((a, a), (a, b), (b, b))])
        return np.vstack([sums, np.square(a - b).sum(1)])


def _db(sums: NDArray[np.float64], free: bool) -> float:
    """Signal to noise; where `free`, at the gain of each channel that fits best.

    Equalisation multiplies channels by gains that the next convolution takes back: such a tensor
    differs from its original without any loss.
    """
    signal, noises = float(sums[0].sum()), sums[3]
    if free:
        aa, ab, bb = sums[:3]
        fitted = np.divide(np.square(np.maximum(ab, 0)), bb, out=np.zeros_like(bb), where=bb > 0)
        noises = np.maximum(aa - fitted, 0)
    return signal_to_noise_db(signal, float(noises.sum()))


def _own(name: str, db: Mapping[str, float], inputs: Mapping[str, tuple[str, ...]]) -> float:
    sources = (_source(one, db, inputs) for one in inputs.get(name, ()))
    brought = max((10 ** (-one / 10) for one in sources if one is not None), default=0.0)
    added = 10 ** (-db[name] / 10) - brought
    return decibel(added)


def _source(
    name: str, db: Mapping[str, float], inputs: Mapping[str, tuple[str, ...]]
) -> float | None:
    """Noise of a tensor, or of what it was made from where itself cannot be compared."""
    for _ in range(3):
        if name in db:
            return db[name]
        if not inputs.get(name):
            return None
        name = inputs[name][0]
    return None


def first_departure(
    noises: Sequence[TensorNoise], limit_db: float, before: Mapping[str, float] | None = None
) -> TensorNoise | None:
    """The tensor at which a network departs from its reference; None where none does.

    Args:
        limit_db: signal to noise that a sound network keeps.
        before: by tensor, of the same comparison earlier; then the first that lost 6 dB, half of
            its amplitude's accuracy, is where it departs.
    """
    for one in noises:
        known = before.get(one.name) if before else None
        if known is not None and known - one.db > 6.0:
            return one
    if before:
        return None
    return next((one for one in noises if one.db < limit_db), None)


def agreement(
    first: Sequence[Detections], second: Sequence[Detections], score: float = 0.25
) -> Agreement:
    """Pair the detections of two networks image by image, best scores first, at IoU 0.5."""
    ious: list[float] = []
    scores: list[float] = []
    boxes = [0, 0]
    for one, other in zip(first, second, strict=True):
        a, b = one[one.score >= score], other[other.score >= score]
        boxes = [boxes[0] + len(a), boxes[1] + len(b)]
        for i, j, iou in _pairs(a, b):
            ious.append(iou)
            scores.append(abs(float(a.score[i]) - float(b.score[j])))
    share = 2 * len(ious) / sum(boxes) if sum(boxes) else 1.0
    means = [float(np.mean(each)) if each else math.nan for each in (ious, scores)]
    return Agreement(share, means[0], means[1], (boxes[0], boxes[1]))


def _pairs(a: Detections, b: Detections) -> Iterable[tuple[int, int, float]]:
    overlap = iou_matrix(a.xyxy, b.xyxy) * (a.class_id[:, None] == b.class_id[None, :])
    for i in np.argsort(-a.score, kind="stable").tolist():
        if not len(b):
            return
        j = int(overlap[i].argmax())
        if overlap[i, j] >= 0.5:
            yield i, j, float(overlap[i, j])
            overlap[:, j] = 0


def heads_of(
    artifact: str | Path | OnnxFile | Backend, arrays: Iterable[Array], threads: int | None = None
) -> Heads:
    """The raw heads of each network input (1, 3, H, W); a Q/DQ graph runs as it is written.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    if isinstance(artifact, (str, Path, OnnxFile)):
        with open_backend(artifact, threads=threads, exact=True) as backend:
            return heads_of(backend, arrays)
    return [[np.array(head) for head in artifact.run(array)] for array in arrays]


def noise_share(reference: Heads, found: Heads) -> float:
    """Noise power over signal power, the mean over the heads; inf where a value is not finite.

    Raises:
        ValueError: no image.
    """
    if not reference:
        raise ValueError("no image to measure noise on")
    shares = [
        _share([image[i] for image in reference], [image[i] for image in found])
        for i in range(len(reference[0]))
    ]
    return float(np.mean(shares))


def _share(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        noise = sum(
            float(np.square(a.astype(np.float64) - b).sum())
            for a, b in zip(wanted, found, strict=True)
        )
    if not math.isfinite(noise):
        return math.inf
    return noise / max(signal, 1e-30)


def signal_to_noise_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares, within +-`MOST_DB`.

    The one definition of noise in dB: 20 dB is noise of a tenth of the signal's amplitude.
    """
    if not math.isfinite(noise):
        return -MOST_DB
    if noise <= 0:
        return MOST_DB
    if signal <= 0:
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise)))


def decibel(share: float) -> float:
    """A share of noise in the signal's power as dB, within +-`MOST_DB`."""
    return signal_to_noise_db(1.0, share)


def head_noise(reference: Heads, found: Heads) -> float:
    """`noise_share` in dB."""
    return decibel(noise_share(reference, found))
