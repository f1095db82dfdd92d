#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of less than ten minutes:
#
#     tools/gpu_check.sh [RESULT.json] [PYTHON]
#
# PYTHON has numpy, OpenCV, pytest and hypothesis; what else it has (cuda-python, pycuda, torch,
# tensorrt_rtx with onnxruntime and onnx) is checked, what it lacks is named in the result.
set -euo pipefail
cd "$(dirname "$0")/.."
result=${1:-out/gpu_check.json}
python=${2:-python3}
mkdir -p "$(dirname "$result")"
PYTHONPATH=. PYTHONUNBUFFERED=1 timeout 590 "$python" tools/gpu_check.py "$result"
