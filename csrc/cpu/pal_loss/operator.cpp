// The fused loss on the CPU: the partition of the work into tasks, and the order in which their results are combined.
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "cpu/pal_loss/score.h"
#include "cpu/streaming_stores.h"
#include "pal_loss.h"

namespace pal_fast::cpu {
namespace {

// Grain size of parallel_for, and the minimum size of a piece, in elements.
constexpr int64_t GRAIN = 16384;

// The number of pieces that a batch is partitioned into at least, if they are large enough. Depends on shapes only.
constexpr int64_t MIN_PIECES = 64;

// The partition of a sample along its outermost axis, channels (contiguous) or cells (channels_last), of `length`, into
// `pieces` of `size`; the last may be smaller.
struct Partition {
  int64_t length;
  int64_t size;
  int64_t pieces;
  int64_t grain;

  Partition(const LossProblem& problem, int64_t channels)
      : length(problem.layout == Layout::contiguous ? channels : problem.cells()) {
    const int64_t row = problem.layout == Layout::contiguous ? problem.cells() : channels;
    const int64_t wanted = (MIN_PIECES + problem.batch - 1) / std::max<int64_t>(1, problem.batch);
    const int64_t most = std::clamp<int64_t>(length * row / GRAIN, 1, length);
    size = (length + std::min(wanted, most) - 1) / std::min(wanted, most);
    pieces = (length + size - 1) / size;
    grain = std::max<int64_t>(1, GRAIN / (size * row));
  }

  [[nodiscard]] Range range(int64_t piece) const { return {piece * size, std::min(length, (piece + 1) * size)}; }
};

// The layer's tensors, by sample. Tensors that are absent or not needed are null.
struct Samples {
  const char* activation;
  const char* gradient;
  char* d_activation = nullptr;
  char* d_gradient = nullptr;
  int64_t bytes;  // of one sample

  explicit Samples(const LossLayer& layer)
      : activation(data_or_null<char>(layer.activation)),
        gradient(data_or_null<char>(layer.gradient)),
        bytes(layer.problem.sample_elements() * layer.tensor().element_size()) {}

  template <typename Byte>
  [[nodiscard]] Byte* at(Byte* tensor, int64_t sample) const {
    return tensor ? tensor + sample * bytes : nullptr;
  }
};

// The outputs of the forward. T is the compute type.
template <typename T>
struct Outputs {
  T* loss;
  T* plane;
  T* coefficients;
  T* factor;
};

// Counts down the pieces of every sample. The thread that finishes a sample's last piece continues with the sample, so
// that one parallel region suffices. Which thread that is does not affect the order in which pieces are combined.
class Countdown {
 public:
  Countdown(int64_t samples, int64_t pieces) : left_(static_cast<size_t>(samples)) {
    for (auto& left : left_) {
      left.store(pieces, std::memory_order_relaxed);
    }
  }
  [[nodiscard]] bool is_last(int64_t sample) { return left_[sample].fetch_sub(1, std::memory_order_acq_rel) == 1; }

