"""What a detector says about one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detections", "iou_matrix"]


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image as a struct of arrays; none is normal.

    Attributes:
        xyxy: (N, 4) float32, left, top, right, bottom in pixels of the source image.
        score: (N,) float32, 0..1, highest first as `nms` leaves them.
        class_id: (N,) int32, index into the model's classes.
    """

    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    class_id: NDArray[np.int32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "xyxy", np.ascontiguousarray(self.xyxy, np.float32))
        object.__setattr__(self, "score", np.ascontiguousarray(self.score, np.float32))
        object.__setattr__(self, "class_id", np.ascontiguousarray(self.class_id, np.int32))
        count = len(self.score)
        if self.xyxy.shape != (count, 4) or self.score.ndim != 1 or self.class_id.shape != (count,):
            raise ValueError(
                f"detections do not fit together: xyxy {self.xyxy.shape}, "
                f"score {self.score.shape}, class_id {self.class_id.shape}"
            )

    @staticmethod
    def empty() -> Detections:
        """No detections."""
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: Any) -> Detections:
        """Those that a boolean mask, slice or integer array selects."""
        return Detections(self.xyxy[index], self.score[index], self.class_id[index])

    def to_json(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One object per box: class, class_id, score, xyxy (2 decimals; scores 5)."""
        return [
            {
                "class": classes[label],
                "class_id": label,
                "score": round(score, 5),
                "xyxy": [round(side, 2) for side in box],
            }
            for box, score, label in zip(
                self.xyxy.tolist(), self.score.tolist(), self.class_id.tolist(), strict=True
            )
        ]


def iou_matrix(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Intersection over union of boxes (N, 4) with boxes (M, 4), both xyxy: (N, M).

    Boxes of no area have IoU 0 with everything.
    """
    a = np.asarray(a, np.float32).reshape(-1, 4)
    b = np.asarray(b, np.float32).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(np.clip(a[:, 2:] - a[:, :2], 0, None), axis=1)
    area_b = np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1)
    union = area_a[:, None] + area_b[None, :] - inter
    iou: NDArray[np.float32] = np.zeros_like(inter)
    np.divide(inter, union, out=iou, where=union > 0)
    return iou
