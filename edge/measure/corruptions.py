"""Pictures made worse in known ways: what a camera on a pole sees at night, in rain and fog.

The fifteen corruptions at five severities are those of Hendrycks and Dietterich (ImageNet-C,
arXiv:1903.12261) as Michaelis et al. apply them to pictures of any size (arXiv:1907.07484). `frost`
is the one exception: the published one blends in six photographs, this one a crystal pattern that
is drawn. `CAMERA` holds what cameras do besides: rolling exposure, a sensor's noise in low light,
video at low bit rates, lost lines, dirt and rain on the lens.

`corrupt` takes and returns (H, W, 3) BGR uint8 pictures; the functions behind it work in RGB
with a severity from 0 to 4. Nothing moves further than a few pixels, so labelled boxes stay valid.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from edge.errors import DataError

__all__ = ["CAMERA", "COMMON", "EVERY", "corrupt", "corruption_names", "random_state"]

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Corruption = Callable[[Picture, int, RandomState], Picture]


def corrupt(picture: Picture, name: str, severity: int, rng: RandomState) -> Picture:
    """Return `picture` with the corruption `name` at `severity`.

    Args:
        picture: (H, W, 3) BGR uint8, at least 32 pixels high and wide.
        severity: 1 (least) to 5.
        rng: of `random_state`, so that every artifact sees the same picture.

    Raises:
        DataError: no such corruption, no such severity, or too small a picture.
    """
    if name not in EVERY:
        raise DataError(f"{name}: no such corruption; known: {', '.join(EVERY)}")
    if not 1 <= severity <= 5:
        raise DataError(f"severity {severity}: it goes from 1 to 5")
    if min(picture.shape[:2]) < 32:
        raise DataError(f"a picture of {picture.shape[:2]} is too small to corrupt; 32 pixels")
    # The reference draws noise for RGB; so do the functions below, whatever the order here.
    rgb = np.ascontiguousarray(picture[..., ::-1])
    return np.ascontiguousarray(EVERY[name](rgb, severity - 1, rng)[..., ::-1])


def corruption_names(words: str) -> tuple[str, ...]:
    """Read a list of corruptions: `all`, `common` (the fifteen), `camera`, or names with commas.

    Raises:
        DataError: no such corruption.
    """
    groups = {"all": tuple(EVERY), "common": tuple(COMMON), "camera": tuple(CAMERA)}
    found: list[str] = []
    for word in (word.strip() for word in words.split(",") if word.strip()):
        if word not in groups and word not in EVERY:
            raise DataError(
                f"{word}: no such corruption; known: all, common, camera, {', '.join(EVERY)}"
            )
        found += groups.get(word, (word,))
    if not found:
        raise DataError("no corruption is named")
    return tuple(dict.fromkeys(found))


def random_state(seed: int, name: str, severity: int, image: int) -> RandomState:
    """Return the random state of one picture: the same on every machine and in every process."""
    # NumPy keeps the streams of RandomState for ever; those of Generator may change.
    text = f"{seed} {name} {severity} {image}".encode()
    return RandomState(zlib.crc32(text))


def _byte(values: Floats) -> Picture:
    return np.clip(values * 255, 0, 255).astype(np.uint8)


def _unit(picture: Picture) -> Floats:
    return picture / 255.0


def gaussian_noise(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Add normal noise to each channel, as electronics do in low light."""
    spread = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return _byte(_unit(picture) + rng.normal(size=picture.shape, scale=spread))


