"""Train the photo detector (people and cars) on labelled photographs, on SqueezeNet's weights.

    python tools/train/train_photo.py --train coco/train --val coco/val \\
        --body compressed_SqueezeNet.net --out runs/photo --minutes 85 --bfloat16

OUT receives NAME.safetensors (the average of the weights over time, for `export-engine`),
NAME.best.safetensors (the same at its best on the images watched), NAME.last.safetensors (what
`--resume` goes on from) and NAME.log. Where `--steps` are done before `--minutes` are over, the
same arguments, versions and processor give the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from edge.data.datasets import Dataset, load, open_dataset
from edge.data.metrics import Metrics, evaluate_detections
from edge.files import write_file
from edge.models.blocks import DarknetMaxPool
from edge.models.checkpoint import save_safetensors
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig, squeezedet_spec
from edge.models.squeezenet_net import load_body, read_squeezenet_net
from edge.optional import require
from edge.runtime.detector import Detector
from edge.train.augment import Augmentation, Labelled
from edge.train.fit import follow
from export.graph.writer import write_onnx
from tools.train.photo_detector import batch, labelled, photo_anchors, photo_config, photo_loss

CLASSES = ("person", "car")
# Whole pictures, and without mosaics in the last part: what the detector will meet.
AUGMENTATION = Augmentation(scale=(0.7, 1.8), shift=0.15, mosaic=0.5)
PLAIN_FROM = 0.85
Report = Callable[[str], None]
Batch = tuple[torch.Tensor, torch.Tensor]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="labelled photographs")
    parser.add_argument(
        "--val", type=Path, required=True, help="labelled photographs to validate on"
    )
    parser.add_argument(
        "--body", type=Path, help="compressed_SqueezeNet.net; without it random weights"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="squeezedet-photo")
    parser.add_argument("--hw", type=int, nargs=2, default=(256, 352), metavar=("H", "W"))
    parser.add_argument(
        "--ship-hw",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input size of the written file, in place of --hw",
    )
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument(
        "--minutes", type=float, default=85.0, help="longest duration; the schedule ends by then"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="learning rate of the heads")
    parser.add_argument("--body-peak", type=float, default=2e-4, help="learning rate of the body")
    parser.add_argument("--decay", type=float, default=0.05, help="AdamW's weight decay")
    parser.add_argument(
        "--average", type=float, default=0.998, help="how slowly the averaged weights follow"
    )
    parser.add_argument("--freeze", type=int, default=4, help="freeze conv1 up to this fire module")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="faster where the CPU has AMX")
    parser.add_argument("--every", type=int, default=200, help="steps between two evaluations")
    parser.add_argument(
        "--images", type=int, default=100, help="number of images of --val to validate on"
    )
    parser.add_argument("--overfit", type=int, default=0, help="learn this many images by heart")
    parser.add_argument("--resume", action="store_true", help="continue from NAME.last.safetensors")
    return parser.parse_args(argv)


def reporter(log: Path, append: bool) -> Report:
    if not append:
        log.write_text("", "utf-8")

    def report(line: str) -> None:
        print(line, flush=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return report


@dataclass(eq=False)
class Run:
    """What a checkpoint holds."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0

    def save(self, path: Path) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
        facts = {"step": self.step, "seconds": self.seconds, "best": self.best}
        metadata = {"run": json.dumps(facts)}
        write_file(path, require("safetensors.torch").save(tensors, metadata=metadata))

    def resume(self, path: Path) -> None:
        with require("safetensors").safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["run"])
        self.model.load_state_dict(_below("model.", tensors))
        self.average.load_state_dict(_below("average.", tensors))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
        self.step, self.seconds, self.best = facts["step"], facts["seconds"], facts["best"]


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def build(options: argparse.Namespace, pictures: list[Labelled]) -> tuple[SqueezeDet, str]:
    """Return the network with SqueezeNet's body, its first layers frozen, and what was loaded."""
    hw = (options.hw[0], options.hw[1])
    anchors = photo_anchors(pictures, hw, 9, options.seed)
    config = photo_config(hw, options.classes, anchors)
    model = SqueezeDet(config)
    initialise(model, squeezedet_spec(config, options.name), options.seed)
    if options.body is None:
        return model, "random weights"
    filled = load_body(model, read_squeezenet_net(options.body))
    frozen = {"conv1", *(f"fire{number}" for number in range(2, options.freeze + 1))}
    for name, module in model.body.named_children():
        module.requires_grad_(not (options.freeze and name in frozen))
    return model, f"{', '.join(filled)} from {options.body.name}; frozen up to fire{options.freeze}"


