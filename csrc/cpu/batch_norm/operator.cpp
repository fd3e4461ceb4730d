// Batch normalisation on the CPU: each operator is one or two passes over the layer, with per-channel arithmetic
// between them.
#include <cmath>
#include <vector>

#include "batch_norm.h"
#include "cpu/batch_norm/passes.h"
#include "cpu/instruction_set.h"

namespace pal_fast::cpu {
namespace {

PAL_FAST_DISPATCH_INSTRUCTION_SET(Passes, passes, passes)

// The sums [k, C] of one reduction, added over its blocks.
[[nodiscard]] std::vector<double> sums_of(const Pass& pass, Sums kind, int64_t k) {
  const int64_t blocks = reduction_blocks(pass.problem), size = k * pass.problem.channels;
  std::vector<double> partial(static_cast<size_t>(blocks * size));
  passes().reduce(pass, kind, partial.data());
  for (int64_t block = 1; block < blocks; ++block) {
    for (int64_t i = 0; i < size; ++i) {
      partial[i] += partial[block * size + i];
    }
  }
  partial.resize(static_cast<size_t>(size));
  return partial;
}

// The per-channel parameters, as double.
template <typename T>
struct Channels {
  const T* weight;
  const T* bias;
  const T* statistics;
  int64_t count;

  explicit Channels(const BatchNormTensors& tensors)
      : weight(data_or_null<T>(tensors.weight)),
        bias(data_or_null<T>(tensors.bias)),
        statistics(data_or_null<T>(tensors.statistics)),
        count(tensors.input.size(1)) {}

  [[nodiscard]] double weight_of(int64_t c) const { return weight ? static_cast<double>(weight[c]) : 1.0; }
  [[nodiscard]] double bias_of(int64_t c) const { return bias ? static_cast<double>(bias[c]) : 0.0; }
  [[nodiscard]] double r_of(int64_t c) const { return static_cast<double>(statistics[count + c]); }

