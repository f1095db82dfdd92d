"""INT8, FP16 or mixed: one sentence, and the measured facts behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.onnx_proto import model_class
from export.engine.layer_report import LayerInfo, summarise
from export.search.search import FEW_PICTURES, within

__all__ = ["DROP", "FLOOR_DB", "Facts", "Verdict", "decide", "int8_share", "off_grid"]

# What a sound INT8 network keeps to its heads, as in `edge.measure.noise`.
FLOOR_DB = 12.0
# A median of short loops varies by less; a gain below it is no reason to lose accuracy.
_GAIN = 1.03
# mAP that may be lost where the user states no budget.
DROP = 0.01
# TensorRT's INT8 kernels take channels in blocks of 32 (its formats CHW32 and HWC32).
INT8_BLOCK = 32
# mAP@.5 of a network that was given the wrong pictures or names, not of a weak one.
_BLIND = 0.05
_NAMED = 6


@dataclass(frozen=True)
class Facts:
    """What was measured of a network in INT8 (or mixed) and in floating point.

    Attributes:
        target: what ran it.
        on_engine: whether that was a TensorRT engine on its GPU.
        engine_ms: median milliseconds of the network by precision: `int8`, `fp16`, `fp32`.
        pipeline_ms: the same from frame to boxes.
        head_db: signal to noise of the heads against FP32; None where nobody measured it.
        drop: mAP lost against FP32 and the bounds of its 95 % interval; None without labels.
        fp32_map50: FP32's own mAP on the same images.
        pictures: that `drop` was measured on, copies counted.
        budget: mAP that may be lost.
        kept: convolutions out of INT8.
        noisy: convolutions whose quantization alone leaves the heads under `FLOOR_DB`, with dB.
        int8_share: of the engine's time, in layers that take INT8; None without an engine.
        reformats, layers: of the engine; layers that only move data, and all.
        reformat_share: of the engine's time.
        off_grid: share of convolutions whose channels are no multiple of 32, 0..1.
    """

    target: str
    on_engine: bool
    engine_ms: Mapping[str, float]
    pipeline_ms: Mapping[str, float]
    head_db: float | None
    drop: tuple[float, float, float] | None = None
    fp32_map50: float | None = None
    pictures: int = FEW_PICTURES
    budget: float | None = None
    kept: tuple[str, ...] = ()
    noisy: tuple[tuple[str, float], ...] = ()
    int8_share: float | None = None
    reformats: int | None = None
    layers: int | None = None
    reformat_share: float | None = None
    off_grid: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Which precision to ship.

    Attributes:
        choice: `INT8`, `FP16` or `mixed`.
        sentence: choice and reasons.
        reasons: one fact each, what decided first.
        facts: as measured.
        keep: convolutions to keep out of INT8; empty where INT8 or FP16 serves as it is.
    """

    choice: str
    sentence: str
    reasons: tuple[str, ...]
    facts: Facts
    keep: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def decide(facts: Facts) -> Verdict:
    """The precision that is accurate enough and fastest on the target.

    INT8 must pay: where it is not faster than floating point, there is no reason to lose anything.
    A budget that the user states must hold by the 95 % bound, as in a search.
    """
    accurate = _accurate(facts)
    gain = _gain(facts)
    if not accurate and facts.noisy and gain > _GAIN:
        choice = "mixed"
    elif not accurate or gain <= _GAIN:
        choice = "FP16"
    else:
        choice = "mixed" if facts.kept else "INT8"
    reasons = (_accuracy_reason(facts, accurate), _speed_reason(facts, gain), *_more(facts, gain))
    speed_decides = accurate and gain <= _GAIN
    ordered = (reasons[1], reasons[0], *reasons[2:]) if speed_decides else reasons
    keep = tuple(name for name, _ in facts.noisy) if choice == "mixed" and not accurate else ()
    where = "" if facts.on_engine else " on this CPU"
    parts = (f"{choice}{where}: {'; '.join(ordered)}", *_advice(facts, accurate, keep))
    return Verdict(choice, "; ".join(parts), ordered, facts, keep)


def _advice(facts: Facts, accurate: bool, keep: Sequence[str]) -> list[str]:
    """What to do next."""
    found = []
    if keep:
        found.append(f"keep {_listed(keep)} out of INT8 (--keep, or --max-map-drop)")
    elif not accurate and facts.budget is None and facts.drop is not None:
        found.append(f"--max-map-drop {DROP:g} looks for the layers to keep out of INT8")
    if facts.fp32_map50 is not None and facts.fp32_map50 < _BLIND:
        found.append(
            "FP32 finds next to nothing too, so no precision mends it: check --resize and --names "
            "(edge evaluate NAME.fp32.onnx --try-contracts)"
        )
    if not facts.on_engine:
        found.append(
            "a GPU has other speeds: have NAME.int8.onnx judged there by export-engine, with "
            "NAME.fp16.onnx beside it"
        )
    return found


def _accurate(facts: Facts) -> bool:
    if facts.drop is not None:
        lost, _, high = facts.drop
        if facts.budget is None:
            return lost <= DROP
        spread, head_db = (high - lost) / 1.96, facts.head_db or 0.0
        return within(facts.budget, lost, spread, head_db, facts.pictures)
    return facts.head_db is None or facts.head_db >= FLOOR_DB


