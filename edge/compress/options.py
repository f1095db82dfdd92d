"""Options of the commands that make networks smaller; their flags and help are made from these."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import CompressionError
from edge.options import count, inner_share, option, positive

__all__ = [
    "RECIPES",
    "ChannelOptions",
    "Coding",
    "CompressOptions",
    "DissectOptions",
    "FineTuneOptions",
    "Importance",
    "ModelOptions",
    "NarrowOptions",
    "NoiseOptions",
    "PackageOptions",
    "PruneOptions",
    "PruneTarget",
    "Scope",
    "ShareOptions",
    "Spread",
    "Start",
    "WeightRecipe",
    "milliseconds",
    "model_options",
]

Importance = Literal["taylor", "l1", "gamma", "dissection"]
Spread = Literal["global", "layer"]
Scope = Literal["lamp", "global", "layer", "loss"]
Start = Literal["linear", "density", "random", "optimal"]
Coding = Literal["auto", "ans", "huffman", "packed"]
_MOST_BITS = 12


def _natural(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else count(text)


def _at_least_zero(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise ValueError(f"{text} is not a number of at least 0")
    return value


def _share_below_one(text: str) -> float:
    """A number from 0, included, to 1, excluded."""
    value = _at_least_zero(text)
    if value >= 1:
        raise ValueError(f"{text} is not at least 0 and below 1")
    return value


def _bits(text: str) -> int:
    """A whole number of bits, 1 to 12."""
    return int(_in_range(count(text), text))


def _mean_bits(text: str) -> float:
    """A number of bits, 1 to 12."""
    return _in_range(positive(text), text)


def _in_range(value: float, text: str) -> float:
    if not 1 <= value <= _MOST_BITS:
        raise ValueError(f"{text} is not a number of bits, 1 to {_MOST_BITS}")
    return value


@dataclass(frozen=True)
class ModelOptions:
    """How to read a model whose own file does not say everything.

    Attributes:
        weights: file of Darknet weights, if it does not lie beside the cfg
        names: file of class names, one on a line
        resize: how the model was trained to see frames: letterbox as pjreddie's Darknet does it,
            stretch as AlexeyAB's
    """

    weights: str | None = option(None, metavar="F")
    names: str | None = option(None, metavar="F")
    resize: Literal["letterbox", "stretch"] | None = None


@dataclass(frozen=True)
class FineTuneOptions:
    """How a smaller network is trained.

    Attributes:
        steps: train for this many steps, all stages together; 0 trains nothing
        batch: number of pictures in a training step
        peak: highest learning rate (1e-3, or 1e-4 for a network without batch norms)
        teacher: weight in the loss of the full network's answers; more keeps the small network
            closer to the full one, 0 trains on labels alone
        labels: ignore the labels and learn from the full network's answers alone
        flip: train without mirrored pictures, for objects with writing on them
        augment: how strongly pictures are changed: mild changes colours, and size and place a
            little; strong adds mosaics, noise and other scales as edge train does, for few
            pictures
        seed: number that fixes the order of the pictures and their changes
        bfloat16: compute forward passes in bfloat16, which is faster on CPUs with AMX or
            AVX-512 BF16
    """

    steps: int = option(0, flag="--fine-tune", metavar="STEPS", check=_natural)
    batch: int = option(16, metavar="N", check=count)
    peak: float | None = option(None, metavar="R", check=positive)
    teacher: float = option(1.0, metavar="W", check=_at_least_zero)
    labels: bool = True
    flip: bool = True
    augment: Literal["mild", "strong"] = "mild"
    seed: int = option(0, metavar="N")
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not self.labels and self.teacher <= 0:
            raise CompressionError(
                "without labels and without a teacher there is nothing to learn from"
            )

    def to_json(self) -> dict[str, Any] | None:
        """The options as the result of a command states them; None without training."""
        return {**vars(self), "flip": 0.5 if self.flip else 0.0} if self.steps else None


@dataclass(frozen=True)
class ChannelOptions:
    """Which channels are removed first, and what must stay.

    Attributes:
        importance: how the worth of a channel is measured: taylor by what the loss loses without
            it, l1 by its weights, gamma by its batch norm, dissection by its answers
        spread: where channels are removed: global takes them wherever they cost least, layer
            takes the same share of every layer
        least: smallest share of a layer's channels to keep
        align: make the numbers of channels multiples of this; 32 suits INT8 tensor cores
        untouched: number of convolutions, from the first, that keep all channels
        profile_images: number of training pictures that importance is measured and weights are
            fitted on
        refit: leave the remaining weights as they are instead of fitting them to the full
            network's outputs
        table: file with a latency table that was measured on another machine, used unchanged
        board: take milliseconds from what edge estimate predicts for this board, which need not
            be here, instead of measuring them on this machine
        precision: with --board, the precision of the engine that is to be fast
        threads: number of onnxruntime threads in evaluation and timing
    """

    importance: Importance = "taylor"
    spread: Spread = "global"
    least: float = option(0.2, metavar="S", check=inner_share)
    align: int = option(8, metavar="N", check=count)
    untouched: int = option(0, metavar="N", check=_natural)
    profile_images: int = option(128, metavar="N", check=count)
    refit: bool = True
    table: str | None = option(None, metavar="F")
    board: str | None = option(None, metavar="NAME")
    precision: Literal["fp32", "fp16", "int8"] = "int8"
    threads: int = option(1, metavar="N", check=count)

    def __post_init__(self) -> None:
        if self.table is not None and self.board is not None:
            raise CompressionError(
                f"{self.table}: milliseconds are from a table or predicted for a board; leave out "
                "--table or --board"
            )
        if self.align < 1 or not 0 < self.least <= 1:
            raise CompressionError(
                f"align {self.align} takes 1 or more, least {self.least:g} a share above 0"
            )

    def to_json(self) -> dict[str, Any]:
        """The options as the result of a command states them."""
        names = ("importance", "spread", "align", "least", "untouched")
        return {
            **{name: getattr(self, name) for name in names},
            "images": self.profile_images,
            "refit": self.refit,
            "threads": self.threads,
            "table": self.table,
            **({"board": self.board, "precision": self.precision} if self.board else {}),
        }


@dataclass(frozen=True)
class PruneTarget:
    """What pruning has to reach.

    Attributes:
        kind: `ratio` of the channels to remove; `ms`; `share` of the full network's milliseconds;
            `mb` of the FP32 ONNX file; `drop`, the points of mAP@.5 that may be lost
        value: in that unit
    """

    kind: Literal["ratio", "ms", "share", "mb", "drop"]
    value: float

    def __post_init__(self) -> None:
        most = {"ratio": 1.0, "share": 1.0}.get(self.kind, math.inf)
        if not 0 < self.value < most:
            raise CompressionError(f"a {self.kind} of {self.value:g} cannot be a target")


def milliseconds(text: str) -> PruneTarget:
    """A number of milliseconds, or a percentage of the present time."""
    if text.endswith("%"):
        return PruneTarget("share", inner_share(str(positive(text[:-1]) / 100)))
    return PruneTarget("ms", positive(text))


@dataclass(frozen=True)
class NarrowOptions(ModelOptions):
    """What pruning and dissection have in common.

    Attributes:
        train: labelled pictures to learn from (scenes for a built-in model, else those of --data)
        images: judge on at most this many pictures of --data, spread evenly
        output: folder for the files
        name: name of the files, without their endings
        channels: which channels are removed
        tuning: how the small network is trained
    """

    train: str | None = option(None, metavar="D")
    images: int | None = option(None, metavar="N", check=count)
    output: str = option("out", flag="-o --output", metavar="DIR")
    name: str | None = option(None, metavar="NAME")
    channels: ChannelOptions = ChannelOptions()
    tuning: FineTuneOptions = FineTuneOptions()


@dataclass(frozen=True)
class PruneOptions(NarrowOptions):
    """How `edge prune` makes a network narrower.

    Attributes:
        target: what to reach; exactly one of this and `plan`
        plan: repeat the plan of an earlier run
        begin: with --plan, the .safetensors of the run that wrote the plan, to train it further
    """

    target: PruneTarget | None = option(None, hidden=True)
    plan: str | None = option(None, metavar="F")
    begin: str | None = option(None, metavar="F")

    def __post_init__(self) -> None:
        if self.begin is not None and self.plan is None:
            raise CompressionError(
                f"{self.begin}: a network is trained further only with its plan: give --plan"
            )
        if (self.target is None) == (self.plan is None):
            raise CompressionError("pruning takes either a target or a plan")


@dataclass(frozen=True)
class DissectOptions(NarrowOptions):
    """How `edge dissect` keeps some classes of a network.

    Attributes:
        keep: share of the channels to keep, in no layer less than the share of the classes
        channels: which channels are removed; `least` becomes at least the share of the classes
    """

    channels: ChannelOptions = ChannelOptions(importance="dissection", spread="layer", untouched=2)
    keep: float = option(0.5, metavar="S", check=inner_share)


@dataclass(frozen=True)
class WeightRecipe:
    """What is done to single weights.

    Attributes:
        prune: share of the weights to remove
        scope: how layers share the pruning: lamp by arXiv:2010.07611, global by size, layer the
            same share of each, loss by what the loss would lose on pictures, without --fine-tune
            (loss where there are pictures and no training, else lamp)
        two_four: remove two of every four weights instead, for sparse tensor cores
        bits: bits of an index into a layer's values, so that 2 to this power values are possible.
            A fraction such as 2.3 limits the mean over all weights, and gives more to the layers
            that need it, which takes pictures
        start: how k-means begins (optimal): optimal is the best for a histogram of the weights
        sharing: share of the training steps for weights that share values (0.4); with --pruned it
            is all of them
        coding: how indices are coded (auto); auto takes what gives the smallest file
        half: store centroids and biases in FP32, not in FP16
        scaled: give each output channel a scale beside the values of its layer, which few bits
            need
    """

    prune: float = option(0.6, metavar="S", check=_share_below_one)
    scope: Scope | None = None
    two_four: bool = False
    bits: float = option(5, metavar="B", check=_mean_bits)
    start: Start = "optimal"
    sharing: float = option(0.4, metavar="S", check=_share_below_one)
    coding: Coding = "auto"
    half: bool = option(True, flag="--full")
    scaled: bool = option(False, flag="--scales")

    @property
    def spread(self) -> bool:
        """Whether layers differ in bits."""
        return not float(self.bits).is_integer()


RECIPES = {"plain": WeightRecipe(), "deep": WeightRecipe(prune=0.86, bits=3, scaled=True)}


@dataclass(frozen=True)
class PackageOptions(ModelOptions):
    """What the commands that write a package have in common.

    Attributes:
        output: the package to write
        images: judge on at most this many pictures of --data, spread evenly
        threads: number of onnxruntime threads in the evaluation
        name: name of the detector in the package, instead of the model's
    """

    output: str = option("out.edgez", hidden=True)
    images: int | None = option(None, metavar="N", check=count)
    threads: int = option(1, metavar="N", check=count)
    name: str | None = option(None, metavar="NAME")


@dataclass(frozen=True)
class CompressOptions(PackageOptions):
    """How `edge compress` makes the file of a network smaller.

    Attributes:
        recipe: what is done to the weights
        tuning: how the network is trained; its steps are those of all stages together
        train: pictures to learn from; only --fine-tune needs their labels
        pruned: F.pruned.safetensors of an earlier run, which is only shared and coded
        begin: F.pruned.safetensors of an earlier run, which is pruned and trained further
        refit: without --fine-tune, prune and round every weight by itself; no other weight makes
            up for its error
    """

    recipe: WeightRecipe = RECIPES["plain"]
    tuning: FineTuneOptions = FineTuneOptions()
    train: str | None = option(None, metavar="D")
    pruned: str | None = option(None, metavar="F")
    begin: str | None = option(None, metavar="F")
    refit: bool = True

    def __post_init__(self) -> None:
        if self.pruned is not None and self.begin is not None:
            raise CompressionError(
                "--pruned shares the values of a pruned network and --begin prunes it further: "
                "give one of them"
            )
        if self.recipe.scope == "loss" and self.tuning.steps:
            raise CompressionError(
                "--scope loss is measured on pictures without training; with --fine-tune take "
                "lamp, global or layer"
            )


@dataclass(frozen=True)
class NoiseOptions(PackageOptions):
    """How `edge compress --noise-db` finds the smallest package of a given noise.

    Attributes:
        noise_db: keep this signal-to-noise ratio at the network's outputs, in decibels, without
            training; more makes the package larger and more exact
        train: pictures that show how rounding errors cancel (other pictures of --data)
        images: number of pictures that the noise is measured on
        coding: how indices are coded
        dead: part of a step from which on a weight is rounded away from zero; 0.5 is plain
            rounding, more leaves more zeros
    """

    noise_db: float = option(30.0, metavar="DB")
    train: str | None = None
    images: int | None = None
    coding: Coding = "auto"
    # A little above one half, so that what barely rounds to the first step is zero.
    dead: float = option(0.55, hidden=True)

    def __post_init__(self) -> None:
        if not math.isfinite(self.noise_db):
            raise CompressionError(f"a noise of {self.noise_db} dB cannot be kept")


@dataclass(frozen=True)
class ShareOptions(PackageOptions):
    """How `edge share` reduces each layer to a few weight values.

    Attributes:
        bits: give each layer 2 to the power of this many values
        start: how k-means begins: linear spreads the first centres over the range of the weights
        coding: how indices are coded; packed gives whole bits to each, auto the smallest file
        half: store centroids and biases in FP32, not in FP16
    """

    bits: int = option(5, metavar="B", check=_bits)
    start: Start = "linear"
    coding: Coding = "packed"
    half: bool = option(True, flag="--full")


def model_options(options: ModelOptions) -> dict[str, Any]:
    """Return what `options` say of the model alone, as keyword arguments of `load_model`."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(ModelOptions)}
