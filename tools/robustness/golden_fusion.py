"""Write tests/golden/fusion.npz: box sets, and what the authors' implementation makes of them.

pip install ensemble-boxes                         # in an environment of its own
python tools/robustness/golden_fusion.py tests/golden/fusion.npz [SETS]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

Views = list[tuple[Any, Any, Any]]
SIDE = 1000.0


def box_set(rng: np.random.Generator) -> Views:
    """One to four views of up to seven objects of three classes, a fifth of them missed."""
    count = int(rng.integers(1, 8))
    low, size = rng.uniform(50, 600, (count, 2)), rng.uniform(50, 400, (count, 2))
    label = rng.integers(0, 3, count)
    views = []
    for _ in range(rng.integers(1, 5)):
        seen = rng.random(count) < 0.8
        boxes = np.concatenate([low, low + size], 1)[seen] + rng.normal(
            scale=10, size=(seen.sum(), 4)
        )
        score = rng.uniform(0.05, 1, seen.sum())
        views.append(
            (boxes.clip(0, SIDE).astype(np.float32), score.astype(np.float32), label[seen])
        )
    return views


def main() -> None:
    from ensemble_boxes import weighted_boxes_fusion

    rng, found = np.random.default_rng(0), {}
    for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20):
        views = box_set(rng)
        boxes, scores, labels = ([np.float64(view[i]) for view in views] for i in range(3))
        fused = weighted_boxes_fusion(
            [one / SIDE for one in boxes], scores, labels, iou_thr=0.55, skip_box_thr=0
        )
        lengths = [len(view[1]) for view in views]
        found[f"{number}_lengths"] = np.array(lengths)
        for i, name in enumerate(("boxes", "scores", "labels")):
            found[f"{number}_{name}"] = np.concatenate([view[i] for view in views])
            whole = np.asarray(fused[i], np.float32) * (SIDE if i == 0 else 1)
            found[f"{number}_fused_{name}"] = whole.reshape(-1, 4) if i == 0 else whole
    np.savez_compressed(Path(sys.argv[1]), **found)


if __name__ == "__main__":
    main()
