"""Train a built-in detector on the built-in world and write its asset.

    python tools/train/train_builtin.py tiny-yolo-scenes --seed 7 --out runs/tiny-yolo-scenes

    python tools/train/train_builtin.py tiny-yolo-scenes --start shipped --seed 8 --peak 5e-4 \
        --out runs

The same arguments, versions and processor give the same weights. OUT receives NAME.onnx,
NAME.safetensors (with what rebuilds the network for further training) and NAME.log.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import nn

from edge.data.datasets import FRESH_SEED, load, open_dataset
from edge.data.metrics import Metrics, evaluate_detections
from edge.data.world.world import Scene, scene_set
from edge.letterbox import Letterbox
from edge.models.builtin import NAMES, build
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.runtime.detector import Detector
from edge.spec import InputContract, ModelSpec
from edge.train.batches import as_tensor
from edge.train.distributed import device_of
from edge.train.fit import Schedule, fit
from edge.train.losses.ciou import KINDS, loss_for
from edge.train.start import shipped_start
from export.graph.writer import write_onnx

# Scenes of one seed stay clear of the next seed's, and all of those for evaluation.
SEEDS_EACH = 100_000
HIGHEST_SEED = FRESH_SEED // SEEDS_EACH - 2


@dataclass(frozen=True, eq=False)
class Pool:
    """Scenes held in memory as the network sees them: resized, not yet scaled.

    Attributes:
        images: (N, H, W, 3) uint8 BGR, the network's input size, borders included.
        boxes: for each, (M, 5) float32: class, then centre and size in input pixels.
    """

    images: NDArray[np.uint8]
    boxes: tuple[NDArray[np.float32], ...]
    contract: InputContract

    def batch(self, rng: Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw images (size, 3, H, W) float32 as the contract scales them, and targets (M, 6)."""
        chosen = rng.integers(len(self.images), size=size).tolist()
        images, targets = np.empty((size, *self.images.shape[1:]), np.uint8), []
        for index, source in enumerate(chosen):
            images[index] = _jitter(self.images[source], rng)
            boxes = self.boxes[source]
            if rng.random() < 0.5:
                images[index] = images[index, :, ::-1]
                boxes = boxes * (1, -1, 1, 1, 1) + (0, images.shape[2], 0, 0, 0)
            targets.append(np.insert(boxes, 0, index, axis=1))
        return self.tensor(images), torch.from_numpy(np.concatenate(targets).astype(np.float32))

    def tensor(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Return images (N, H, W, 3) BGR as the contract's (N, 3, H, W), channels last."""
        return as_tensor(images, self.contract)


def _jitter(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Change hue by +-9 degrees, saturation by +-40 %, brightness by +-30 %; not the border."""
    hue, saturation, value = rng.uniform(-1, 1, 3) * (9, 0.4, 0.3)
    level = np.arange(256)
    tables = [(level + hue / 2) % 180, level * (1 + saturation), level * (1 + value)]
    table = np.clip(np.stack(tables, axis=1), 0, 255).astype(np.uint8)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


def make_pool(scenes: Iterable[Scene], count: int, contract: InputContract) -> Pool:
    """Resize `count` scenes as the contract says, and keep them in memory."""
    images = np.full((count, *contract.hw, 3), contract.pad_value, np.uint8)
    boxes: list[Any] = []
    for image, scene in zip(images, scenes, strict=True):
        fit = Letterbox.fit((scene.image.shape[0], scene.image.shape[1]), contract)
        (height, width), (left, top) = fit.resized_hw, fit.pad_xy
        image[top : top + height, left : left + width] = cv2.resize(
            scene.image, (width, height), interpolation=cv2.INTER_LINEAR
        )
        boxes.append(_centred(fit.to_input(scene.xyxy), scene.class_id))
    return Pool(images, tuple(boxes), contract)


def _centred(xyxy: NDArray[Any], class_id: NDArray[Any]) -> NDArray[np.float32]:
    centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
    return np.concatenate([class_id[:, None], centre, size], axis=1).astype(np.float32)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument(
        "--seed",
        type=int,
        default=7,
        help=f"seed of weights, scenes and batches, 0..{HIGHEST_SEED}",
    )
    parser.add_argument(
        "--scenes", type=int, default=10_000, help="number of training scenes, kept in memory"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument(
        "--start", help="shipped, or a .safetensors whose fitting tensors to start from"
    )
    parser.add_argument(
        "--loss", choices=KINDS, default="ciou", help="complete IoU, or the papers' own loss"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16", action="store_true", help="faster where the CPU has AMX or AVX-512 BF16"
    )
    parser.add_argument(
        "--images", type=int, default=500, help="number of unseen scenes to evaluate on"
    )
    options = parser.parse_args(argv)
    if not 0 <= options.seed <= HIGHEST_SEED:
        parser.error(f"--seed takes 0..{HIGHEST_SEED}: higher ones train on scenes that evaluate")
    if options.scenes > SEEDS_EACH:
        parser.error(f"--scenes takes {SEEDS_EACH} at most")
    return options


def reporter(log: Path) -> Callable[[str], None]:
    """Print a line and append it to the log."""
    log.write_text("", "utf-8")

    def report(line: str) -> None:
        print(line, flush=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return report


def begin_with(model: nn.Module, name: str, source: str) -> str:
    """Copy tensors of the same name and shape from `source`, and return what was copied."""
    if source == "shipped":
        begun = shipped_start(name)
        model.load_state_dict(begun.module.state_dict())
        return begun.notes[0]
    checkpoint = Path(source)
    mine, theirs = model.state_dict(), load_safetensors(checkpoint)[0].state_dict()
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in mine and mine[name].shape == value.shape
    }
    model.load_state_dict(mine | fitting)
    return f"{len(fitting)} of {len(mine)} tensors begin as in {checkpoint.name}"


def train(
    options: argparse.Namespace, model: nn.Module, spec: ModelSpec, report: Callable[[str], None]
) -> nn.Module:
    start = time.monotonic()
    scenes = scene_set(options.scenes, (1 + options.seed) * SEEDS_EACH)
    pool = make_pool(scenes, options.scenes, spec.contract)
    report(f"{options.scenes} scenes rendered in {time.monotonic() - start:.0f} s")
    rng = np.random.default_rng(options.seed)
    schedule = Schedule(
        options.steps, options.peak, min(200, options.steps // 10), bfloat16=options.bfloat16
    )
    device = device_of(options.device)
    model = model.to(device, memory_format=torch.channels_last)
    seen = 0
    loss = loss_for(spec, options.loss, seen=lambda: seen)
    with ThreadPoolExecutor(1) as painter:
        ahead = [painter.submit(pool.batch, rng, options.batch) for _ in range(2)]

        def batches() -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal seen
            ahead.append(painter.submit(pool.batch, rng, options.batch))
            images, targets = ahead.pop(0).result()
            seen += options.batch
            return images.to(device), targets.to(device)

        model = fit(model, loss, batches, schedule, report)
    return model.to("cpu", memory_format=torch.contiguous_format)


def evaluate(artifact: Path, images: int) -> Metrics:
    dataset = open_dataset(f"scenes://?count={images}")
    found, items = [], []
    with Detector.open(artifact, score=0.005, iou=0.45, multi_label=True) as detector:
        for scene in dataset.items:
            image, item = load(scene)
            found.append(detector(image))
            items.append(item)
    return evaluate_detections(replace(dataset, items=tuple(items)), found)


def describe(metrics: Metrics) -> list[str]:
    lines = [
        f"{metrics.images} fresh scenes: mAP@.5 {metrics.map50:.4f}  "
        f"mAP@.5:.95 {metrics.map50_95:.4f}"
    ]
    for name, figures in metrics.by_class.items():
        lines.append(f"  {name:14s} AP@.5 {figures.ap50:.4f}  {figures.boxes} boxes")
    return lines


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / options.name
    report = reporter(stem.with_suffix(".log"))
    report(
        "python tools/train/train_builtin.py "
        + " ".join(argv if argv is not None else sys.argv[1:])
    )
    versions = f"torch {torch.__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}"
    report(f"{versions}, Python {platform.python_version()}, {options.threads} threads")
    model, spec, facts = build(options.name, options.seed)
    report(f"{sum(p.numel() for p in model.parameters())} parameters")
    if options.start:
        report(begin_with(model, options.name, options.start))
    start = time.monotonic()
    model = train(options, model, spec, report)
    report(f"trained in {(time.monotonic() - start) / 60:.1f} min")
    settings = {
        key: str(value) for key, value in vars(options).items() if key not in ("out", "start")
    }
    write(model, spec, {**settings, **facts}, stem, report)
    for line in describe(evaluate(stem.with_suffix(".onnx"), options.images)):
        report(line)
    return 0


def write(
    model: nn.Module,
    spec: ModelSpec,
    arguments: dict[str, Any],
    stem: Path,
    report: Callable[[str], None],
) -> None:
    save_safetensors(model, stem.with_suffix(".safetensors"), spec)
    artifact = stem.with_suffix(".onnx")
    write_onnx(model, spec, artifact, arguments=arguments)
    report(f"{artifact.name}: {artifact.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
