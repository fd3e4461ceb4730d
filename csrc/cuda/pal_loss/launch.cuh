// Selects the loss's kernels and their launch configurations; a launcher is called as in landmark_heatmap/launch.cuh.
#pragma once

#include "cuda/pal_loss/backward_kernel.cuh"
#include "cuda/pal_loss/each_kernel.cuh"
#include "cuda/pal_loss/map_kernel.cuh"
#include "cuda/pal_loss/params.h"

namespace pal_fast::cuda {

template <typename T>
[[nodiscard]] PriorInputs<T> prior_of(const LossParams& params) {
  HeatmapProblem heatmap = params.heatmap;
  if (!params.landmarks) {
    heatmap.landmarks = 0;  // nothing else is used
    heatmap.image_height = heatmap.image_width = heatmap.sigma = 1;
  }
  return {gaussians_of<T>(heatmap, {params.landmarks, params.visible, params.weights}),
          global_array<const T>(params.dense, params.problem.batch * params.problem.cells()),
          global_array<const T>(params.sample_weight, params.problem.batch),
          params.heatmap.combine,
          params.heatmap.normalize,
          params.options.score,
          params.options.scale};
}

template <typename T>
[[nodiscard]] LossOutput<T> output_of(const LossParams& params) {
  const LossProblem& problem = params.problem;
  return {global_array<T>(params.loss, params.options.reduction == Reduction::none ? problem.batch : 1),
          global_array<T>(params.plane, problem.batch * problem.cells()),
          global_array<T>(params.coefficients, problem.batch * problem.groups() * 3),
          global_array<T>(params.factor, problem.batch),
          global_array<double>(params.scores, 2 * problem.batch),
          global_array<unsigned>(params.tickets, problem.batch + 1),
          problem.batch,
          params.options.reduction};
}

template <typename S, bool ChannelsLast, bool All, typename Launcher>
void forward_map(const LossParams& params, int multiprocessors, const Launcher& launch) {
  using T = typename ComputeType<S>::type;
  const LossProblem& problem = params.problem;
  int64_t threads = 0;
  MapSweep<ChannelsLast> sweep;
  if constexpr (ChannelsLast) {
    const CellPlan plan = plan_forward_cells(problem, params.storage, multiprocessors);
    sweep = cell_sweep(plan);
    threads = plan.threads;
  } else {
    const RowPlan plan = plan_forward_rows(problem, params.storage, multiprocessors);
    sweep = row_sweep(plan);
    threads = plan.threads;
  }
  const LossWorkspace workspace = loss_workspace(problem, params.storage, multiprocessors);
  launch(map_forward_kernel<S, ChannelsLast, All>, problem.batch * sweep.blocks_per_sample(), threads,
         shared_bytes<MapShared<S>>(problem.cells(), params.dense == nullptr, !ChannelsLast, threads),
         layer_of<S>(problem, params.activation, params.gradient), prior_of<T>(params), output_of<T>(params),
         global_array<T>(params.partial_maps, workspace.partial_maps),
         global_array<double>(params.partial_sums, workspace.partial_sums), sweep);
}

template <typename S, bool ChannelsLast, typename Launcher>
void forward_each(const LossParams& params, int multiprocessors, const Launcher& launch) {
  using T = typename ComputeType<S>::type;
  const LossProblem& problem = params.problem;
  const EachPlan plan = plan_forward_each(problem, params.storage, multiprocessors);
  const EachSweep sweep = each_sweep(plan, problem.cells());
  launch(
      each_forward_kernel<S, ChannelsLast>, problem.batch * plan.splits, MAX_BLOCK_THREADS,
      shared_bytes<EachShared<S>>(sweep), layer_of<S>(problem, params.activation, params.gradient), prior_of<T>(params),
      output_of<T>(params),
      global_array<double>(params.partial_sums, loss_workspace(problem, params.storage, multiprocessors).partial_sums),
      sweep);
}

template <typename S, bool ChannelsLast, Grouping G, typename Launcher>
void backward_loss(const LossBackwardParams& params, int multiprocessors, const Launcher& launch) {
  using T = typename ComputeType<S>::type;
  const LossProblem& problem = params.problem;
  const RowPlan plan = plan_backward(problem, params.storage, multiprocessors);
  const int64_t size = problem.batch * problem.sample_elements();
  Layer<S> layer = layer_of<S>(problem, params.activation, params.gradient);
  layer.aligned = layer.aligned && aligned(params.d_activation) && aligned(params.d_gradient);
  const LossDerivative<S> derivative{
      global_array<const T>(params.grad_loss, params.grad_loss_stride == 0 ? 1 : problem.batch),
      params.grad_loss_stride,
      global_array<const T>(params.plane, problem.batch * problem.cells()),
      global_array<const T>(params.coefficients, problem.batch * problem.groups() * 3),
      global_array<const T>(params.factor, problem.batch),
      global_array<S>(params.d_activation, size),
      global_array<S>(params.d_gradient, size)};
  launch(loss_backward_kernel<S, ChannelsLast, G>, problem.batch * plan.blocks_per_sample(), plan.threads, int64_t{0},
         layer, derivative, row_sweep(plan));
}

// Calls function.operator()<S, ChannelsLast>() for the layer's storage type and layout.
template <typename Params, typename Function>
void dispatch_layer(const Params& params, const Function& function) {
  dispatch_storage(params.storage, [&]<typename S>() {
    params.problem.layout == Layout::channels_last ? function.template operator()<S, true>()
                                                   : function.template operator()<S, false>();
  });
}

// The batch must not be empty.
template <typename Launcher>
void run_map_forward(const LossParams& params, int multiprocessors, const Launcher& launch) {
  dispatch_layer(params, [&]<typename S, bool ChannelsLast>() {
    params.problem.grouping == Grouping::all ? forward_map<S, ChannelsLast, true>(params, multiprocessors, launch)
                                             : forward_map<S, ChannelsLast, false>(params, multiprocessors, launch);
  });
}

template <typename Launcher>
void run_each_forward(const LossParams& params, int multiprocessors, const Launcher& launch) {
  dispatch_layer(
      params, [&]<typename S, bool ChannelsLast>() { forward_each<S, ChannelsLast>(params, multiprocessors, launch); });
}

template <typename Launcher>
void run_pal_loss_backward(const LossBackwardParams& params, int multiprocessors, const Launcher& launch) {
  dispatch_layer(params, [&]<typename S, bool ChannelsLast>() {
    switch (params.problem.grouping) {
      case Grouping::map:
        return backward_loss<S, ChannelsLast, Grouping::map>(params, multiprocessors, launch);
      case Grouping::all:
        return backward_loss<S, ChannelsLast, Grouping::all>(params, multiprocessors, launch);
      case Grouping::each:
        return backward_loss<S, ChannelsLast, Grouping::each>(params, multiprocessors, launch);
    }
  });
}

}  // namespace pal_fast::cuda
