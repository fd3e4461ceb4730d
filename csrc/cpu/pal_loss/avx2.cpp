// The loss's and the heatmap's kernels for AVX2.
#include "cpu/pal_loss/includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
// clang-format off: the order matters
#include "cpu/target_avx2.h"
#include "cpu/pal_loss/instances.h"
#include "cpu/target_end.h"
// clang-format on
#endif
