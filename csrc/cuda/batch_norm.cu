// Batch normalisation on the GPU: grids, and the choice of types and vector widths.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "batch_norm_kernels.cuh"
#include "splits.h"

namespace pal_fast::cuda {
namespace {

// Elements of a channel that one block should have before another is asked to help.
constexpr int64_t ELEMENTS_PER_BLOCK = 8192;
// Every block of an elementwise kernel reads all parts' sums of its channels: more parts would cost more than they
// save.
constexpr int64_t MOST_SPLITS = 128;
constexpr int64_t BLOCKS_PER_PROCESSOR = 4;

template <typename S>
inline constexpr int WIDE = std::is_same_v<S, double> ? 2 : 4;

[[nodiscard]] bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether every tensor can be read and written `width` elements at a time.
[[nodiscard]] bool fits_vectors(const BatchNormPass& pass, int64_t width, int64_t element_size) {
  const int64_t innermost = pass.problem.channels_innermost() ? pass.problem.channels : pass.problem.length;
  bool fits = innermost % width == 0;
  for (const void* tensor : {pass.input, pass.grad, pass.grad_grad, static_cast<const void*>(pass.output),
                             static_cast<const void*>(pass.second_output)}) {
    fits = fits && aligned(tensor, width * element_size);
  }
  return fits;
}

template <typename S, int V, bool Rows>
[[nodiscard]] TypedPass<S> typed(const BatchNormPass& pass, const BatchNormSplit& split) {
  using T = typename Computing<S>::type;
  TypedPass<S> given{pass.problem.batch,
                     pass.problem.channels,
                     pass.problem.length,
                     pass.problem.training,
                     0,
                     0,
                     0,
                     T(0),
                     static_cast<const S*>(pass.input),
                     static_cast<const S*>(pass.grad),
                     static_cast<const S*>(pass.grad_grad),
                     static_cast<const T*>(pass.weight),
                     static_cast<const T*>(pass.bias),
                     static_cast<const T*>(pass.sums),
                     static_cast<const T*>(pass.grad_sums),
                     static_cast<T*>(pass.statistics),
                     static_cast<T*>(pass.running_mean),
                     static_cast<T*>(pass.running_variance),
                     pass.momentum,
                     pass.eps,
                     static_cast<S*>(pass.output),
                     static_cast<S*>(pass.second_output),
                     static_cast<T*>(pass.channel_output),
                     static_cast<T*>(pass.partial)};
  set_shares<V, Rows>(given, split.over_batch, split.over_length);
  return given;
}

struct Shape {
  dim3 grid, block;
};

template <int V, bool Rows>
[[nodiscard]] Shape shape_of(const BatchNormProblem& problem, const BatchNormSplit& split) {
  const auto splits = static_cast<unsigned>(split.count());
  if constexpr (Rows) {
    return {dim3(static_cast<unsigned>(ceil_div(problem.channels, ROW_LANES * V)), splits),
            dim3(ROW_LANES, BLOCK / ROW_LANES)};
  } else {
    unsigned along = 1;
    while (along < BLOCK && along < problem.length / V) {
      along *= 2;
    }
    return {dim3(static_cast<unsigned>(problem.channels), splits), dim3(along, BLOCK / along)};
  }
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("batch normalisation: ") + cudaGetErrorString(error));
  }
}

// Calls launch.operator()<S, V, Rows, Relu>() with what the pass asks for.
template <typename S, int V, bool Rows, typename Launch>
void with_relu(const BatchNormPass& pass, const Launch& launch) {
  pass.problem.relu ? launch.template operator()<S, V, Rows, true>() : launch.template operator()<S, V, Rows, false>();
  check_launch();
}

template <typename S, int V, typename Launch>
void with_layout(const BatchNormPass& pass, const Launch& launch) {
  pass.problem.channels_innermost() ? with_relu<S, V, true>(pass, launch) : with_relu<S, V, false>(pass, launch);
}

