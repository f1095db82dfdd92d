"""Compile kernels.cu for every architecture with every compiler that is here, and print a table.

    python tools/compile_kernels.py

Exit status 1 if an architecture that a compiler knows does not compile.
"""

from __future__ import annotations

import hashlib
import sys
import time

from edge.errors import DeviceError
from edge.runtime.compile import SOURCE, Compiler, nvcc, nvrtc

ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)


def row(compiler: Compiler, architecture: int) -> tuple[str, bool]:
    if architecture not in compiler.architectures:
        return "unknown to it", True
    cells = []
    for kind in ("sm", "compute"):
        start = time.perf_counter()
        try:
            image = compiler.compile(SOURCE.read_text(), f"{kind}_{architecture}")
        except DeviceError as error:
            return str(error), False
        name = "cubin" if kind == "sm" else "PTX"
        cells.append(f"{name} {len(image):6d} bytes {time.perf_counter() - start:5.2f} s")
    return ", ".join(cells), True


def main() -> int:
    compilers = [found for found in (nvcc(), nvrtc()) if found is not None]
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    print(f"{SOURCE.name}, sha256 {digest}")
    well = bool(compilers)
    for compiler in compilers:
        for architecture in ARCHITECTURES:
            text, fine = row(compiler, architecture)
            print(f"{compiler.name:12s} SM{architecture:<4d} {text}")
            well &= fine
    if not compilers:
        print("neither nvcc nor NVRTC is here")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
