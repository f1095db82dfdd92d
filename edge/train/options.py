"""Options of `edge train` and `edge anchors`, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge.options import count, height_width, option
from edge.train.augment import Augmentation
from edge.train.schedule import Schedule, read_drops

__all__ = ["AnchorOptions", "TrainOptions", "for_overfitting", "read_augmentation", "schedule_for"]

_OVERFIT_STEPS, _OVERFIT_EPOCH, _OVERFIT_AVERAGE = 300, 50, 0.95
_LONGEST_WARMUP = 200


def read_augmentation(text: str) -> Augmentation | None:
    """Return the default augmentation changed as `text` says, or None for `none`.

    Args:
        text: `none`, or such as `mosaic=0,degrees=10,scale=0.8:1.2`.

    Raises:
        ValueError: an unknown name, or a value that is not a number in its range.
    """
    if text == "none":
        return None
    known = {field.name for field in dataclasses.fields(Augmentation)}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(known))}")
        try:
            numbers = tuple(float(number) for number in value.split(":"))
        except ValueError:
            raise ValueError(f"{part!r} is not NAME=NUMBER") from None
        if len(numbers) != (2 if name == "scale" else 1):
            raise ValueError(f"{part!r}: scale takes LOW:HIGH, every other name one number")
        changes[name] = numbers if name == "scale" else numbers[0]
    return replace(Augmentation(), **changes)


@dataclass(frozen=True)
class TrainOptions:
    """How a detector is trained; all but the model and its pictures.

    Attributes:
        val: labelled pictures to validate on after each epoch; the weights with the best mAP@.5
            are kept. Without them the last weights are.
        images: use at most this many pictures of --data, spread evenly
        val_images: use at most this many pictures of --val, spread evenly
        weights: start from these weights, from the input upwards to the first layer that does not
            fit: a zoo name, .safetensors, .npz, .weights, or a SqueezeNet's .net
        random_weights: start a built-in model from random weights, not from the shipped ones
        names: file of class names, one a line
        classes_from_data: give a Darknet network the classes of --data: their number, the filters
            before each head and the names; its other weights are kept as with --weights
        resize: how frames are fitted into the input: letterbox keeps the aspect ratio and pads,
            stretch does not
        hw: size of the network's input, in place of the cfg's
        seed: seed of random weights and of the order of the pictures
        epochs: number of passes over --data
        steps: number of optimizer steps, in place of --epochs
        epoch_steps: steps after which to validate and write a checkpoint, in place of one pass
            over --data
        batch: pictures in each step; more need more memory and give steadier steps
        peak: highest learning rate; lower it if the loss diverges
        warmup: steps in which the learning rate rises to its peak; without it a twentieth of all
            steps, at most 200
        drops: lower the learning rate in steps in place of half a cosine, such as 30:0.1,60:0.01:
            a tenth of the peak from epoch 30 on
        epoch_rate: change the learning rate between epochs only
        patience: stop after this many epochs without a better mAP@.5 on --val; 0 never stops early
        resume: continue from the checkpoint in the output folder
        fresh: start over although the output folder has the checkpoint of an earlier training,
            which is overwritten
        allow_overlap: validate although pictures of --val are, or look like, pictures of --data
        loss: ciou uses complete IoU and matches more boxes; published follows the papers
        optimizer: AdamW, or SGD with a momentum of 0.9
        decay: weight decay of the convolutions; more keeps weights smaller
        average: how slowly the averaged weights follow the trained ones, 0..1; the average is what
            is validated and written
        balance: weigh the classes by their rarity in --data
        scales: change the input size every ten steps
        augmentation: changes of the default augmentation, or none to resize only
        freeze: number of layers, counted from the input, that do not learn
        freeze_norm: do not train any batch norm
        overfit: learn this many pictures by heart, which checks labels and anchors; the exit
            status is 1 if that fails
        tensorboard: folder for TensorBoard event files
        device: what to train on; auto takes a GPU where there is one
        threads: CPU threads of torch
        bfloat16: run the forward pass in bfloat16 where it is safe
        keep_mib: memory for decoded pictures in MiB; the others are read again in each epoch
        output: folder for the files
        name: name of the files, in place of the model's
    """

    val: str | Path | None = option(None, metavar="D")
    images: int | None = option(None, metavar="N", check=count)
    val_images: int | None = option(None, metavar="N", check=count)
    weights: str | Path | None = option(None, metavar="F")
    random_weights: bool = False
    names: str | Path | None = option(None, metavar="F")
    classes_from_data: bool = False
    resize: Literal["letterbox", "stretch"] | None = None
    hw: tuple[int, int] | None = option(None, flag="--size", metavar="HxW", check=height_width)
    seed: int = 0
    epochs: int = option(50, metavar="N", check=count)
    steps: int | None = option(None, metavar="N", check=count)
    epoch_steps: int | None = option(None, metavar="N", check=count)
    batch: int = option(16, metavar="N", check=count)
    peak: float = option(2e-3, metavar="R")
    warmup: int | None = option(None, metavar="N")
    drops: tuple[tuple[int, float], ...] = option((), metavar="E:S,...", check=read_drops)
    epoch_rate: bool = False
    patience: int = option(0, metavar="N", check=count)
    resume: bool = False
    fresh: bool = False
    allow_overlap: bool = False
    loss: Literal["ciou", "published"] = "ciou"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    decay: float = option(1e-4, metavar="D")
    average: float = option(0.998, metavar="A")
    balance: bool = False
    scales: bool = option(False, flag="--multi-scale")
    augmentation: Augmentation | None = option(
        Augmentation(), flag="--augment", metavar="K=V,...", check=read_augmentation
    )
    freeze: int = option(0, metavar="N", check=count)
    freeze_norm: bool = False
    overfit: int = option(0, metavar="N", check=count)
    tensorboard: str | Path | None = option(None, metavar="DIR")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = option(None, metavar="N", check=count)
    bfloat16: bool = False
    keep_mib: int = option(4096, metavar="M", check=count)
    output: str | Path = option("out", flag="-o --output", metavar="DIR")
    name: str | None = option(None, metavar="N")

    def __post_init__(self) -> None:
        if not 0 <= self.average <= 1:
            raise ValueError(f"average is {self.average}; it takes a number from 0 to 1")
        if min(self.peak, self.decay, self.warmup or 0) < 0:
            raise ValueError("peak, decay and warmup must not be negative")
        if self.classes_from_data and self.names is not None:
            raise ValueError("--classes-from-data takes the names of the data; leave --names out")
        if self.resume and (self.fresh or self.overfit):
            raise ValueError("--resume goes neither with --fresh nor with --overfit")


@dataclass(frozen=True)
class AnchorOptions:
    """How anchor sizes are found.

    Attributes:
        k: number of anchors; more fit the boxes better and make the heads larger
        hw: size of the network's input
        resize: how frames are fitted into the input: letterbox keeps the aspect ratio and pads,
            stretch does not
        distance: distance between a box and an anchor: 1 - IoU, or Euclidean in pixels
        seed: seed of the boxes that the clustering starts from
        classes: names of the classes to use, with commas between; without them all
        images: use at most this many pictures, spread evenly
        largest: number of anchors up to which the curve goes; without it 15, or --k if that is more
    """

    k: int = option(6, metavar="N", check=count)
    hw: tuple[int, int] = option((416, 416), flag="--size", metavar="HxW", check=height_width)
    resize: Literal["letterbox", "stretch"] = "letterbox"
    distance: Literal["iou", "euclidean"] = "iou"
    seed: int = option(0, metavar="N")
    classes: tuple[str, ...] = option((), metavar="NAMES")
    images: int | None = option(None, metavar="N", check=count)
    largest: int | None = option(None, metavar="N", check=count)


def for_overfitting(options: TrainOptions, pictures: int) -> TrainOptions:
    """Return the options that learn `pictures` pictures by heart: unchanged, in few steps."""
    return replace(
        options,
        augmentation=None,
        scales=False,
        batch=min(options.batch, pictures),
        steps=options.steps or _OVERFIT_STEPS,
        epoch_steps=options.epoch_steps or _OVERFIT_EPOCH,
        average=min(options.average, _OVERFIT_AVERAGE),
    )


def schedule_for(options: TrainOptions, pictures: int) -> tuple[Schedule, int]:
    """Return the schedule for this many pictures, and the steps of an epoch."""
    epoch = options.epoch_steps or max(1, -(-pictures // options.batch))
    steps = options.steps or options.epochs * epoch
    warmup = min(_LONGEST_WARMUP, steps // 20) if options.warmup is None else options.warmup
    schedule = Schedule(
        steps,
        options.peak,
        warmup,
        options.decay,
        options.average,
        options.bfloat16,
        epoch if options.epoch_rate or options.drops else 0,
        options.drops,
        options.optimizer,
    )
    return schedule, epoch
