"""Mutate a tiny package and decode it: each mutant is an ArtifactError or a correct decode.

    python tools/fuzz_package.py --count 100000 --seed 0

Half of the mutants get right checksums again, so that the decoders behind them are reached, and of
these half a right sha256 of the weights cannot have been kept: they must be refused or unchanged.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
import tracemalloc
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.progress import track

from edge.edgez.codebook import Codebook
from edge.edgez.coding import CODINGS
from edge.edgez.package import parse_package, write_package
from edge.errors import ArtifactError
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec

# The decoder of a package of 6 kB dense may take so much, its limit being LIMIT bytes.
LIMIT = 1 << 16
PEAK_BYTES = 6_000_000
_HEAD, _ENTRY = struct.Struct("<5sBH"), struct.Struct("<HHIII")


@dataclass
class Result:
    """What came of the mutants; `past_checksums` reached the decoders."""

    refused: int = 0
    right: int = 0
    past_checksums: int = 0
    peak_bytes: int = 0
    slowest_s: float = 0.0


def tiny_package(coding: str = "ans") -> bytes:
    """A package of two small shared layers and their biases."""
    rng = np.random.default_rng(0)
    head = HeadSpec.of_grid("b", "yolo", (2, 2), ((8.0, 8.0),))
    spec = ModelSpec("tiny", "darknet", ("a",), InputContract((32, 32)), (head,))
    tensors: dict[str, Codebook | np.ndarray] = {}
    for name, shape in (("a", (8, 3, 3, 3)), ("b", (6, 8, 1, 1))):
        index = rng.integers(1, 6, shape) * (rng.random(shape) < 0.4)
        scale = rng.random(shape[0]).astype("f4") if name == "b" else None
        centroids = np.sort(rng.normal(size=5)).astype("f4")
        tensors[f"{name}.weight"] = Codebook(centroids, index, scale)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0]).astype("f4")
    with TemporaryDirectory() as folder:
        path = Path(folder, "tiny.edgez")
        model = {"family": "darknet", "cfg": "[net]"}
        write_package(
            path, Manifest(spec, "fp32", (), ()), model, tensors, graph=b"graph", coding=coding
        )
        return path.read_bytes()


def sections(data: bytes) -> list[tuple[list[int], bytes]]:
    """Kind, coding, stored, decoded, crc and the bytes of each section."""
    count = _HEAD.unpack_from(data)[2]
    at, found = _HEAD.size + count * _ENTRY.size + 4, []
    for number in range(count):
        entry = list(_ENTRY.unpack_from(data, _HEAD.size + number * _ENTRY.size))
        found.append((entry, data[at : at + entry[2]]))
        at += entry[2]
    return found


def joined(parts: list[tuple[list[int], bytes]]) -> bytes:
    """A package of these sections whose lengths and checksums are right."""
    head = _HEAD.pack(b"EDGEZ", 2, len(parts))
    for (kind, coding, _, decoded, _), stored in parts:
        head += _ENTRY.pack(kind, coding, len(stored), decoded, zlib.crc32(stored))
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(stored for _, stored in parts)


def with_sections(data: bytes, replaced: dict[int, bytes]) -> bytes:
    """The package with the stored bytes of some kinds of section replaced."""
    return joined([(entry, replaced.get(entry[0], stored)) for entry, stored in sections(data)])


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes set, parts cut out, doubled or swapped in."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not out:
            break
        at, kind = int(rng.integers(len(out))), rng.integers(5)
        length = int(rng.integers(1, 9))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        else:
            out[at : at + length] = rng.bytes(length)
    return bytes(out)


def mutated_description(stored: bytes, rng: np.random.Generator) -> tuple[bytes, int]:
    """META with its JSON text mutated: its new bytes, and how many they unfold to."""
    text = bytearray(zlib.decompress(stored, -15))
    digits = [at for at, byte in enumerate(text) if 48 <= byte <= 57]
    if rng.random() < 0.5:
        for at in rng.choice(digits, 2):
            text[at] = int(rng.integers(48, 58))
        changed = bytes(text)
    else:
        changed = mutated(bytes(text), rng)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(changed) + packer.flush(), len(changed)


def mutant(data: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """A mutant, and whether its checksums are right again."""
    if rng.random() < 0.4:
        return mutated(data, rng), False
    parts = sections(data)
    number = int(rng.integers(len(parts)))
    entry, stored = parts[number]
    choice = rng.random()
    if choice < 0.1:
        if rng.random() < 0.5:
            entry[1] = int(rng.integers(6))
        else:
            entry[3] = int(rng.integers(1 << int(rng.integers(1, 32))))
    elif entry[0] == 1 and choice < 0.8:
        stored, entry[3] = mutated_description(stored, rng)
    else:
        stored = mutated(stored, rng)
    parts[number] = (entry, stored)
    return joined(parts), True


def decoded(data: bytes) -> bytes:
    """All that a package unfolds to."""
    package = parse_package(data, "f", LIMIT)
    package.graph()
    return b"".join(array.tobytes() for _, array in package.tensors())


def fuzz(count: int, seed: int) -> Result:
    """Decode `count` mutants of packages in every coding.

    Raises:
        AssertionError: one was decoded to other weights.
        Exception: whatever a decoder raised that is no ArtifactError.
    """
    rng, result = np.random.default_rng(seed), Result()
    whole = [tiny_package(coding) for coding in CODINGS]
    wanted = {decoded(data) for data in whole}
    tracemalloc.start()
    for _ in track(range(count), "mutants", disable=not sys.stderr.isatty()):
        data, fixed = mutant(whole[int(rng.integers(len(whole)))], rng)
        tracemalloc.reset_peak()
        start = time.perf_counter()
        try:
            assert decoded(data) in wanted, f"decoded to other weights: {data.hex()}"
            result.right += 1
        except ArtifactError:
            result.refused += 1
        except Exception:
            print(f"mutant: {data.hex()}", file=sys.stderr)
            raise
        result.slowest_s = max(result.slowest_s, time.perf_counter() - start)
        result.peak_bytes = max(result.peak_bytes, tracemalloc.get_traced_memory()[1])
        result.past_checksums += fixed
    tracemalloc.stop()
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    result = fuzz(options.count, options.seed)
    print(json.dumps(vars(result)))
    return 0 if result.peak_bytes < PEAK_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
