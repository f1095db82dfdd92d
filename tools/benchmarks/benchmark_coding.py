"""How near each coding comes to the entropy, and how long it takes, on real weights.

    python tools/benchmarks/benchmark_coding.py squeezedet_kitti_forge.npz --prune 0.6 --bits 5

zlib gets one byte for each code; `bound` is the entropy of single codes in their layer, `model`
what the model of `ans` asks for. Ratios are to FP32; the package has its headers, codebooks in
FP16, biases in FP16 and the ONNX graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge.compress.weights.deep import prune_weights, with_codebooks
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.sharing import share_tensor
from edge.edgez.coding import CODINGS, Layer, decode, encode, entropy_bits, model_bits
from edge.edgez.package import read_package
from edge.models.dense import load_dense
from export.compress.pack import pack


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prune", type=float, default=0.6)
    parser.add_argument("--scope", default="layer")
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--start", default="linear")
    parser.add_argument("--rounds", type=int, default=40, help="of k-means")
    options = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))
    return 0


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    dense = load_dense(options.model, scratch)
    pruned = prune_weights(dense.module, options.prune, options.scope)
    books = {
        path: share_tensor(
            conv.weight.detach().numpy(), options.bits, options.start, rounds=options.rounds
        )
        for path, conv in convolutions(pruned).items()
    }
    module = with_codebooks(pruned, books)
    codes = [book.matrix() for book in books.values()]
    layers = [
        Layer(code.shape, book.levels, book.pruned)
        for code, book in zip(codes, books.values(), strict=True)
    ]
    weights = 4 * sum(layer.size for layer in layers)
    bound, model = entropy_bits(layers, codes) / 8, model_bits(layers, codes) / 8
    deflated = len(zlib.compress(b"".join(code.astype(np.uint8).tobytes() for code in codes), 9))
    rows = {
        "zlib": {"bytes": deflated, "ratio": weights / deflated},
        "bound": {"bytes": bound, "ratio": weights / bound},
        "model": {"bytes": model, "ratio": weights / model},
    }
    for coding in CODINGS:
        start = time.perf_counter()
        stream = encode(layers, codes, coding)
        encoded = time.perf_counter()
        found = list(decode(stream, layers, coding, coding))
        decoded = time.perf_counter()
        assert all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True))
        rows[coding] = {
            "bytes": len(stream),
            "ratio": weights / len(stream),
            "over_bound": len(stream) / bound - 1,
            "encode_s": encoded - start,
            "decode_s": decoded - encoded,
        }
    rows["ans"]["over_model"] = rows["ans"]["bytes"] / model - 1
    path = scratch / "whole.edgez"
    sizes = pack(path, module, dense, books, scratch)
    start = time.perf_counter()
    for _ in read_package(path).tensors():
        pass
    package = {
        "bytes": sizes.file,
        "ratio": dense.bytes / sizes.file,
        "over_weights": sizes.file / sizes.sections["weights"] - 1,
        "sections": sizes.sections,
        "read_s": time.perf_counter() - start,
    }
    return {"weights_fp32": weights, "codings": rows, "package": package}


if __name__ == "__main__":
    sys.exit(main())