 private:
  std::vector<std::atomic<int64_t>> left_;
};

// Grouping::map: one pass over the layer.
template <typename T>
void forward_map(const PriorTensors<T>& prior_tensors, const Samples& layer, const Outputs<T>& to,
                 std::vector<double>& scores, std::vector<double>& weights) {
  const LossProblem& problem = prior_tensors.inputs.layer.problem;
  const Storage storage = storage_of(prior_tensors.inputs.layer.dtype());
  const int64_t cells = problem.cells(), batch = problem.batch;
  const Partition partition(problem, problem.count);
  // Pieces of channels write one map each, which are added in order; pieces of cells write their part of a single map.
  const int64_t maps = problem.layout == Layout::contiguous ? partition.pieces : 1;
  std::vector<double> sums(static_cast<size_t>(batch * maps * cells));
  Countdown countdown(batch, partition.pieces);
  torch::stable::parallel_for(0, batch * partition.pieces, partition.grain, [&](int64_t first, int64_t last) {
    std::vector<double> scratch, q(static_cast<size_t>(cells));
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / partition.pieces, piece = task % partition.pieces;
      double* sum = sums.data() + b * maps * cells;
      kernels().loss.accumulate_map(problem, storage, layer.at(layer.activation, b), layer.at(layer.gradient, b),
                                    partition.range(piece), sum + (maps > 1 ? piece * cells : 0));
      if (!countdown.is_last(b)) {
        continue;
      }
      for (int64_t map = 1; map < maps; ++map) {
        std::transform(sum, sum + cells, sum + map * cells, sum, std::plus<>());
      }
      const Prior prior = prior_of(prior_tensors, b, scratch, q.data());
      T* plane = to.plane + b * cells;
      scores[b] = score_map(prior, q.data(), cells, sum, plane);
      weights[b] = prior.weight;
      if (prior.weight == 0.0) {
        std::fill_n(plane, cells, T(0));
      }
    }
  });
}

// Moments of the union of two sets of whole channels (Chan, Golub and LeVeque); q has the same mean in both.
[[nodiscard]] inline Moments merged(const Moments& a, double a_terms, const Moments& b, double b_terms) {
  const double share = b_terms / (a_terms + b_terms), step = b.mean - a.mean;
  return {a.mean + step * share, a.square + b.square + step * step * a_terms * share, a.product + b.product};
}

// Grouping::all and Grouping::each: the priors, then one pass over the layer.
template <typename T>
void forward_channels(const PriorTensors<T>& prior_tensors, const Samples& layer, const Outputs<T>& to,
                      std::vector<double>& scores, std::vector<double>& weights) {
  const LossProblem& problem = prior_tensors.inputs.layer.problem;
  const Storage storage = storage_of(prior_tensors.inputs.layer.dtype());
  const int64_t cells = problem.cells(), batch = problem.batch, count = problem.count;
  const bool each = problem.grouping == Grouping::each;
  std::vector<Prior> priors(static_cast<size_t>(batch));
  torch::stable::parallel_for(0, batch, std::max<int64_t>(1, GRAIN / cells), [&](int64_t first, int64_t last) {
    std::vector<double> scratch, q(static_cast<size_t>(cells));
    for (int64_t b = first; b < last; ++b) {
      priors[b] = prior_of(prior_tensors, b, scratch, q.data());
      std::transform(q.begin(), q.end(), to.plane + b * cells, [](double value) { return clamped<T>(value); });
    }
  });

  const int64_t blocks = (count + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
  const int64_t grain = std::max<int64_t>(1, GRAIN / (std::min(count, CHANNEL_BLOCK) * cells));
  std::vector<Moments> parts(static_cast<size_t>(each ? 0 : batch * blocks));
  std::vector<double> part_scores(static_cast<size_t>(each ? batch * blocks : 0));
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t first, int64_t last) {
    Moments moments[CHANNEL_BLOCK];
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / blocks, first_channel = task % blocks * CHANNEL_BLOCK;
      const Range channels{first_channel, std::min(count, first_channel + CHANNEL_BLOCK)};
      const int64_t width = channels.last - channels.first;
      const bool dead = priors[b].weight == 0.0;
      if (!dead) {
        kernels().loss.channel_moments(problem, storage, layer.at(layer.activation, b), layer.at(layer.gradient, b),
                                       to.plane + b * cells, channels, moments);
      }
      if (!each) {
        Moments whole = dead ? Moments{} : moments[0];
        for (int64_t c = 1; !dead && c < width; ++c) {
          whole = merged(whole, static_cast<double>(c * cells), moments[c], static_cast<double>(cells));
        }
        parts[task] = whole;
        continue;
      }
      double score = 0.0;
      T* coefficients = to.coefficients + 3 * (b * count + channels.first);
      for (int64_t c = 0; c < width; ++c) {
        Group group = dead ? Group{} : score_moments(priors[b].scale, static_cast<double>(cells), moments[c]);
        group.slope /= static_cast<double>(count);
        store_coefficients(group, coefficients + 3 * c);
        score += group.score;
      }
      part_scores[task] = score / static_cast<double>(count);
    }
  });

  for (int64_t b = 0; b < batch; ++b) {
    weights[b] = priors[b].weight;
    const int64_t first = b * blocks;
    if (each) {
      scores[b] = sum_over(blocks, [&](int64_t i) { return part_scores[first + i]; });
      continue;
    }
    Moments whole = parts[first];
    for (int64_t i = 1; i < blocks; ++i) {
      const int64_t before = i * CHANNEL_BLOCK, more = std::min(CHANNEL_BLOCK, count - before);
      whole = merged(whole, static_cast<double>(before * cells), parts[first + i], static_cast<double>(more * cells));
    }
    const Group group = score_moments(priors[b].scale, terms_of(problem), whole);
    scores[b] = group.score;
    store_coefficients(group, to.coefficients + 3 * b);
  }
}

