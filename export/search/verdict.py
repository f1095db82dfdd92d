"""INT8, FP16 or mixed: one line, the reasons and the measured facts behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.onnx_proto import model_class
from export.engine.layer_report import LayerInfo, summarise
from export.search.search import FEW_PICTURES, within

__all__ = [
    "CANNOT_TELL",
    "DROP",
    "FLOOR_DB",
    "Facts",
    "Verdict",
    "decide",
    "int8_share",
    "off_grid",
]

# What a sound INT8 network keeps to its heads, as in `edge.measure.noise`.
FLOOR_DB = 12.0
# A gain below it is no reason to lose accuracy.
_GAIN = 1.03
# mAP that may be lost where the user states no budget.
DROP = 0.01
# TensorRT's INT8 kernels take channels in blocks of 32 (its formats CHW32 and HWC32).
INT8_BLOCK = 32
# mAP@.5 of a network that was given the wrong pictures or names, not of a weak one.
_BLIND = 0.05
_NAMED = 6
# The choice where times vary too much to say which precision is faster.
CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Facts:
    """What was measured of a network in INT8 (or mixed) and in floating point.

    Attributes:
        target: what ran it.
        on_engine: whether that was a TensorRT engine on its GPU.
        engine_ms: median milliseconds of the network by precision: `int8`, `fp16`, `fp32`.
        pipeline_ms: the same from frame to boxes.
        head_db: signal to noise of the heads against FP32; None where it was not measured.
        measured_on: the pictures that `head_db` is of, or why it was not measured.
        unsure: by precision, how far the time of INT8 against it may be off: the half width of
            the 95 % interval of the logarithm of their ratio.
        disturbed: what else the machine did while it was timed.
        drop: mAP lost against FP32 and the bounds of its 95 % interval; None without labels.
        fp32_map50: FP32's own mAP on the same pictures.
        pictures: that `drop` was measured on, copies counted.
        budget: mAP that may be lost.
        kept: convolutions out of INT8.
        noisy: the fewest convolutions that must leave INT8 for the heads to come back to
            `FLOOR_DB`, by an estimate; each with the heads' dB when it alone is quantized.
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
    measured_on: str = ""
    unsure: Mapping[str, float] = field(default_factory=dict)
    disturbed: tuple[str, ...] = ()
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
        choice: `INT8`, `FP16`, `mixed`, or `cannot tell` where times vary too much.
        sentence: the choice and what decided, in one line.
        reasons: one fact each, what decided first.
        facts: as measured.
        keep: convolutions to keep out of INT8; empty where INT8 or FP16 serves as it is.
        advice: what to do next.
    """

    choice: str
    sentence: str
    reasons: tuple[str, ...]
    facts: Facts
    keep: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The verdict as `export-engine --json` writes it."""
        return asdict(self)


def decide(facts: Facts) -> Verdict:
    """Choose the precision that is accurate enough and fastest on the target.

    INT8 must pay: where it is not faster than floating point, there is no reason to lose anything.
    A budget that the user states must hold by the 95 % bound, as in a search. Where accuracy
    leaves a choice and times vary too much to make it, the verdict says so.
    """
    accurate, pays = _accurate(facts), _pays(facts)
    choice = _choice(facts, accurate, pays)
    accuracy, speed = _accuracy_reason(facts, accurate), _speed_reason(facts, pays)
    speed_decides = pays is not True and (accurate or bool(facts.noisy))
    ordered = (speed, accuracy) if speed_decides else (accuracy, speed)
    keep = tuple(name for name, _ in facts.noisy) if choice == "mixed" and not accurate else ()
    where = "" if facts.on_engine else " on this CPU"
    if choice == CANNOT_TELL:
        where = " on this machine now" if facts.on_engine else " on this CPU now"
    return Verdict(
        choice,
        f"{choice}{where}: {ordered[0]}",
        (*ordered, *_more(facts)),
        facts,
        keep,
        tuple(_advice(facts, accurate, choice, keep)),
    )


def _choice(facts: Facts, accurate: bool, pays: bool | None) -> str:
    if not accurate and not facts.noisy:
        return "FP16"
    if pays is None:
        return CANNOT_TELL
    if not pays:
        return "FP16"
    return "INT8" if accurate and not facts.kept else "mixed"


