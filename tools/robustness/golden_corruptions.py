"""Write tests/golden/corruptions.npz: what the published implementation makes of one picture.

    pip install imagecorruptions                       # in an environment of its own
    python tools/robustness/golden_corruptions.py tests/golden/corruptions.npz

imagecorruptions 1.1.2 (Michaelis et al., arXiv:1907.07484) with the same random seed; `glass_blur`
and `fog` take two names back that newer releases of scikit-image and NumPy dropped. Left out are
those whose random stream or pictures are their own: impulse_noise, glass_blur, frost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HW = (36, 44)
SEED, SEVERITY = 5, 2
NAMES = (
    "gaussian_noise",
    "shot_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)


def picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture with edges, colours and gradients, RGB."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    wave = np.sin(x / 5.0) * np.cos(y / 7.0)
    planes = (128 + 100 * wave, 40 + 4 * y, 255 * ((x // 8 + y // 8) % 2))
    return np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)


def main() -> None:
    np.float_ = np.float64  # type: ignore[attr-defined]
    import imagecorruptions

    found = {"picture": picture()}
    for name in NAMES:
        np.random.seed(SEED)
        made = imagecorruptions.corrupt(picture(), corruption_name=name, severity=SEVERITY)
        found[name] = np.asarray(made, np.uint8)
    np.savez_compressed(Path(sys.argv[1]), **found)


if __name__ == "__main__":
    main()
