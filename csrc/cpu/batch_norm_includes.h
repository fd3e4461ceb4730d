// What batch_norm_instances.h needs from outside, so that it can be included after a change of instruction set.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "batch_norm_passes.h"
