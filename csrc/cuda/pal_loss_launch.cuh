// Which of the loss's kernels run, on which grid; a launcher is called as landmark_heatmap_launch.cuh says.
#pragma once

#include "pal_loss_backward_kernel.cuh"
#include "pal_loss_each_kernel.cuh"
#include "pal_loss_map_kernel.cuh"
#include "pal_loss_pass.h"

namespace pal_fast::cuda {

template <typename T>
[[nodiscard]] PriorInputs<T> prior_of(const LossPass& pass) {
  HeatmapProblem heatmap = pass.heatmap;
  if (!pass.landmarks) {
    heatmap.landmarks = 0;  // and the frame is not used
    heatmap.image_height = heatmap.image_width = heatmap.sigma = 1;
  }
  return {gaussians_of<T>(heatmap, {pass.landmarks, pass.visible, pass.weights}),
          elements<const T>(pass.dense, pass.problem.batch * pass.problem.cells()),
          elements<const T>(pass.sample_weight, pass.problem.batch),
          pass.heatmap.combine,
          pass.heatmap.normalize,
          pass.options.score,
          pass.options.scale};
}

template <typename T>
[[nodiscard]] LossOutput<T> output_of(const LossPass& pass) {
  const LossProblem& problem = pass.problem;
  return {elements<T>(pass.loss, pass.options.reduction == Reduction::none ? problem.batch : 1),
          elements<T>(pass.plane, problem.batch * problem.cells()),
          elements<T>(pass.coefficients, problem.batch * problem.groups() * 3),
          elements<T>(pass.factor, problem.batch),
          elements<double>(pass.scores, 2 * problem.batch),
          elements<unsigned>(pass.tickets, problem.batch + 1),
          problem.batch,
          pass.options.reduction};
}

template <typename S, bool ChannelsLast, bool All, typename Launcher>
void forward_map(const LossPass& pass, int processors, const Launcher& launch) {
  using T = typename Computing<S>::type;
  const LossProblem& problem = pass.problem;
  RowSweep rows{};
  CellSweep cells{};
  int64_t blocks = 0, threads = 0;
  if constexpr (ChannelsLast) {
    const CellPlan plan = plan_forward_cells(problem, pass.storage, processors);
    cells = {static_cast<int>(plan.lanes), static_cast<int>(plan.cells_per_split), static_cast<int>(plan.splits)};
    blocks = plan.splits;
    threads = plan.threads;
  } else {
    const RowPlan plan = plan_forward_rows(problem, pass.storage, processors);
    rows = row_sweep(plan);
    blocks = plan.blocks_per_sample();
    threads = plan.threads;
  }
  const LossWorkspace workspace = loss_workspace(problem, pass.storage, processors);
  launch(map_forward_kernel<S, ChannelsLast, All>, problem.batch * blocks, threads,
         MapShared<S>::bytes(problem.cells(), pass.dense == nullptr, !ChannelsLast, threads),
         layer_of<S>(problem, pass.activation, pass.gradient), prior_of<T>(pass), output_of<T>(pass),
         elements<T>(pass.shares, workspace.shares), elements<double>(pass.totals, workspace.totals), rows, cells);
}

template <typename S, bool ChannelsLast, typename Launcher>
void forward_each(const LossPass& pass, int processors, const Launcher& launch) {
  using T = typename Computing<S>::type;
  const LossProblem& problem = pass.problem;
  const EachPlan plan = plan_forward_each(problem, pass.storage, processors);
  const EachSweep sweep = each_sweep(plan, problem.cells());
  launch(each_forward_kernel<S, ChannelsLast>, problem.batch * plan.splits, BLOCK_THREADS, EachShared<S>::bytes(sweep),
         layer_of<S>(problem, pass.activation, pass.gradient), prior_of<T>(pass), output_of<T>(pass),
         elements<double>(pass.totals, loss_workspace(problem, pass.storage, processors).totals), sweep);
}

template <typename S, bool ChannelsLast, Grouping G, typename Launcher>
void backward_loss(const LossBackwardPass& pass, int processors, const Launcher& launch) {
  using T = typename Computing<S>::type;
  const LossProblem& problem = pass.problem;
  const RowPlan plan = plan_backward(problem, pass.storage, processors);
  const int64_t size = problem.batch * problem.sample_elements();
  Layer<S> layer = layer_of<S>(problem, pass.activation, pass.gradient);
  layer.aligned = layer.aligned && aligned(pass.d_activation) && aligned(pass.d_gradient);
  const LossDerivative<S> derivative{elements<const T>(pass.grad_loss, pass.grad_loss_stride == 0 ? 1 : problem.batch),
                                     pass.grad_loss_stride,
                                     elements<const T>(pass.plane, problem.batch * problem.cells()),
                                     elements<const T>(pass.coefficients, problem.batch * problem.groups() * 3),
                                     elements<const T>(pass.factor, problem.batch),
                                     elements<S>(pass.d_activation, size),
                                     elements<S>(pass.d_gradient, size)};
  launch(loss_backward_kernel<S, ChannelsLast, G>, problem.batch * plan.blocks_per_sample(), plan.threads, int64_t{0},
         layer, derivative, row_sweep(plan));
}

// Calls function.operator()<S, ChannelsLast>() with what the pass asks for.
template <typename Pass, typename Function>
void with_types(const Pass& pass, const Function& function) {
  with_storage(pass.storage, [&]<typename S>() {
    pass.problem.layout == Layout::channels_last ? function.template operator()<S, true>()
                                                 : function.template operator()<S, false>();
  });
}

// The batch must not be empty.
template <typename Launcher>
void run_map_forward(const LossPass& pass, int processors, const Launcher& launch) {
  with_types(pass, [&]<typename S, bool ChannelsLast>() {
    pass.problem.grouping == Grouping::all ? forward_map<S, ChannelsLast, true>(pass, processors, launch)
                                           : forward_map<S, ChannelsLast, false>(pass, processors, launch);
  });
}

template <typename Launcher>
void run_each_forward(const LossPass& pass, int processors, const Launcher& launch) {
  with_types(pass, [&]<typename S, bool ChannelsLast>() { forward_each<S, ChannelsLast>(pass, processors, launch); });
}

template <typename Launcher>
void run_pal_loss_backward(const LossBackwardPass& pass, int processors, const Launcher& launch) {
  with_types(pass, [&]<typename S, bool ChannelsLast>() {
    switch (pass.problem.grouping) {
      case Grouping::map:
        return backward_loss<S, ChannelsLast, Grouping::map>(pass, processors, launch);
      case Grouping::all:
        return backward_loss<S, ChannelsLast, Grouping::all>(pass, processors, launch);
      case Grouping::each:
        return backward_loss<S, ChannelsLast, Grouping::each>(pass, processors, launch);
    }
  });
}

}  // namespace pal_fast::cuda
