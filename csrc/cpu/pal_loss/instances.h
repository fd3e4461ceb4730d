// The kernels of the heatmap and the loss, compiled once for each PAL_FAST_INSTRUCTION_SET with registers of
// PAL_FAST_VECTOR_BYTES. Must not instantiate inline functions of the standard library: compiled here for a newer
// instruction set, such an instance could be the one that the linker keeps for the whole program.
namespace pal_fast::cpu::PAL_FAST_INSTRUCTION_SET {
namespace {

// clang-format off: each needs those before it.
#include "cpu/conversions.h"
#include "cpu/simd.h"
#include "cpu/landmark_heatmap/loops.h"
#include "cpu/landmark_heatmap/backward_loops.h"
#include "cpu/pal_loss/attribution.h"
#include "cpu/pal_loss/forward_loops.h"
#include "cpu/pal_loss/backward_loops.h"
// clang-format on

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    {&draw<float>, &heatmap_backward<float>},
    {&draw<double>, &heatmap_backward<double>},
    {&accumulate_map, &channel_moments, &gradients},
};

}  // namespace pal_fast::cpu::PAL_FAST_INSTRUCTION_SET