def shot_noise(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Count photons: Poisson noise."""
    photons = (60, 25, 12, 5, 3)[level]
    return _byte(rng.poisson(_unit(picture) * photons) / float(photons))


def impulse_noise(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Set single values to black or white, as bit errors do."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit = rng.random_sample(picture.shape) < amount
    white = rng.random_sample(picture.shape) < 0.5
    return np.where(hit, np.where(white, 255, 0), picture).astype(np.uint8)


def _disk(radius: float, blur: float) -> NDArray[np.float32]:
    steps = np.arange(-max(8, radius), max(8, radius) + 1)
    x, y = np.meshgrid(steps, steps)
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    side = 3 if radius <= 8 else 5
    return np.asarray(cv2.GaussianBlur(disk, (side, side), blur), np.float32)


def defocus_blur(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Blur with a disk, as a lens out of focus does."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    return _byte(np.asarray(cv2.filter2D(_unit(picture), -1, _disk(radius, edge)), np.float64))


def glass_blur(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Exchange neighbouring pixels between two blurs, as frosted glass does."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    blurred = _gauss(_unit(picture), sigma)
    height, width = picture.shape[:2]
    for _ in range(rounds):
        # Each pixel takes the value of one within reach: exchanged all at once, not one by one.
        rows = np.arange(height)[:, None] + rng.randint(-reach, reach, size=(height, width))
        columns = np.arange(width)[None] + rng.randint(-reach, reach, size=(height, width))
        blurred = blurred[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return _byte(_gauss(blurred, sigma))


def _gauss(values: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float64)


def motion_blur(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Blur along a line of random direction, as a moving camera does."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _byte(np.clip(_along(_unit(picture), radius, sigma, rng.uniform(-45, 45)), 0, 1))


def _along(values: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Blur with half a Gaussian from each pixel along `angle`, degrees."""
    length = 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(length) / sigma) ** 2)
    weights /= weights.sum()
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    for step, weight in enumerate(weights):
        x = length + round(step * np.cos(np.deg2rad(angle)))
        y = length + round(step * np.sin(np.deg2rad(angle)))
        kernel[y, x] += weight
    blurred = cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float64)


def zoom_blur(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Average growing enlargements, as a camera moving forwards does."""
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03))[level]
    values = _unit(picture)
    zooms = np.arange(1, stop, step)
    total = sum((_zoomed(values, zoom) for zoom in zooms), np.zeros_like(values))
    return _byte((values + total) / (len(zooms) + 1))


def _zoomed(values: Floats, zoom: float) -> Floats:
    """The middle of `values` (H, W, ...), enlarged so that the outermost samples stay so."""
    height, width = values.shape[:2]
    inner = [int(np.ceil(side / zoom)) for side in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    part = values[top : top + inner[0], left : left + inner[1]]
    steps = [
        (side - 1) / max(round(side * zoom) - 1, 1) if round(side * zoom) > 1 else 0.0
        for side in inner
    ]
    matrix = np.array(((steps[1], 0, 0), (0, steps[0], 0)))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(part, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


def snow(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Let flakes fall in a slanted direction, and whiten the picture."""
    mean, spread, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    values = _unit(picture)
    flakes = _zoomed(rng.normal(size=picture.shape[:2], loc=mean, scale=spread), zoom)
    flakes[flakes < threshold] = 0
    flakes = _along(np.clip(flakes, 0, 1), int(radius), sigma, rng.uniform(-135, -45))
    flakes = (np.round(flakes * 255).astype(np.uint8) / 255.0)[..., None]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] / 255.0
    values = kept * values + (1 - kept) * np.maximum(values, grey * 1.5 + 0.5)
    return _byte(values + flakes + np.rot90(flakes, 2))


