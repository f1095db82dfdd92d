"""One training in several processes, which `torchrun` starts, each with a part of every batch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from edge.errors import DataError

__all__ = ["Team", "agree", "device_of", "mean", "parallel", "shared", "team"]

# Seconds. Gloo's threads outlive the group after DistributedDataParallel, and free the last tensors
# a little after the result is there. They need the interpreter's lock for it; a thread that still
# waits for the lock when the interpreter ends aborts the process.
_LETTING_GO = 0.2


@dataclass(frozen=True)
class Team:
    """The processes of one training.

    Attributes:
        rank: number of this process; process 0 reports and writes files.
        size: number of processes.
        device: what this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """Return the device called auto (a GPU if there is one), cpu or cuda.

    Raises:
        DataError: there is no CUDA device where one is asked for.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DataError(f"--device {name}: torch finds no CUDA device here; leave it out")
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """Join the processes that `torchrun` started (its RANK and WORLD_SIZE); without it, be alone.

    Args:
        device: auto, cpu or cuda; each process takes the GPU of its LOCAL_RANK.

    Raises:
        DataError: there is no CUDA device where one is asked for.
    """
    here = device_of(device, int(os.environ.get("LOCAL_RANK", 0)))
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Team(device=here)
        return
    if here.type == "cuda":
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield Team(distributed.get_rank(), size, here)
    finally:
        distributed.destroy_process_group()
        if here.type == "cpu":
            time.sleep(_LETTING_GO)


def parallel(model: nn.Module, members: Team) -> Any:
    """Return what the training calls: `model`, or with several processes a wrapper that shares
    gradients.

    A batch norm that learns sees only its own process's pictures. On GPUs it becomes torch's
    SyncBatchNorm, in `model` itself, whose tensors keep their names; torch has none for CPUs.

    Raises:
        DataError: a batch norm learns on several CPU processes.
    """
    if members.size == 1:
        return model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if any(norm.weight.requires_grad for norm in norms):
        if members.device.type == "cpu":
            raise DataError(
                "several CPU processes cannot share batch norm's statistics; add --freeze-norm, "
                "or train with one process"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    gpus = [members.device] if members.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=gpus)


def _together() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())


def shared(count: int, device: torch.device) -> float:
    """Return the sum of all processes' counts, at least 1, divided by their number."""
    if not _together():
        return max(1, count)
    summed = torch.tensor(float(count), dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return float(max(1.0, summed.item()) / distributed.get_world_size())


def mean(parts: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return each figure's mean over the processes."""
    if not _together():
        return parts
    values = torch.tensor(list(parts.values()), dtype=torch.float64, device=device)
    distributed.all_reduce(values)
    values /= distributed.get_world_size()
    return dict(zip(parts, values.tolist(), strict=True))


def agree(value: Any) -> Any:
    """Return the value of process 0 in every process."""
    if not _together():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