def quicken(model: nn.Module) -> None:
    """Replace modules by faster ones with the same result; in place."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.ReLU):
                module.inplace = True
            elif isinstance(module, DarknetMaxPool) and module.pads == (0, 0, 1, 1):
                # With even sides, which the pyramid's input has, the last window hangs over by one.
                setattr(parent, name, nn.MaxPool2d(module.size, module.stride, ceil_mode=True))
    # The greatest of rectified values is the rectified greatest, a quarter of the work.
    body: Any = model.get_submodule("body")
    body.pool1 = nn.Sequential(body.pool1, body.conv1.act)
    body.conv1.act = nn.Identity()


def optimizer_of(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    groups = []
    for body, peak in ((True, options.body_peak), (False, options.peak)):
        mine = [
            p
            for name, p in model.named_parameters()
            if p.requires_grad and name.startswith("body.") == body
        ]
        for weights in (True, False):
            chosen = [p for p in mine if (p.ndim > 1) == weights]
            decay = options.decay if weights else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "peak": peak, "lr": peak})
    return torch.optim.AdamW(groups, fused=True)


def done(run: Run, options: argparse.Namespace, started: float) -> float:
    """Return the share of the schedule that is over, by steps or by time, whichever is larger."""
    minutes = (run.seconds + time.monotonic() - started) / 60
    part: float = max(run.step / options.steps, minutes / options.minutes)
    return part


def share_of_peak(step: int, part: float) -> float:
    """Return the share of the peak rate: a linear warm-up, then half a cosine to a hundredth."""
    cosine = (1 + math.cos(math.pi * min(part, 1.0))) / 2
    return min(1.0, (step + 1) / 150) * (0.01 + 0.99 * cosine)


def batches(
    pictures: list[Labelled], spec: Any, options: argparse.Namespace, run: Run, started: float
) -> Iterator[Batch]:
    """Yield batches without end, made ahead by a thread; each step has its own generator."""

    def make(step: int, plain: bool) -> Batch:
        rng = np.random.default_rng((options.seed, step))
        epoch, at = divmod(step * options.batch, len(pictures))
        orders = [
            np.random.default_rng((options.seed, 1, epoch + i)).permutation(len(pictures))
            for i in range(2 + options.batch // len(pictures))
        ]
        indices = np.concatenate(orders)[at : at + options.batch].tolist()
        changes = replace(AUGMENTATION, mosaic=0.0) if plain else AUGMENTATION
        return batch(pictures, indices, spec.contract, None if options.overfit else changes, rng)

    with ThreadPoolExecutor(1) as painter:
        first = run.step
        ahead = [
            painter.submit(make, first + i, done(run, options, started) > PLAIN_FROM)
            for i in range(2)
        ]
        for step in range(first + 2, 10**9):
            plain = done(run, options, started) > PLAIN_FROM
            ahead.append(painter.submit(make, step, plain))
            yield ahead.pop(0).result()


def train_step(run: Run, drawn: Batch, spec: Any, options: argparse.Namespace) -> dict[str, float]:
    images, targets = drawn
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        outputs = run.model(images)
    total, parts = photo_loss(outputs, targets, spec)
    if not math.isfinite(total.item()):
        raise FloatingPointError(f"the loss is {total.item()}; lower the learning rate")
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 10.0)
    run.optimizer.step()
    follow(run.average, run.model, min(options.average, (1 + run.step) / (10 + run.step)))
    return parts


Loaded = tuple[Dataset, list[Any]]


def held(path: Path, limit: int | None) -> Loaded:
    """Return a data set with its images in memory."""
    dataset = open_dataset(path, limit=limit)
    loaded = [load(item) for item in dataset.items]
    return replace(dataset, items=tuple(item for _, item in loaded)), [im for im, _ in loaded]


def evaluate(model: nn.Module, config: SqueezeDetConfig, data: Loaded, folder: Path) -> Metrics:
    """Evaluate the model as it ships: written as ONNX and run by the detector."""
    whole = SqueezeDet(config)
    whole.load_state_dict(model.state_dict())
    artifact = folder / "watched.onnx"
    write_onnx(whole.eval(), squeezedet_spec(config, "watched"), artifact)
    with Detector.open(artifact, score=0.01, iou=0.5) as detector:
        found = [detector(image) for image in data[1]]
    artifact.unlink()
    return evaluate_detections(data[0], found, config.classes)


def told(metrics: Metrics) -> str:
    names = "  ".join(f"{n} {f.ap50:.4f}" for n, f in metrics.by_class.items())
    sizes = "  ".join(f"{n} {f.map50:.3f}" for n, f in metrics.by_size.items())
    return (
        f"AP@.5 on {metrics.images} images: {names}  ({sizes}; all {metrics.map50_95:.4f} @.5:.95)"
    )


def train(
    run: Run,
    pictures: list[Labelled],
    config: SqueezeDetConfig,
    options: argparse.Namespace,
    watched: Loaded,
    report: Report,
) -> None:
    spec, stem = squeezedet_spec(config, options.name), options.out / options.name
    started, sums, since = time.monotonic(), dict[str, float](), run.step
    drawn = batches(pictures, spec, options, run, started)
    first = options.classes[0]
    while done(run, options, started) < 1:
        share = share_of_peak(run.step, done(run, options, started))
        for group in run.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        for name, part in train_step(run, next(drawn), spec, options).items():
            sums[name] = sums.get(name, 0.0) + part
        run.step += 1
        if run.step % 50 == 0:
            means = "  ".join(f"{n} {p / (run.step - since):.4f}" for n, p in sums.items())
            minutes = (run.seconds + time.monotonic() - started) / 60
            report(f"step {run.step:5d}  {means}  rate {share:.3f}  {minutes:6.2f} min")
            sums, since = {}, run.step
        if run.step % options.every == 0:
            metrics = evaluate(run.average, config, watched, options.out)
            report(f"step {run.step:5d}  {told(metrics)}")
            if metrics.by_class[first].ap50 > run.best:
                run.best = metrics.by_class[first].ap50
                save_safetensors(run.average, stem.with_suffix(".best.safetensors"), spec)
            seconds = run.seconds
            run.seconds += time.monotonic() - started
            run.save(stem.with_suffix(".last.safetensors"))
            run.seconds = seconds
    drawn.close()  # type: ignore[attr-defined]
    run.seconds += time.monotonic() - started


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / options.name
    report = reporter(stem.with_suffix(".log"), options.resume)
    report(
        "python tools/train/train_photo.py " + " ".join(argv if argv is not None else sys.argv[1:])
    )
    versions = f"torch {torch.__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}"
    report(f"{versions}, Python {platform.python_version()}, {options.threads} threads")
    pictures = labelled(open_dataset(options.train, limit=options.overfit or None), options.classes)
    model, loaded = build(options, pictures)
    config = model.config
    report(f"{sum(p.numel() for p in model.parameters())} parameters; {loaded}")
    report(f"{len(pictures)} pictures; anchors {config.anchors}")
    watched = (
        held(options.train, options.overfit)
        if options.overfit
        else held(options.val, options.images)
    )
    model = model.to(memory_format=torch.channels_last).train()
    quicken(model)
    run = Run(model, copy.deepcopy(model).eval(), optimizer_of(model, options))
    if options.resume:
        run.resume(stem.with_suffix(".last.safetensors"))
        report(f"resumed at step {run.step}")
    # Before the first step, so that what the evaluation lacks shows at once.
    report(f"step {run.step:5d}  {told(evaluate(run.average, config, watched, options.out))}")
    train(run, pictures, config, options, watched, report)
    report(f"trained in {run.seconds / 60:.1f} min, {run.step} steps")
    run.save(stem.with_suffix(".last.safetensors"))
    ship(run.average, config, options, stem.with_suffix(".safetensors"))
    if not options.overfit:
        finish(run.average, config, options, report)
    return 0


def ship(
    model: nn.Module, config: SqueezeDetConfig, options: argparse.Namespace, target: Path
) -> None:
    """Write the average as a file; its convolutions fit any input size."""
    height, width = options.ship_hw or config.hw
    shipped = replace(config, hw=(height, width))
    whole = SqueezeDet(shipped)
    whole.load_state_dict(model.state_dict())
    save_safetensors(whole.eval(), target, squeezedet_spec(shipped, options.name))


def finish(
    model: nn.Module, config: SqueezeDetConfig, options: argparse.Namespace, report: Report
) -> None:
    """Report figures over all of --val, at the trained input size and at its neighbours."""
    data = held(options.val, None)
    height, width = config.hw
    for more in (-32, 0, 32, 64, 96):
        hw = (height + more, width + round(more * width / height / 32) * 32)
        metrics = evaluate(model, replace(config, hw=hw), data, options.out)
        report(f"input {hw[1]}x{hw[0]}: {told(metrics)}")


if __name__ == "__main__":
    sys.exit(main())
