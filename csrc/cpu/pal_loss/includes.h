// The headers that instances.h needs, included before the target instruction set is changed.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "cpu/pal_loss/kernels.h"
