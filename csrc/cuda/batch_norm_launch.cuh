// Which of batch normalisation's kernels run, on which grid; a launcher is called as landmark_heatmap_launch.cuh says.
#pragma once

#include "batch_norm_kernels.cuh"
#include "batch_norm_statistics_kernel.cuh"

namespace pal_fast::cuda {

// rows_of_channel_output: 2 of a backward, 1 of a double backward.
template <typename S>
[[nodiscard]] TypedPass<S> typed(const BatchNormPass& pass, int64_t rows_of_channel_output = 0) {
  using T = typename Computing<S>::type;
  const BatchNormProblem& problem = pass.problem;
  const BatchNormPlan& plan = pass.plan;
  const int64_t channels = problem.channels, size = problem.count() * channels;
  return {problem.batch,
          channels,
          problem.length,
          problem.training,
          problem.relu,
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.group),
          static_cast<int>(plan.columns),
          static_cast<int>(plan.rows_at_once),
          static_cast<int>(plan.splits()),
          static_cast<int>(plan.over_inner),
          plan.outer_part,
          plan.inner_part,
          T(1) / static_cast<T>(problem.count()),
          elements<const S>(pass.input, size),
          elements<const S>(pass.grad, size),
          elements<const S>(pass.grad_grad, size),
          elements<const T>(pass.weight, channels),
          elements<const T>(pass.bias, channels),
          elements<const T>(pass.sums, 2 * channels),
          elements<const T>(pass.grad_sums, 2 * channels),
          elements<T>(pass.statistics, 2 * channels),
          elements<T>(pass.running_mean, channels),
          elements<T>(pass.running_variance, channels),
          pass.momentum,
          pass.eps,
          elements<S>(pass.output, size),
          elements<S>(pass.second_output, size),
          elements<T>(pass.channel_output, rows_of_channel_output * channels),
          elements<T>(pass.partial, batch_norm_partial_rows(plan) * channels),
          elements<unsigned>(pass.tickets, plan.tiles)};
}

// Calls run.operator()<S, Wide, F>() with what the pass asks for.
template <typename Run>
void with_batch_norm_types(const BatchNormPass& pass, const Run& run) {
  with_storage(pass.storage, [&]<typename S>() {
    switch (pass.plan.form) {
      case Form::planes:
        return pass.plan.wide ? run.template operator()<S, true, Form::planes>()
                              : run.template operator()<S, false, Form::planes>();
      case Form::runs:
        return run.template operator()<S, true, Form::runs>();
      case Form::rows:
        return pass.plan.wide ? run.template operator()<S, true, Form::rows>()
                              : run.template operator()<S, false, Form::rows>();
    }
  });
}

template <typename Launcher>
void run_batch_norm_statistics(const BatchNormPass& pass, const Launcher& launch) {
  with_batch_norm_types(pass, [&]<typename S, bool Wide, Form F>() {
    if (pass.problem.training) {
      launch(statistics_kernel<S, Wide, F>, pass.plan.tiles * pass.plan.splits(), pass.plan.threads,
             BatchNormShared<S>::bytes(), typed<S>(pass));
    } else {
      launch(running_statistics_kernel<S>, ceil_div(pass.problem.channels, MOST_THREADS), MOST_THREADS, 0,
             typed<S>(pass));
    }
  });
}

template <typename Launcher>
void run_batch_norm_forward(const BatchNormPass& pass, const Launcher& launch) {
  with_batch_norm_types(pass, [&]<typename S, bool Wide, Form F>() {
    launch(forward_kernel<S, Wide, F>, pass.plan.tiles * pass.plan.splits(), pass.plan.threads, 0, typed<S>(pass));
  });
}

// reduces: whether the sums are asked for.
template <Derivative D, typename Launcher>
void run_batch_norm_derivative(const BatchNormPass& pass, bool reduces, const Launcher& launch) {
  with_batch_norm_types(pass, [&]<typename S, bool Wide, Form F>() {
    const int64_t blocks = pass.plan.tiles * pass.plan.splits(), shared = BatchNormShared<S>::bytes();
    const TypedPass<S> given = typed<S>(pass, D == Derivative::first ? 2 : 1);
    const bool reduces_apart = reduces && pass.plan.splits() > 1;
    if (reduces_apart) {
      launch(sums_kernel<D, S, Wide, F>, blocks, pass.plan.threads, shared, given);
    }
    launch(derivative_kernel<D, S, Wide, F>, blocks, pass.plan.threads, reduces && !reduces_apart ? shared : 0, given,
           reduces);
  });
}

template <typename Launcher>
void run_batch_norm_backward(const BatchNormPass& pass, const Launcher& launch) {
  run_batch_norm_derivative<Derivative::first>(pass, pass.channel_output != nullptr, launch);
}

template <typename Launcher>
void run_batch_norm_double_backward(const BatchNormPass& pass, const Launcher& launch) {
  run_batch_norm_derivative<Derivative::second>(pass, true, launch);
}

}  // namespace pal_fast::cuda