template <typename S, typename Launch>
void with_width(const BatchNormPass& pass, const Launch& launch) {
  fits_vectors(pass, WIDE<S>, sizeof(S)) ? with_layout<S, WIDE<S>>(pass, launch) : with_layout<S, 1>(pass, launch);
}

template <typename Launch>
void with_types(const BatchNormPass& pass, const Launch& launch) {
  switch (pass.storage) {
    case Storage::float16:
      return with_width<__half>(pass, launch);
    case Storage::bfloat16:
      return with_width<__nv_bfloat16>(pass, launch);
    case Storage::float32:
      return with_width<float>(pass, launch);
    case Storage::float64:
      return with_width<double>(pass, launch);
  }
}

template <Derivative D>
void launch_derivative(const BatchNormPass& pass, const BatchNormSplit& split, bool reduces, cudaStream_t stream) {
  with_types(pass, [&]<typename S, int V, bool Rows, bool Relu>() {
    const Shape shape = shape_of<V, Rows>(pass.problem, split);
    const TypedPass<S> given = typed<S, V, Rows>(pass, split);
    const bool by_parts = reduces && split.count() > 1;
    if (by_parts) {
      sums_kernel<D, S, V, Rows, Relu><<<shape.grid, shape.block, 0, stream>>>(given);
      check_launch();
    }
    derivative_kernel<D, S, V, Rows, Relu>
        <<<shape.grid, shape.block, 0, stream>>>(given, by_parts ? split.count() : 0, reduces);
  });
}

}  // namespace

BatchNormSplit split_batch_norm(const BatchNormProblem& problem, Storage storage, int processors) {
  const int64_t wanted_blocks = BLOCKS_PER_PROCESSOR * processors;
  const int64_t width = storage == Storage::float64 ? 2 : 4;
  const int64_t useful = std::max<int64_t>(1, problem.count() / ELEMENTS_PER_BLOCK);
  if (problem.channels_innermost()) {
    const int64_t tiles = ceil_div(problem.channels, ROW_LANES * width);
    const int64_t rows_per_block = 8 * BLOCK / ROW_LANES;
    const int64_t most = std::max<int64_t>(1, problem.count() / rows_per_block);
    return {std::min({MOST_SPLITS, most, ceil_div(wanted_blocks, tiles)}), 1};
  }
  const int64_t splits = std::min({MOST_SPLITS, useful, ceil_div(wanted_blocks, problem.channels)});
  const int64_t over_batch = std::min(splits, problem.batch);
  return {over_batch, std::max<int64_t>(1, splits / over_batch)};
}

void launch_batch_norm_statistics(const BatchNormPass& pass, const BatchNormSplit& split, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  with_types(pass, [&]<typename S, int V, bool Rows, bool Relu>() {
    const TypedPass<S> given = typed<S, V, Rows>(pass, split);
    if (pass.problem.training) {
      const Shape shape = shape_of<V, Rows>(pass.problem, split);
      statistics_kernel<S, V, Rows><<<shape.grid, shape.block, 0, on>>>(given);
      check_launch();
    }
    if (!pass.problem.training || split.count() > 1) {
      const auto blocks = static_cast<unsigned>(ceil_div(pass.problem.channels, BLOCK));
      final_statistics_kernel<S><<<blocks, BLOCK, 0, on>>>(given, split.count());
    }
  });
}

void launch_batch_norm_forward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream) {
  with_types(pass, [&]<typename S, int V, bool Rows, bool Relu>() {
    const Shape shape = shape_of<V, Rows>(pass.problem, split);
    forward_kernel<S, V, Rows, Relu>
        <<<shape.grid, shape.block, 0, static_cast<cudaStream_t>(stream)>>>(typed<S, V, Rows>(pass, split));
  });
}

void launch_batch_norm_backward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream) {
  launch_derivative<Derivative::first>(pass, split, pass.channel_output != nullptr, static_cast<cudaStream_t>(stream));
}

void launch_batch_norm_double_backward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream) {
  launch_derivative<Derivative::second>(pass, split, true, static_cast<cudaStream_t>(stream));
}

}  // namespace pal_fast::cuda
