// Batch normalisation's CUDA kernels, emulated (tests/cuda/emulator), against the formulas in double. Prints
// "case<TAB>output<TAB>error" lines; the error is relative L2, "nan" if anything is.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>

// clang-format off: the emulator first
#include "emulator.h"
#include "batch_norm_kernels.cuh"
// clang-format on

namespace {

using namespace pal_fast;
using namespace pal_fast::cuda;

std::mt19937 generator;
double normal() { return std::normal_distribution<double>()(generator); }

struct Errors {
  std::map<std::string, std::pair<double, double>> squares;  // of difference and of wanted
  void add(const std::string& output, double value, double wanted) {
    auto& [difference, size] = squares[output];
    difference += (value - wanted) * (value - wanted);
    size += wanted * wanted;
  }
};

template <typename S>
double number(S value) {
  return static_cast<double>(widened(value));
}

template <typename S, int V, bool Rows, bool Relu>
void test(const char* type, int B, int C, int L, int over_batch, int over_length, bool training, bool with_grad_sums) {
  using T = typename Computing<S>::type;
  const long M = static_cast<long>(B) * L, splits = static_cast<long>(over_batch) * over_length;
  const T unwritten = std::numeric_limits<T>::quiet_NaN();
  const auto tensor = [&](double shift) {
    std::vector<S> values(M * C);
    for (S& value : values) value = narrowed<S>(static_cast<T>(normal() + shift));
    return values;
  };
  const auto vector = [&](long size, double least) {
    std::vector<T> values(size);
    for (T& value : values) value = static_cast<T>(least > 0 ? least + std::abs(normal()) : normal());
    return values;
  };
  auto x = tensor(3);
  const auto g = tensor(0), v = tensor(0);
  std::vector<S> y(M * C), dx(M * C), d_grad(M * C), d_input(M * C);
  const auto weight = vector(C, 0), bias = vector(C, 0), grad_sums = vector(2 * C, 0);
  const auto old_mean = vector(C, 0), old_variance = vector(C, 0.5);
  auto running_mean = old_mean, running_variance = old_variance;
  std::vector<T> statistics(2 * C, unwritten), sums(2 * C, unwritten), d_weight(C, unwritten);
  std::vector<T> partial(splits * BATCH_NORM_PARTIAL_ROWS * C, unwritten);

  const auto place = [&](int c, long m) { return Rows ? m * C + c : (m / L * C + c) * L + m % L; };
  const auto moments_of = [&](int c) {
    double mean = 0, variance = 0;
    for (long m = 0; m < M; ++m) mean += number(x[place(c, m)]) / M;
    for (long m = 0; m < M; ++m) variance += std::pow(number(x[place(c, m)]) - mean, 2) / M;
    return std::pair{mean, variance};
  };
  // Rounding must not decide on which side of the ReLU an element lies.
  const auto moves = [&](int c) {
    const auto [mean, variance] = training ? moments_of(c) : std::pair<double, double>{old_mean[c], old_variance[c]};
    bool moved = false;
    for (long m = 0; m < M; ++m) {
      S& value = x[place(c, m)];
      const double before = weight[c] * (number(value) - mean) / std::sqrt(variance + 1e-5) + bias[c];
      if (std::abs(before) < 1e-4) {
        value = narrowed<S>(static_cast<T>(number(value) + 0.1));
        moved = true;
      }
    }
    return moved;
  };
  for (int c = 0; Relu && c < C; ++c) {
    while (moves(c)) {
    }
  }

  TypedPass<S> pass{};
  pass.batch = B;
  pass.channels = C;
  pass.length = L;
  pass.training = training;
  set_shares<V, Rows>(pass, over_batch, over_length);
  pass.input = x.data();
  pass.grad = g.data();
  pass.weight = weight.data();
  pass.bias = bias.data();
  pass.statistics = statistics.data();
  pass.running_mean = running_mean.data();
  pass.running_variance = running_variance.data();
  pass.momentum = 0.1;
  pass.eps = 1e-5;
  pass.partial = partial.data();
  unsigned along = Rows ? ROW_LANES : 1;
  while (!Rows && along < BLOCK && along < static_cast<unsigned>(L / V)) along *= 2;
  const unsigned tiles = Rows ? (C + ROW_LANES * V - 1) / (ROW_LANES * V) : C;
  const emulator::Index grid{tiles, static_cast<unsigned>(splits)}, threads{along, BLOCK / along};

  if (training) emulator::launch(grid, threads, [&] { statistics_kernel<S, V, Rows>(pass); });
  if (!training || splits > 1) {
    emulator::launch({(C + BLOCK - 1u) / BLOCK}, {BLOCK}, [&] { final_statistics_kernel<S>(pass, splits); });
  }
  pass.output = y.data();
  emulator::launch(grid, threads, [&] { forward_kernel<S, V, Rows, Relu>(pass); });
  const auto derive = [&]<Derivative D>() {
    if (splits > 1) emulator::launch(grid, threads, [&] { sums_kernel<D, S, V, Rows, Relu>(pass); });
    emulator::launch(grid, threads,
                     [&] { derivative_kernel<D, S, V, Rows, Relu>(pass, splits > 1 ? splits : 0, true); });
  };
  pass.output = dx.data();
  pass.channel_output = sums.data();
  derive.template operator()<Derivative::first>();
  pass.grad_grad = v.data();
  pass.sums = sums.data();
  pass.grad_sums = with_grad_sums ? grad_sums.data() : nullptr;
  pass.output = d_grad.data();
  pass.second_output = d_input.data();
  pass.channel_output = d_weight.data();
  derive.template operator()<Derivative::second>();

  Errors errors;
  for (int c = 0; c < C; ++c) {
    const auto at = [&](long m) { return place(c, m); };
    auto [mean, variance] = moments_of(c);
    if (training) {
      errors.add("running_mean", running_mean[c], 0.9 * old_mean[c] + 0.1 * mean);
      errors.add("running_var", running_variance[c], 0.9 * old_variance[c] + 0.1 * variance * M / (M - 1));
    } else {
      mean = old_mean[c];
      variance = old_variance[c];
    }
    const double r = 1 / std::sqrt(variance + 1e-5), w = weight[c];
    std::vector<double> z(M), G(M), passes(M);
    double s0 = 0, s1 = 0, v0 = 0, v1 = 0, vg = 0;
    for (long m = 0; m < M; ++m) {
      z[m] = (number(x[at(m)]) - mean) * r;
      const double before = w * z[m] + bias[c], vm = number(v[at(m)]);
      passes[m] = !Relu || before > 0;
      G[m] = passes[m] * number(g[at(m)]);
      s0 += G[m], s1 += G[m] * z[m], v0 += vm, v1 += vm * z[m], vg += vm * G[m];
      errors.add("y", number(y[at(m)]), passes[m] * before);
    }
    errors.add("sums", sums[c], s0);
    errors.add("sums", sums[C + c], s1);
    const double u0 = with_grad_sums ? grad_sums[c] : 0, u1 = with_grad_sums ? grad_sums[C + c] : 0;
    const double inner = training ? vg - (s0 * v0 + s1 * v1) / M : vg;
    errors.add("d_weight", d_weight[c], r * inner);
    // e = d/dz of <v, dx> + <u, sums>, carried through z and through the r in front.
    const double p = u1 - (training ? w * r * v1 / M : 0), q = training ? -w * r * s1 / M : 0;
    const double mean_e = (p * s0 + q * v0) / M, mean_ez = (p * s1 + q * v1) / M;
    for (long m = 0; m < M; ++m) {
      const double vm = number(v[at(m)]), batch = training ? 1 : 0;
      errors.add("dx", number(dx[at(m)]), w * r * (G[m] - batch * (s0 + z[m] * s1) / M));
      errors.add("d_grad", number(d_grad[at(m)]),
                 passes[m] * (w * r * (vm - batch * (v0 + z[m] * v1) / M) + u1 * z[m] + u0));
      errors.add("d_input", number(d_input[at(m)]),
                 r * (p * G[m] + q * vm) - batch * (r * (mean_e + z[m] * mean_ez) + r * r * z[m] * w * inner / M));
    }
  }
  for (const auto& [output, squares] : errors.squares) {
    std::printf("%s %s V%d [%d, %d, %d] split %dx%d relu=%d training=%d grad_sums=%d\t%s\t%.3e\n", type,
                Rows ? "rows" : "planes", V, B, C, L, over_batch, over_length, Relu, training, with_grad_sums,
                output.c_str(), std::sqrt(squares.first / (squares.second > 0 ? squares.second : 1)));
  }
}

}  // namespace

