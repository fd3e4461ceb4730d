// What batch_norm_instances.h needs from outside, so that it can be included after a change of instruction set.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "batch_norm_passes.h"