def _advice(facts: Facts, accurate: bool, choice: str, keep: Sequence[str]) -> list[str]:
    """What to do next."""
    found = []
    if choice == CANNOT_TELL:
        found.append("end other work on this machine and export again")
    if keep:
        found.append(
            f"keep {_listed(keep)} out of INT8: --keep {','.join(keep[:_NAMED])}"
            if len(keep) <= _NAMED
            else f"keep {_listed(keep)} out of INT8: --max-map-drop {DROP:g} finds which"
        )
    elif not accurate and facts.budget is None and facts.drop is not None:
        found.append(f"--max-map-drop {DROP:g} looks for the layers to keep out of INT8")
    if facts.drop is None and facts.head_db is None and facts.measured_on:
        found.append("give labelled pictures with --accuracy-data to know what INT8 loses")
    if facts.fp32_map50 is not None and facts.fp32_map50 < _BLIND:
        found.append(
            "FP32 finds next to nothing too, so no precision mends it: check --resize and --names "
            "(edge evaluate NAME.fp32.onnx --try-contracts)"
        )
    if not facts.on_engine:
        found.append(
            "a GPU has other speeds: copy NAME.int8.onnx and NAME.fp16.onnx to it and run "
            "export-engine NAME.int8.onnx there"
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


def _gain(facts: Facts) -> tuple[float, float, float]:
    """How many times faster INT8 is than its rival: low, measured, high."""
    rival = _floating(facts)
    gain = facts.engine_ms[rival] / facts.engine_ms["int8"]
    factor = math.exp(facts.unsure.get(rival, 0.0))
    return gain / factor, gain, gain * factor


def _pays(facts: Facts) -> bool | None:
    """Whether INT8 is faster by enough; None where that cannot be told."""
    low, gain, high = _gain(facts)
    if facts.unsure.get(_floating(facts), 0.0) and low <= _GAIN < high:
        return None
    return gain > _GAIN


def _accuracy_reason(facts: Facts, accurate: bool) -> str:
    if facts.drop is not None:
        return _drop_reason(facts, facts.drop, accurate)
    if facts.head_db is None:
        why = f": {facts.measured_on}" if facts.measured_on else " (export-engine --int8 does)"
        return f"what it costs in accuracy was not measured{why}"
    word = "keeps" if accurate else "keeps only"
    floor = "" if accurate else f", under the {FLOOR_DB:g} dB of a sound network"
    on = f" on {facts.measured_on}" if facts.measured_on else ""
    return f"it {word} {facts.head_db:.1f} dB signal to noise at the heads{on}{floor}"


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


def _speed_reason(facts: Facts, pays: bool | None) -> str:
    rival, (low, gain, high) = _floating(facts), _gain(facts)
    ours, theirs = facts.engine_ms["int8"], facts.engine_ms[rival]
    mine = "mixed" if facts.kept else "INT8"
    if pays is None:
        ratio = f"{low:.2f} to {high:.2f} times as fast as"
    elif gain > _GAIN:
        ratio = f"{gain:.2f} times as fast as"
    elif gain < 1 / _GAIN:
        ratio = f"{1 / gain:.2f} times slower than"
    else:
        ratio = "no faster than"
    return f"{mine} is {ratio} {rival.upper()} ({ours:.2f} against {theirs:.2f} ms)"


def _more(facts: Facts) -> list[str]:
    """What was timed, why it is as fast as it is, and what the user would gain in practice."""
    found = [f"timed on {facts.target}", *facts.disturbed]
    if facts.int8_share is not None:
        found.append(f"{facts.int8_share:.0%} of the engine's time runs in INT8 layers")
    if facts.reformats:
        share = "" if facts.reformat_share is None else f" ({facts.reformat_share:.0%} of the time)"
        found.append(f"{facts.reformats} of {facts.layers} layers only move data{share}")
    if facts.off_grid and (_gain(facts)[1] < 1.3 or not facts.on_engine):
        found.append(
            f"{facts.off_grid:.0%} of the convolutions have channels that are no multiple of "
            f"{INT8_BLOCK}, as INT8 kernels of a GPU take them"
        )
    bound = facts.engine_ms["int8"] / facts.pipeline_ms["int8"]
    if bound < 0.5:
        found.append(
            f"the network takes only {bound:.0%} of the time from frame to boxes, so that a faster "
            "one gains little"
        )
    if facts.kept:
        found.append(f"{_listed(facts.kept)} stay out of INT8")
    if facts.noisy:
        named = ", ".join(f"{name} ({db:.1f} dB)" for name, db in facts.noisy[:_NAMED])
        more = len(facts.noisy) - _NAMED
        found.append(
            f"the heads would come back to {FLOOR_DB:g} dB, by an estimate, without INT8 in {named}"
            f"{f' and {more} more' if more > 0 else ''}; in brackets the dB with INT8 there alone"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def int8_share(times: Mapping[str, float], layers: Sequence[LayerInfo]) -> tuple[float, float]:
    """Return the shares of an engine's time in INT8 layers and in layers that only move data.

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
