// Batch normalisation's passes, compiled once for each PAL_FAST_INSTRUCTION_SET with registers of
// PAL_FAST_VECTOR_BYTES. Must not instantiate inline functions of the standard library: compiled here for a newer
// instruction set, such an instance could be the one that the linker keeps for the whole program.
namespace pal_fast::cpu::PAL_FAST_INSTRUCTION_SET {
namespace {

// clang-format off: each needs those before it.
#include "cpu/conversions.h"
#include "cpu/simd.h"
#include "cpu/batch_norm/loops.h"
// clang-format on

template <typename S, typename T, bool Relu>
void reduce_stored(const Pass& pass, Sums kind, double* partial) {
  const Loops<S, T, Relu> loops(pass);
  switch (kind) {
    case Sums::input:
      return loops.template reduce<Sums::input>(partial);
    case Sums::squares:
      return loops.template reduce<Sums::squares>(partial);
    case Sums::backward:
      return loops.template reduce<Sums::backward>(partial);
    case Sums::double_backward:
      return loops.template reduce<Sums::double_backward>(partial);
  }
}

template <typename S, typename T, bool Relu>
void apply_stored(const Pass& pass, Elementwise kind) {
  const Loops<S, T, Relu> loops(pass);
  switch (kind) {
    case Elementwise::forward:
      return loops.template apply<Elementwise::forward>();
    case Elementwise::backward:
      return loops.template apply<Elementwise::backward>();
    case Elementwise::double_backward:
      return loops.template apply<Elementwise::double_backward>();
  }
}

template <bool Relu>
void reduce_with(const Pass& pass, Sums kind, double* partial) {
  switch (pass.storage) {
    case Storage::float16:
      return reduce_stored<HalfFloat, float, Relu>(pass, kind, partial);
    case Storage::bfloat16:
      return reduce_stored<BrainFloat, float, Relu>(pass, kind, partial);
    case Storage::float32:
      return reduce_stored<float, float, Relu>(pass, kind, partial);
    case Storage::float64:
      return reduce_stored<double, double, Relu>(pass, kind, partial);
  }
}

template <bool Relu>
void apply_with(const Pass& pass, Elementwise kind) {
  switch (pass.storage) {
    case Storage::float16:
      return apply_stored<HalfFloat, float, Relu>(pass, kind);
    case Storage::bfloat16:
      return apply_stored<BrainFloat, float, Relu>(pass, kind);
    case Storage::float32:
      return apply_stored<float, float, Relu>(pass, kind);
    case Storage::float64:
      return apply_stored<double, double, Relu>(pass, kind);
  }
}

void reduce(const Pass& pass, Sums kind, double* partial) {
  pass.problem.relu ? reduce_with<true>(pass, kind, partial) : reduce_with<false>(pass, kind, partial);
}

void apply(const Pass& pass, Elementwise kind) {
  pass.problem.relu ? apply_with<true>(pass, kind) : apply_with<false>(pass, kind);
}

}  // namespace

extern const Passes passes;
const Passes passes = {reduce, apply};

}  // namespace pal_fast::cpu::PAL_FAST_INSTRUCTION_SET