int main(int count, char** arguments) {
  generator.seed(count > 1 ? std::atoi(arguments[1]) : 0);
  for (const bool training : {true, false}) {
    for (const bool sums : {true, false}) {
      test<float, 1, false, false>("float32", 4, 3, 49, 1, 1, training, sums);
      test<float, 4, false, true>("float32", 5, 3, 64, 1, 1, training, sums);
      test<float, 4, false, false>("float32", 3, 2, 1024, 3, 2, training, sums);
      test<float, 1, false, true>("float32", 5, 3, 7, 4, 1, training, sums);
      test<float, 1, false, true>("float32", 2, 3, 77, 2, 5, training, sums);
      test<float, 4, true, false>("float32", 4, 140, 9, 1, 1, training, sums);
      test<float, 4, true, true>("float32", 4, 136, 9, 5, 1, training, sums);
      test<float, 1, true, true>("float32", 7, 37, 3, 3, 1, training, sums);
      test<double, 2, false, true>("float64", 4, 3, 16, 2, 1, training, sums);
      test<double, 2, true, false>("float64", 4, 70, 5, 3, 1, training, sums);
      test<__half, 4, false, true>("float16", 4, 3, 16, 2, 1, training, sums);
      test<__nv_bfloat16, 4, true, true>("bfloat16", 4, 36, 16, 2, 1, training, sums);
    }
  }
}
