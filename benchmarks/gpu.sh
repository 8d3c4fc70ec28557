#!/usr/bin/env bash
# Measures training steps on one NVIDIA GPU, in under 9 minutes:
#
#     benchmarks/gpu.sh [--out=docs/results/gpu] [--minutes=8] ...
#
# needs JAX for CUDA (pip install -U "jax[cuda12]") and requirements.txt; for PyTorch's
# figures also requirements-peers.txt with torchvision. What is measured is written at
# once, so that a run that is cut off keeps it. `python -m benchmarks.gpu --help` says
# more.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
# PyTorch needs memory of the same GPU, in processes of its own.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
exec "$python" -m benchmarks.gpu "$@"