def frost(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Blend in ice crystals: bright needles that grow from random seeds."""
    kept, added = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width = picture.shape[:2]
    ice = 0.3 + 0.4 * _plasma(max(height, width), 2.0, rng)[:height, :width]
    canvas = np.zeros((height, width), np.float32)
    reach = 0.25 * max(height, width)
    for _ in range(40):
        seed = rng.uniform((0, 0), (width, height))
        for branch in rng.uniform(0, 2 * np.pi, 6):
            end = seed + reach * rng.uniform(0.2, 1) * np.array((np.cos(branch), np.sin(branch)))
            shine = float(rng.uniform(0.3, 0.9))
            start, stop = (tuple(int(v) for v in point.round()) for point in (seed, end))
            cv2.line(canvas, start, stop, shine, 1, cv2.LINE_AA)
    ice += np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.8))
    # Ice is a little blue.
    tint = np.array((0.9, 0.95, 1.0))
    return _byte(kept * _unit(picture) + added * np.clip(ice, 0, 1)[..., None] * tint)


def fog(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Lay a cloud over the picture: a diamond-square fractal (Fournier et al., 1982)."""
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    values = _unit(picture)
    brightest = values.max()
    height, width = picture.shape[:2]
    cloud = _plasma(max(height, width), decay, rng)[:height, :width, None]
    return _byte((values + strength * cloud) * brightest / (brightest + strength))


def _plasma(side: int, decay: float, rng: RandomState) -> Floats:
    """A cloud of at least `side` pixels each way, 0..1, by the diamond-square rule."""
    size = 1 << max(int(np.ceil(np.log2(side))), 1)
    cloud = np.zeros((size, size))
    # The published fractal multiplies its random values by the reach twice.
    step, reach = size, 100.0**2
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        total = total + np.roll(total, -1, 1)
        cloud[half::step, half::step] = total / 4 + reach * rng.uniform(-1, 1, total.shape)
        centres = cloud[half::step, half::step]
        across = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)
        cloud[::step, half::step] = across / 4 + reach * rng.uniform(-1, 1, across.shape)
        down = corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)
        cloud[half::step, ::step] = down / 4 + reach * rng.uniform(-1, 1, down.shape)
        step, reach = half, reach / decay**2
    cloud -= cloud.min()
    return np.asarray(cloud / cloud.max())