def _floating(facts: Facts) -> str:
    """The rival: FP16, or on a CPU without half kernels FP32, which is what computes there."""
    rivals = [name for name in ("fp16", "fp32") if name in facts.engine_ms]
    if facts.on_engine and "fp16" in rivals:
        return "fp16"
    return min(rivals, key=lambda name: facts.engine_ms[name])


def _gain(facts: Facts) -> float:
    return facts.engine_ms[_floating(facts)] / facts.engine_ms["int8"]


def _accuracy_reason(facts: Facts, accurate: bool) -> str:
    if facts.drop is not None:
        return _drop_reason(facts, facts.drop, accurate)
    if facts.head_db is None:
        return "what it costs in accuracy was not measured (export-engine --int8 does)"
    word = "keeps" if accurate else "keeps only"
    floor = "" if accurate else f", under the {FLOOR_DB:g} dB of a sound network"
    noise = f"{facts.head_db:.1f} dB signal to noise at the heads"
    return f"it {word} {noise}{floor} (no labelled data)"


def _drop_reason(facts: Facts, drop: tuple[float, float, float], accurate: bool) -> str:
    loss, low, high = (100 * value for value in drop)
    word = "costs" if loss > 0 else "changes mAP@.5 by"
    amount = f"{loss:.2f} points of mAP@.5" if loss > 0 else f"{-loss:+.2f} points"
    whole = "" if facts.fp32_map50 is None else f" of FP32's {100 * facts.fp32_map50:.1f}"
    text = f"it {word} {amount}{whole} (95 %: {low:.2f} to {high:.2f} lost)"
    if facts.budget is None:
        return text
    held = "within" if accurate else "not sure to stay within"
    return f"{text}, {held} the budget of {100 * facts.budget:g}"


def _speed_reason(facts: Facts, gain: float) -> str:
    rival = _floating(facts)
    ours, theirs = facts.engine_ms["int8"], facts.engine_ms[rival]
    mine = "mixed" if facts.kept else "INT8"
    if gain > _GAIN:
        ratio = f"{gain:.2f} times as fast as"
    elif gain < 1 / _GAIN:
        ratio = f"{1 / gain:.2f} times slower than"
    else:
        ratio = "no faster than"
    return f"{mine} is {ratio} {rival.upper()} ({ours:.2f} against {theirs:.2f} ms, {facts.target})"


def _more(facts: Facts, gain: float) -> list[str]:
    """Why it is as fast as it is, and what the user would gain in practice."""
    found = []
    if facts.int8_share is not None:
        found.append(f"{facts.int8_share:.0%} of the engine's time runs in INT8 layers")
    if facts.reformats:
        share = "" if facts.reformat_share is None else f" ({facts.reformat_share:.0%} of the time)"
        found.append(f"{facts.reformats} of {facts.layers} layers only move data{share}")
    if facts.off_grid and (gain < 1.3 or not facts.on_engine):
        found.append(
            f"{facts.off_grid:.0%} of the convolutions have channels off the grid of {INT8_BLOCK}"
        )
    bound = facts.engine_ms["int8"] / facts.pipeline_ms["int8"]
    if bound < 0.5:
        found.append(f"the network is only {bound:.0%} of the pipeline, the CPU bounds the rest")
    if facts.kept:
        found.append(f"{_listed(facts.kept)} stay out of INT8")
    if facts.noisy:
        named = ", ".join(f"{name} ({db:.1f} dB)" for name, db in facts.noisy[:_NAMED])
        found.append(f"under {FLOOR_DB:g} dB each by itself: {named}")
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def int8_share(times: Mapping[str, float], layers: Sequence[LayerInfo]) -> tuple[float, float]:
    """Shares of an engine's time in layers that take INT8, and in layers that only move data.

    Args:
        times: milliseconds by layer name.
        layers: of the engine's report.
    """
    total = sum(times.values()) or 1.0
    int8 = sum(times.get(layer.name, 0.0) for layer in layers if "int8" in layer.inputs[:1])
    moving = (layer for layer in layers if summarise([layer], ()).reformats)
    return int8 / total, sum(times.get(layer.name, 0.0) for layer in moving) / total


def off_grid(onnx: OnnxFile | str | Path) -> float:
    """Return the share of convolutions with channels that are no multiple of INT8's block of 32.

    The first layer's input and the heads' outputs are what they are and do not count; nor does a
    depthwise convolution, which no tensor core computes.

    Raises:
        ArtifactError: not an ONNX file.
    """
    graph = _graph(onnx)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    # A quantized weight stands behind a dequantizer.
    behind = {node.output[0]: node.input[0] for node in graph.node if node.input}
    ends = {value.name for value in graph.output}
    sides = []
    for number, node in enumerate(node for node in graph.node if node.op_type == "Conv"):
        shape = shapes.get(node.input[1]) or shapes[behind[node.input[1]]]
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if group > 1:
            continue
        taken = [] if number == 0 else [shape[1]]
        sides.append(taken if node.output[0] in ends else [*taken, shape[0]])
    off = sum(any(channels % INT8_BLOCK for channels in each) for each in sides)
    return off / max(1, len(sides))


def _graph(onnx: OnnxFile | str | Path) -> Any:
    file = onnx if isinstance(onnx, OnnxFile) else OnnxFile(onnx)
    try:
        return model_class().FromString(file.data).graph
    except Exception as error:  # protobuf's exceptions share no other base
        raise ArtifactError(f"{onnx}: not an ONNX file: {error}") from error