template <typename T>
void forward(const PriorTensors<T>& prior, const Samples& layer, const Outputs<T>& to) {
  const LossProblem& problem = prior.inputs.layer.problem;
  std::vector<double> scores(static_cast<size_t>(problem.batch)), weights(static_cast<size_t>(problem.batch));
  problem.grouping == Grouping::map ? forward_map(prior, layer, to, scores, weights)
                                    : forward_channels(prior, layer, to, scores, weights);
  reduce(prior.inputs.options.reduction, scores, weights, to.loss, to.factor);
}

// Whether the gradients are written by non-temporal stores. These require both gradients to be aligned at the same
// elements, and rows of a channels_last layer to be whole vectors.
[[nodiscard]] bool use_streaming_stores(const Samples& layer, const LossProblem& problem) {
  constexpr int64_t vector = 64;  // bytes, at most
  const int64_t total = problem.batch * layer.bytes;
  const bool d_activation = prefers_streaming_stores(layer.d_activation, total);
  const bool d_gradient = prefers_streaming_stores(layer.d_gradient, total);
  const bool both = layer.d_activation && layer.d_gradient;
  if (both && (layer.d_activation - layer.d_gradient) % vector != 0) {
    return false;
  }
  const int64_t elements = vector / (layer.bytes / problem.sample_elements());
  const bool whole =
      problem.layout == Layout::contiguous || (problem.channels % elements == 0 && problem.count % elements == 0);
  return whole && (both ? d_activation && d_gradient : d_activation || d_gradient);
}

template <typename T>
void backward(const LossProblem& problem, Storage storage, const Samples& layer, const T* grad_loss,
              int64_t grad_loss_stride, const T* plane, const T* coefficients, const T* factor) {
  const Partition partition(problem, problem.channels);
  const bool streams = use_streaming_stores(layer, problem);
  torch::stable::parallel_for(0, problem.batch * partition.pieces, partition.grain, [&](int64_t first, int64_t last) {
    std::vector<T> scratch(static_cast<size_t>(gradients_scratch(problem)));
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / partition.pieces;
      const T scale = factor[b] == 0 ? T(0) : grad_loss[b * grad_loss_stride] * factor[b];
      const Derivative<T> derivative{scale, plane + b * problem.cells(),
                                     coefficients ? coefficients + 3 * b * problem.groups() : nullptr, scratch.data()};
      kernels().loss.gradients(problem, storage, layer.at(layer.activation, b), layer.at(layer.gradient, b),
                               &derivative, partition.range(task % partition.pieces), streams,
                               layer.at(layer.d_activation, b), layer.at(layer.d_gradient, b));
    }
  });
}

void pal_loss(const LossInputs& inputs, const LossOutputs& outputs) {
  dispatch_computing_type(inputs.layer.dtype(), [&]<typename T>() {
    const PriorTensors<T> prior{inputs,
                                data_or_null<T>(inputs.heatmap),
                                {inputs.landmarks, inputs.visible, inputs.weights},
                                data_or_null<T>(inputs.sample_weight)};
    forward<T>(prior, Samples(inputs.layer),
               {mutable_data_or_null<T>(outputs.loss), mutable_data_or_null<T>(outputs.plane),
                mutable_data_or_null<T>(outputs.coefficients), mutable_data_or_null<T>(outputs.factor)});
  });
}

void pal_loss_backward(const LossBackwardInputs& inputs, const Tensor& d_activation, const Tensor& d_gradient) {
  Samples layer(inputs.layer);
  layer.d_activation = mutable_data_or_null<char>(d_activation);
  layer.d_gradient = mutable_data_or_null<char>(d_gradient);
  const int64_t grad_loss_stride = inputs.grad_loss.dim() == 0 ? 0 : inputs.grad_loss.stride(0);
  dispatch_computing_type(inputs.layer.dtype(), [&]<typename T>() {
    backward<T>(inputs.layer.problem, storage_of(inputs.layer.dtype()), layer, data_or_null<T>(inputs.grad_loss),
                grad_loss_stride, data_or_null<T>(inputs.plane), data_or_null<T>(inputs.coefficients),
                data_or_null<T>(inputs.factor));
  });
}

}  // namespace

const LossBackend loss_backend = {&pal_loss, &pal_loss_backward};

}  // namespace pal_fast::cpu