def brightness(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Raise the value of each pixel's colour (HSV)."""
    hsv = cv2.cvtColor(_unit(picture).astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return _byte(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float64))


def contrast(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Draw each channel towards its mean."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[level]
    values = _unit(picture)
    mean = values.mean(axis=(0, 1), keepdims=True)
    return _byte((values - mean) * kept + mean)


def elastic_transform(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Shift every pixel by a smooth random field (Simard et al., 2003), at most a few pixels."""
    strength = (12.5, 16.25, 21.25, 25.0, 30.0)[level]
    height, width = picture.shape[:2]
    reach = 0.005 * height

    def field() -> Floats:
        noise = rng.uniform(-reach, reach, size=(height, width))
        # Kernels end at three sigma.
        sides = [2 * int(3 * 0.01 * side + 0.5) + 1 for side in (width, height)]
        blurred = cv2.GaussianBlur(
            noise, sides, 0.01 * width, sigmaY=0.01 * height, borderType=cv2.BORDER_REFLECT
        )
        return strength * np.asarray(blurred)

    right, down = field(), field()
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    across, along = (x + right).astype(np.float32), (y + down).astype(np.float32)
    moved = cv2.remap(
        _unit(picture).astype(np.float32),
        across,
        along,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return _byte(np.asarray(moved, np.float64))


def pixelate(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Make the picture smaller and, without interpolation, large again."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = picture.shape[:2]
    small = cv2.resize(
        picture, (int(width * share), int(height * share)), interpolation=cv2.INTER_AREA
    )
    return np.asarray(
        cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
    )


def jpeg_compression(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Compress to JPEG of low quality."""
    quality = (25, 18, 15, 10, 7)[level]
    _, data = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def rolling_exposure(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Brighten and darken bands of rows, as lamps on the mains do behind a rolling shutter."""
    depth = (0.15, 0.25, 0.4, 0.55, 0.7)[level]
    rows = np.arange(picture.shape[0]) / picture.shape[0]
    wave = 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * (rows * rng.uniform(1.5, 4) + rng.rand())))
    return _byte(_unit(picture) * wave[:, None, None])


def low_light(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Expose too short and amplify: photon, read-out and row noise at a lower bit depth."""
    electrons = (400, 150, 60, 25, 10)[level]
    light = _unit(picture) ** 2.2
    counted = rng.poisson(light * electrons) + rng.normal(scale=1.5, size=light.shape)
    counted += rng.normal(scale=0.4, size=(picture.shape[0], 1, 1))
    counted = np.round(counted * 255 / electrons) / 255
    return _byte(np.clip(counted, 0, 1) ** (1 / 2.2))


def low_bit_rate(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Compress as a video of few bits, in MPEG-4 part 2: OpenCV's wheels encode no H.264.

    The picture drifts by a pixel a frame over five frames and the last one is taken, so that
    motion vectors and residuals are coded too.
    """
    scale = (0.8, 0.65, 0.5, 0.4, 0.3)[level]
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    # Without control of the bit rate a video of fewer, enlarged pixels has its look and its size.
    small = (max(int(width * scale) // 2 * 2, 32), max(int(height * scale) // 2 * 2, 32))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "v.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 25, small)
        for shift in (4, 3, 2, 1, 0):
            moved = np.roll(picture, shift, axis=1)[:height, :width]
            noisy = np.clip(moved + rng.normal(scale=3, size=moved.shape), 0, 255).astype(np.uint8)
            writer.write(cv2.resize(noisy, small, interpolation=cv2.INTER_AREA))
        writer.release()
        if not Path(path).is_file():
            raise DataError("low_bit_rate: OpenCV writes no video here; leave this corruption out")
        reader, last = cv2.VideoCapture(path), None
        while True:
            there, frame = reader.read()
            if not there:
                break
            last = frame
        reader.release()
    if last is None:
        raise DataError("low_bit_rate: the video that OpenCV wrote cannot be read; leave it out")
    return np.asarray(
        cv2.resize(last, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR),
        np.uint8,
    )


def dropped_lines(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Repeat a line in place of lines that were lost, in bursts, and shift some sideways."""
    share = (0.05, 0.1, 0.2, 0.35, 0.5)[level]
    out, height = picture.copy(), picture.shape[0]
    lost = 0
    while lost < share * height:
        start, count = rng.randint(1, height), rng.randint(2, max(3, height // 24))
        stop = min(start + count, height)
        shift = rng.randint(-picture.shape[1] // 16, picture.shape[1] // 16 + 1)
        out[start:stop] = np.roll(out[start - 1], shift, axis=0)
        lost += count
    return np.asarray(out, np.uint8)


def lens_dirt(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Put blurred, dark spots before the picture, as dust and dried drops on the lens do."""
    count = (4, 8, 14, 22, 32)[level]
    height, width = picture.shape[:2]
    dirt = np.zeros((height, width), np.float32)
    for _ in range(count):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        radius = int(rng.uniform(0.015, 0.06) * min(height, width)) + 1
        cv2.circle(dirt, centre, radius, float(rng.uniform(0.4, 0.95)), -1, cv2.LINE_AA)
    cover = np.asarray(cv2.GaussianBlur(dirt, (0, 0), 0.012 * min(height, width) + 0.5))
    blurred = _gauss(_unit(picture), 0.02 * min(height, width))
    return _byte(_unit(picture) * (1 - cover[..., None]) + 0.35 * blurred * cover[..., None])


def lens_rain(picture: Picture, level: int, rng: RandomState) -> Picture:
    """Put drops on the lens, each of which shows the scene upside down and out of focus."""
    count = (6, 12, 20, 32, 48)[level]
    out, height, width = _unit(picture), *picture.shape[:2]
    for _ in range(count):
        radius = int(rng.uniform(0.02, 0.06) * min(height, width)) + 2
        x, y = rng.randint(radius, width - radius), rng.randint(radius, height - radius)
        reach = min(3 * radius, x, y, width - 1 - x, height - 1 - y)
        seen = _unit(picture)[y - reach : y + reach + 1, x - reach : x + reach + 1][::-1, ::-1]
        side = 2 * radius + 1
        drop = _gauss(np.asarray(cv2.resize(seen, (side, side))), 1.0) * 1.05
        steps = np.arange(-radius, radius + 1) / radius
        cover = np.clip(4 * (1 - steps[:, None] ** 2 - steps[None] ** 2), 0, 1)[..., None]
        part = out[y - radius : y + radius + 1, x - radius : x + radius + 1]
        part[:] = part * (1 - cover) + drop * cover
    return _byte(out)


COMMON: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
CAMERA: dict[str, Corruption] = {
    function.__name__: function
    for function in (rolling_exposure, low_light, low_bit_rate, dropped_lines, lens_dirt, lens_rain)
}
EVERY: dict[str, Corruption] = {**COMMON, **CAMERA}
