#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of less than ten minutes:
#
#     [PACKAGES=FOLDER] tools/gpu/gpu_check.sh [RESULT.json] [PYTHON]
#
# PYTHON has numpy, OpenCV, pytest and hypothesis; what else it has (cuda-python or cuda-bindings,
# NVRTC or nvcc, pycuda, torch, tensorrt_rtx with onnxruntime and onnx) is checked, what it lacks is
# named in the result. FOLDER holds packages to install beside it first, without any network: wheels
# (tensorrt_rtx and its _bindings and _libs, say), and sources such as PyCUDA's, which are built
# meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."
result=${1:-out/gpu_check.json}
python=${2:-python3}
mkdir -p "$(dirname "$result")"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 BUILDING=0
if [ -n "${PACKAGES:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    export PYTHONPATH=$PWD:$site
    install=("$python" -m pip install -q --no-index --no-deps --no-compile --target "$site")
    for wheel in "$PACKAGES"/*.whl; do
        [ -e "$wheel" ] || continue
        timeout 90 "${install[@]}" "$wheel" || echo "gpu_check: $wheel is not installed" >&2
    done
    for source in "$PACKAGES"/*.tar.gz; do
        [ -e "$source" ] || continue
        CFLAGS=-O1 timeout 450 "${install[@]}" --no-build-isolation "$source" \
            >"$result.build.log" 2>&1 &
        BUILDING=$!
    done
fi
timeout 575 "$python" tools/gpu/gpu_check.py "$result"
