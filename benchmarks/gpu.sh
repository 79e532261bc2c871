#!/usr/bin/env bash
# Measures the full-size CIFAR-10 networks on one GPU (or TPU) in less than 9 minutes, into one JSON file:
#
#     bash benchmarks/gpu.sh [OUT.json]         runs/benchmarks/gpu.json by default
#
# Install requirements-cuda.txt (or -tpu) beforehand, in .venv or for the Python that PYTHON names.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../runs/benchmarks/gpu.json}")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/gotta-go-fast}"
mkdir -p "$(dirname "$out")"
# parts are left out when time runs short; one that hangs is ended, and the file holds the figures found before
timeout 530 "$python" -m benchmarks.gpu --json "$out"
