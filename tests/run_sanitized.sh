#!/usr/bin/env bash
# The CPU kernels under AddressSanitizer and UBSan: builds the extension with both into a directory of its own and
# runs the operators' tests against it. Run it from anywhere, with the python that has PyTorch and pytest on PATH.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
work=$(mktemp -d "${TMPDIR:-/tmp}/pal_fast_sanitized.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A copy of the sources, so that neither the tree nor an installed pal_fast is touched.
mkdir "$work/tree"
cp -r csrc kernels tests benchmarks pal_fast setup.py pyproject.toml README.md LICENSE "$work/tree/"
find "$work/tree" -name '*.so' -delete
cd "$work/tree"

"$python" -m pip install -q "$(sed -n 's/^requires = .*"\(setuptools[^"]*\)".*/\1/p' pyproject.toml)"
PAL_FAST_SANITIZE=address,undefined PAL_FAST_CUDA=0 "$python" setup.py -q build_ext --inplace

# Python itself is not instrumented, so the sanitizers' runtimes come first, the C++ runtime with them: it must be
# loaded before ASan looks for the exceptions' functions.
compiler=${CXX:-c++}
libraries=()
for name in libasan.so libubsan.so libstdc++.so.6; do
    libraries+=("$("$compiler" -print-file-name="$name")")
done
LD_PRELOAD=$(IFS=:; echo "${libraries[*]}")
export LD_PRELOAD
# PyTorch and Python leak at exit by design; new and delete meet across libraries that are not instrumented.
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=0:halt_on_error=1:quarantine_size_mb=64
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH="$work/tree" PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=2

"$python" - <<'PYTHON'
import torch
from pal_fast import _extension

reason = _extension.load()
assert not reason, reason
path = _extension.find()
assert b"__asan_init" in path.read_bytes() and b"__ubsan_handle" in path.read_bytes(), f"{path} is not instrumented"
print("sanitized:", path)
PYTHON

# Everything with the widest kernels; the narrower ones, whose loops end elsewhere, on what goes through them. Tests
# that compile graphs or measure a process have nothing to say here.
run() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
run tests/ops tests/nn/test_batch_norm.py --ignore tests/ops/test_contract.py --ignore tests/ops/test_memory.py \
    -k 'not instruction_set and not hundred_repetitions' "$@"
for capability in default avx2; do
    ATEN_CPU_CAPABILITY=$capability run tests/ops/test_loss.py tests/ops/test_loss_edges.py tests/ops/test_heatmap.py \
        -k 'not attribution_with_every' "$@"
done
