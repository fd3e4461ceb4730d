// Batch normalisation on the CPU consists of two kinds of passes over a layer: reductions to a few sums per channel,
// and elementwise passes that are, per channel, affine in the tensors.
#pragma once

#include "batch_norm_problem.h"

namespace pal_fast::cpu {

// With xc = x - mean, G = grad masked by the ReLU, v = grad_grad:
enum class Sums {
  input,            // sum xc
  squares,          // sum xc^2
  backward,         // sum G, sum G xc
  double_backward,  // sum v, sum v xc, sum v G
};
enum class Elementwise {
  forward,          // scale * xc + bias, ReLU
  backward,         // dx
  double_backward,  // d_grad and d_input
};

// Rows of the table of per-channel coefficients [rows, C] of T; the first three are common to all passes.
enum Row { mean, scale, bias, common_rows };

// backward: of_grad, of_input, constant.
inline constexpr int64_t BACKWARD_ROWS = common_rows + 3;
// double backward: of_grad_grad, of_input, constant of d_grad; of_grad, of_grad_grad, of_input, constant of d_input.
inline constexpr int64_t DOUBLE_BACKWARD_ROWS = common_rows + 7;

// The tensors of a pass, each [B, C, L] in the problem's layout. Tensors that a pass does not access may be null.
struct Pass {
  BatchNormProblem problem;
  Storage storage = Storage::float32;
  const void* input = nullptr;
  const void* grad = nullptr;
  const void* grad_grad = nullptr;
  const void* table = nullptr;    // [rows, C] of T
  void* output = nullptr;         // y, dx or d_grad
  void* second_output = nullptr;  // d_input
};

// The number of blocks of rows that a reduction is split into. It depends on the problem only, so that results do not
// depend on the number of threads. One if channels are outermost: threads then share no channel.
[[nodiscard]] inline int64_t reduction_blocks(const BatchNormProblem& problem) {
  constexpr int64_t rows_per_block = 64;
  constexpr int64_t most = 64;
  const int64_t wanted = (problem.count() + rows_per_block - 1) / rows_per_block;
  return !problem.channels_innermost() ? 1 : wanted < most ? wanted : most;
}

// partial [blocks, k, C] with the k sums listed at Sums, which the caller adds over the blocks. Multi-threaded.
using Reduce = void (*)(const Pass& pass, Sums kind, double* partial);
using Apply = void (*)(const Pass& pass, Elementwise kind);

struct Passes {
  Reduce reduce;
  Apply apply;
};

// The same source compiled for three instruction sets.
namespace baseline {
extern const Passes passes;
}
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
extern const Passes passes;
}
namespace avx512 {
extern const Passes passes;
}
#endif

}  // namespace pal_fast::cpu
