// What pal_loss_instances.h needs from outside, so that it can be included after a change of instruction set.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "pal_loss_kernels.h"
