#!/usr/bin/env bash
# The tests that need a GPU, on the virtual one (tests/virtual_gpu): what they launch is the extension's and Triton's PTX,
# executed on the CPU. The first argument is the directory that `virtual_gpu.build` has filled; the python on PATH has a
# PyTorch that is built without CUDA, and pal_fast. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
export PAL_FAST_VIRTUAL_GPU=$1
shift
if ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None or torch.version.hip is not None)'; then
    echo "not run: the virtual GPU takes the place of CUDA in a PyTorch that is built without it, and this one has it"
    exit 0
fi
"$python" -m pip install -q ninja pybind11 'setuptools>=77' triton==3.9.0
"$python" -m pytest -q -m gpu -n 2 --dist loadscope "$@" tests/ops tests/nn tests/triton tests/loss \
    tests/virtual_gpu
