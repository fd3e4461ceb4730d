// Selects batch normalisation's kernels and their launch configurations; a launcher is called as in
// landmark_heatmap/launch.cuh.
#pragma once

#include "cuda/batch_norm/kernels.cuh"
#include "cuda/batch_norm/statistics_kernel.cuh"

namespace pal_fast::cuda {

// rows_of_channel_output: 2 for the backward, 1 for the double backward.
template <typename S>
[[nodiscard]] BatchNormKernelParams<S> kernel_params(const BatchNormParams& params,
                                                     int64_t rows_of_channel_output = 0) {
  using T = typename ComputeType<S>::type;
  const BatchNormProblem& problem = params.problem;
  const BatchNormPlan& plan = params.plan;
  const int64_t channels = problem.channels, size = problem.count() * channels;
  return {problem.batch,
          channels,
          problem.length,
          problem.training,
          problem.relu,
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.tile_channels),
          static_cast<int>(plan.columns),
          static_cast<int>(plan.rows_per_step),
          static_cast<int>(plan.splits()),
          static_cast<int>(plan.inner_splits),
          plan.outer_per_split,
          plan.inner_per_split,
          T(1) / static_cast<T>(problem.count()),
          global_array<const S>(params.input, size),
          global_array<const S>(params.grad, size),
          global_array<const S>(params.grad_grad, size),
          global_array<const T>(params.weight, channels),
          global_array<const T>(params.bias, channels),
          global_array<const T>(params.sums, 2 * channels),
          global_array<const T>(params.grad_sums, 2 * channels),
          global_array<T>(params.statistics, 2 * channels),
          global_array<T>(params.running_mean, channels),
          global_array<T>(params.running_variance, channels),
          params.momentum,
          params.eps,
          global_array<S>(params.output, size),
          global_array<S>(params.second_output, size),
          global_array<T>(params.channel_output, rows_of_channel_output * channels),
          global_array<T>(params.partial, batch_norm_partial_rows(plan) * channels),
          global_array<unsigned>(params.tickets, plan.tiles)};
}

// Calls run.operator()<S, Vectorised, F>() for the storage type and the plan.
template <typename Run>
void dispatch_batch_norm(const BatchNormParams& params, const Run& run) {
  dispatch_storage(params.storage, [&]<typename S>() {
    switch (params.plan.tiling) {
      case Tiling::planes:
        return params.plan.vectorised ? run.template operator()<S, true, Tiling::planes>()
                                      : run.template operator()<S, false, Tiling::planes>();
      case Tiling::runs:
        return run.template operator()<S, true, Tiling::runs>();
      case Tiling::rows:
        return params.plan.vectorised ? run.template operator()<S, true, Tiling::rows>()
                                      : run.template operator()<S, false, Tiling::rows>();
    }
  });
}

template <typename Launcher>
void run_batch_norm_statistics(const BatchNormParams& params, const Launcher& launch) {
  dispatch_batch_norm(params, [&]<typename S, bool Vectorised, Tiling F>() {
    if (params.problem.training) {
      launch(statistics_kernel<S, Vectorised, F>, params.plan.tiles * params.plan.splits(), params.plan.threads,
             shared_bytes<BatchNormShared<S>>(), kernel_params<S>(params));
    } else {
      launch(running_statistics_kernel<S>, ceil_div(params.problem.channels, MAX_BLOCK_THREADS), MAX_BLOCK_THREADS, 0,
             kernel_params<S>(params));
    }
  });
}

template <typename Launcher>
void run_batch_norm_forward(const BatchNormParams& params, const Launcher& launch) {
  dispatch_batch_norm(params, [&]<typename S, bool Vectorised, Tiling F>() {
    launch(forward_kernel<S, Vectorised, F>, params.plan.tiles * params.plan.splits(), params.plan.threads, 0,
           kernel_params<S>(params));
  });
}

// reduces: whether the sums are needed.
template <Derivative D, typename Launcher>
void run_batch_norm_derivative(const BatchNormParams& params, bool reduces, const Launcher& launch) {
  dispatch_batch_norm(params, [&]<typename S, bool Vectorised, Tiling F>() {
    const int64_t blocks = params.plan.tiles * params.plan.splits(), shared = shared_bytes<BatchNormShared<S>>();
    const BatchNormKernelParams<S> given = kernel_params<S>(params, D == Derivative::first ? 2 : 1);
    const bool separate_reduction = reduces && params.plan.splits() > 1;
    if (separate_reduction) {
      launch(sums_kernel<D, S, Vectorised, F>, blocks, params.plan.threads, shared, given);
    }
    launch(derivative_kernel<D, S, Vectorised, F>, blocks, params.plan.threads,
           reduces && !separate_reduction ? shared : 0, given, reduces);
  });
}

template <typename Launcher>
void run_batch_norm_backward(const BatchNormParams& params, const Launcher& launch) {
  run_batch_norm_derivative<Derivative::first>(params, params.channel_output != nullptr, launch);
}

template <typename Launcher>
void run_batch_norm_double_backward(const BatchNormParams& params, const Launcher& launch) {
  run_batch_norm_derivative<Derivative::second>(params, true, launch);
}

}  // namespace pal_fast::cuda
