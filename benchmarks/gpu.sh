#!/usr/bin/env bash
# The full-size CIFAR-10 networks on one GPU (or TPU), in less than 9 minutes, into one JSON file:
#
#     bash benchmarks/gpu.sh [OUT.json]         runs/benchmarks/gpu.json by default
#
# Installed beforehand: requirements-cuda.txt (or -tpu), in .venv or whatever PYTHON names.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../runs/benchmarks/gpu.json}")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/gotta-go-fast}"
mkdir -p "$(dirname "$out")"
# parts are left out when time runs short; one that hangs is ended, and what was found before it is in the file
timeout 530 "$python" -m benchmarks.gpu --json "$out"