  // A table [rows, C] with the common rows filled in.
  [[nodiscard]] std::vector<T> table(int64_t rows) const {
    std::vector<T> values(static_cast<size_t>(rows * count));
    for (int64_t c = 0; c < count; ++c) {
      values[Row::mean * count + c] = statistics[c];
      values[Row::scale * count + c] = static_cast<T>(weight_of(c) * r_of(c));
      values[Row::bias * count + c] = static_cast<T>(bias_of(c));
    }
    return values;
  }
};

[[nodiscard]] Pass pass_of(const BatchNormTensors& tensors, const BatchNormProblem& problem) {
  Pass pass;
  pass.problem = problem;
  pass.storage = storage_of(tensors.input.scalar_type());
  pass.input = tensors.input.const_data_ptr();
  pass.grad = data_or_null(tensors.grad);
  pass.grad_grad = data_or_null(tensors.grad_grad);
  return pass;
}

template <typename T>
void statistics_of_batch(const BatchNormTensors& tensors, const BatchNormProblem& problem, double momentum, double eps,
                         T* statistics) {
  const int64_t C = problem.channels;
  const auto count = static_cast<double>(problem.count());
  Pass pass = pass_of(tensors, problem);
  std::vector<T> table(static_cast<size_t>(Row::common_rows * C));
  pass.table = table.data();
  std::vector<double> means = sums_of(pass, Sums::input, 1);
  for (int64_t c = 0; c < C; ++c) {
    means[c] /= count;
    table[Row::mean * C + c] = static_cast<T>(means[c]);
  }
  const std::vector<double> squares = sums_of(pass, Sums::squares, 1);
  T* running_mean = tensors.running_mean ? static_cast<T*>(tensors.running_mean->mutable_data_ptr()) : nullptr;
  T* running_variance =
      tensors.running_variance ? static_cast<T*>(tensors.running_variance->mutable_data_ptr()) : nullptr;
  for (int64_t c = 0; c < C; ++c) {
    const double variance = squares[c] / count;
    statistics[c] = static_cast<T>(means[c]);
    statistics[C + c] = static_cast<T>(1.0 / std::sqrt(variance + eps));
    if (running_mean) {
      running_mean[c] += static_cast<T>(momentum * (means[c] - static_cast<double>(running_mean[c])));
    }
    if (running_variance) {
      const double unbiased = squares[c] / (count - 1.0);
      running_variance[c] += static_cast<T>(momentum * (unbiased - static_cast<double>(running_variance[c])));
    }
  }
}

template <typename T>
void statistics_of_running(const BatchNormTensors& tensors, double eps, T* statistics) {
  const int64_t C = tensors.input.size(1);
  const T* running_mean = data_or_null<T>(tensors.running_mean);
  const T* running_variance = data_or_null<T>(tensors.running_variance);
  for (int64_t c = 0; c < C; ++c) {
    statistics[c] = running_mean[c];
    statistics[C + c] = static_cast<T>(1.0 / std::sqrt(static_cast<double>(running_variance[c]) + eps));
  }
}

template <typename T>
void forward(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& output) {
  const std::vector<T> table = Channels<T>(tensors).table(Row::common_rows);
  Pass pass = pass_of(tensors, problem);
  pass.table = table.data();
  pass.output = mutable_data_or_null(output);
  passes().apply(pass, Elementwise::forward);
}

template <typename T>
void backward(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_input,
              const Tensor& sums) {
  const Channels<T> channels(tensors);
  const int64_t C = channels.count;
  std::vector<T> table = channels.table(BACKWARD_ROWS);
  Pass pass = pass_of(tensors, problem);
  pass.table = table.data();
  std::vector<double> s(static_cast<size_t>(2 * C));
  if (sums.numel() > 0) {
    s = sums_of(pass, Sums::backward, 2);
    auto* to = static_cast<T*>(sums.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      s[C + c] *= channels.r_of(c);
      to[c] = static_cast<T>(s[c]);
      to[C + c] = static_cast<T>(s[C + c]);
    }
  }
  if (grad_input.numel() == 0) {
    return;
  }
  const double inverse_count = 1.0 / static_cast<double>(problem.count());
  for (int64_t c = 0; c < C; ++c) {
    const auto of = batch_norm_backward_coefficients<double>(problem.training, inverse_count, channels.weight_of(c),
                                                             channels.r_of(c), s[c], s[C + c]);
    table[(Row::common_rows + 0) * C + c] = static_cast<T>(of.of_grad);
    table[(Row::common_rows + 1) * C + c] = static_cast<T>(of.of_input);
    table[(Row::common_rows + 2) * C + c] = static_cast<T>(of.constant);
  }
  pass.output = mutable_data_or_null(grad_input);
  passes().apply(pass, Elementwise::backward);
}

template <typename T>
void double_backward(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_grad,
                     const Tensor& grad_input, const Tensor& grad_weight) {
  const Channels<T> channels(tensors);
  const int64_t C = channels.count;
  std::vector<T> table = channels.table(DOUBLE_BACKWARD_ROWS);
  Pass pass = pass_of(tensors, problem);
  pass.table = table.data();
  const std::vector<double> v = sums_of(pass, Sums::double_backward, 3);
  const T* s = data_or_null<T>(tensors.sums);
  const T* u = data_or_null<T>(tensors.grad_sums);
  auto* to_weight = static_cast<T*>(grad_weight.mutable_data_ptr());
  const double inverse_count = 1.0 / static_cast<double>(problem.count());
  for (int64_t c = 0; c < C; ++c) {
    const double r = channels.r_of(c);
    const auto second = batch_norm_double_backward_coefficients<double>(
        problem.training, inverse_count, channels.weight_of(c), r, s ? s[c] : 0.0, s ? s[C + c] : 0.0, u ? u[c] : 0.0,
        u ? u[C + c] : 0.0, v[c], v[C + c] * r, v[2 * C + c]);
    const double rows[] = {second.grad_grad.of_grad_grad, second.grad_grad.of_input,      second.grad_grad.constant,
                           second.grad_input.of_grad,     second.grad_input.of_grad_grad, second.grad_input.of_input,
                           second.grad_input.constant};
    for (int64_t row = 0; row < DOUBLE_BACKWARD_ROWS - Row::common_rows; ++row) {
      table[(Row::common_rows + row) * C + c] = static_cast<T>(rows[row]);
    }
    to_weight[c] = static_cast<T>(second.grad_weight);
  }
  pass.output = mutable_data_or_null(grad_grad);
  pass.second_output = mutable_data_or_null(grad_input);
  passes().apply(pass, Elementwise::double_backward);
}

void batch_norm_statistics(const BatchNormTensors& tensors, const BatchNormProblem& problem, double momentum,
                           double eps, const Tensor& statistics) {
  dispatch_computing_type(tensors.input.scalar_type(), [&]<typename T>() {
    T* to = mutable_data_or_null<T>(statistics);
    problem.training ? statistics_of_batch(tensors, problem, momentum, eps, to)
                     : statistics_of_running(tensors, eps, to);
  });
}

void batch_norm(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& output) {
  dispatch_computing_type(tensors.input.scalar_type(), [&]<typename T>() { forward<T>(tensors, problem, output); });
}

void batch_norm_backward(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_input,
                         const Tensor& sums) {
  dispatch_computing_type(tensors.input.scalar_type(),
                          [&]<typename T>() { backward<T>(tensors, problem, grad_input, sums); });
}

void batch_norm_double_backward(const BatchNormTensors& tensors, const BatchNormProblem& problem,
                                const Tensor& grad_grad, const Tensor& grad_input, const Tensor& grad_weight) {
  dispatch_computing_type(tensors.input.scalar_type(), [&]<typename T>() {
    double_backward<T>(tensors, problem, grad_grad, grad_input, grad_weight);
  });
}

}  // namespace

const BatchNormBackend batch_norm_backend = {&batch_norm_statistics, &batch_norm, &batch_norm_backward,
                                             &batch_norm_double_backward};

}  // namespace pal_fast::cpu
