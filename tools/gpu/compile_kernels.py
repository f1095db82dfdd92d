"""Compile kernels.cu with every compiler that is here for all that it knows, and print a table.

    python tools/gpu/compile_kernels.py > tools/gpu/kernels.log

Exit status 1 if one does not compile, or no compiler is here.
"""

from __future__ import annotations

import hashlib
import sys

from edge.errors import DeviceError
from edge.runtime.compile import SOURCE, Compiler, nvcc, nvrtc


def row(compiler: Compiler, architecture: int) -> tuple[str, bool]:
    cells = []
    for kind in ("sm", "compute"):
        try:
            image = compiler.compile(SOURCE.read_text(), f"{kind}_{architecture}")
        except DeviceError as error:
            return str(error), False
        name = "cubin" if kind == "sm" else "PTX"
        cells.append(f"{name} {len(image):6d} bytes")
    return ", ".join(cells), True


def main() -> int:
    compilers = [found for found in (nvcc(), nvrtc()) if found is not None]
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    print(f"{SOURCE.name}, sha256 {digest}")
    well = bool(compilers)
    for compiler in compilers:
        for architecture in compiler.architectures:
            text, fine = row(compiler, architecture)
            print(f"{compiler.name:12s} SM{architecture:<4d} {text}")
            well &= fine
    if not compilers:
        print("neither nvcc nor NVRTC is here")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
