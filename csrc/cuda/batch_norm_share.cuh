// Which elements a block of batch normalisation's kernels takes, and how its threads go through them.
#pragma once

#include "batch_norm_pass.h"
#include "block.cuh"

namespace pal_fast::cuda {

// Elements that a thread loads and stores at once.
template <typename S, bool Wide>
inline constexpr int ELEMENTS = Wide ? static_cast<int>(batch_norm_vector(sizeof(S))) : 1;

// A pass with its pointers typed, as kernels take it.
template <typename S>
struct TypedPass {
  using T = typename Computing<S>::type;

  int64_t batch, channels, length;  // B, C, L
  bool training, relu;
  // The plan.
  int tiles, group, columns, rows_at_once, splits, over_inner;
  int64_t outer_part, inner_part;
  T inverse_count;              // 1 / M
  Pointer<const S> input;       // [B, C, L]
  Pointer<const S> grad;        // [B, C, L]
  Pointer<const S> grad_grad;   // [B, C, L]
  Pointer<const T> weight;      // [C]
  Pointer<const T> bias;        // [C]
  Pointer<const T> sums;        // [2, C]
  Pointer<const T> grad_sums;   // [2, C]
  Pointer<T> statistics;        // [2, C]
  Pointer<T> running_mean;      // [C]
  Pointer<T> running_variance;  // [C]
  double momentum, eps;
  Pointer<S> output;          // [B, C, L]
  Pointer<S> second_output;   // [B, C, L]
  Pointer<T> channel_output;  // [2, C] or [C]
  Pointer<T> partial;         // [splits + 1, BATCH_NORM_PARTIAL_ROWS, C]: the splits', and the sums of all
  Pointer<unsigned> tickets;  // [tiles]

  [[nodiscard]] __device__ __forceinline__ int64_t count() const { return batch * length; }  // M
  [[nodiscard]] __device__ __forceinline__ Pointer<T> partial_of(int split, int row) const {
    return partial + (static_cast<int64_t>(split) * BATCH_NORM_PARTIAL_ROWS + row) * channels;
  }
};

// The share of a block and the place of a thread in it.
template <typename S, bool Wide, Form F>
struct Share {
  static constexpr int V = ELEMENTS<S, Wide>;
  // How many channels a thread works on: of a plane's vector one, else one an element.
  static constexpr int W = F == Form::planes ? 1 : V;

  const TypedPass<S>& pass;
  int tile, split;
  int row, column;           // the thread's
  int64_t outer, outer_end;  // samples or, channels innermost, rows
  int64_t inner, inner_end;  // elements of a plane: the thread's first, and where the block's part ends

  // `turned`: the last block's share first. What the pass before has read last is then read first, out of L2.
  __device__ __forceinline__ explicit Share(const TypedPass<S>& given, bool turned = false) : pass(given) {
    const unsigned block = turned ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    tile = static_cast<int>(block % static_cast<unsigned>(pass.tiles));
    split = static_cast<int>(block / static_cast<unsigned>(pass.tiles));
    row = static_cast<int>(threadIdx.x) / pass.columns;
    column = static_cast<int>(threadIdx.x) % pass.columns;
    const int64_t all = F == Form::rows ? pass.count() : pass.batch;
    const int64_t begin = pass.outer_part * (split / pass.over_inner);
    outer_end = min(begin + pass.outer_part, all);
    outer = min(begin, outer_end);
    if constexpr (F == Form::planes) {
      const int64_t first = pass.inner_part * (split % pass.over_inner) * V;
      inner_end = min(first + pass.inner_part * V, pass.length);
      inner = first + column * V;
    } else {
      inner = inner_end = 0;
    }
  }

  [[nodiscard]] __device__ __forceinline__ int64_t first_channel() const {
    return static_cast<int64_t>(tile) * pass.group;
  }
  // The channel of a thread's element e, from the block's first.
  [[nodiscard]] __device__ __forceinline__ int offset(int e) const {
    if constexpr (F == Form::planes) {
      return 0;
    } else if constexpr (F == Form::rows) {
      return column * V + e;
    } else {
      return (column * V + e) / static_cast<int>(pass.length);
    }
  }
  [[nodiscard]] __device__ __forceinline__ int64_t channel(int w) const { return first_channel() + offset(w); }
  // Whether the thread's column exists. A vector takes part as a whole.
  [[nodiscard]] __device__ __forceinline__ bool takes_part() const {
    return row < pass.rows_at_once && (F == Form::planes || channel(0) < pass.channels);
  }
  // Whether it is this thread that stores what is known of channel(w).
  [[nodiscard]] __device__ __forceinline__ bool writes(int w) const {
    if constexpr (F == Form::planes) {
      return threadIdx.x == 0;
    } else {
      const bool first = F == Form::rows || (column * V + w) % static_cast<int>(pass.length) == 0;
      return row == 0 && first && channel(w) < pass.channels;
    }
  }
  // Elements of each channel that the block takes.
  [[nodiscard]] __device__ __forceinline__ int64_t size() const {
    const int64_t each = F == Form::rows ? 1 : F == Form::runs ? pass.length : inner_end - (inner - column * V);
    return (outer_end - outer) * each;
  }

  // Where a thread is on its way.
  struct Walk {
    int64_t outer, inner, at;
  };
  [[nodiscard]] __device__ __forceinline__ int64_t place(int64_t of_outer, int64_t of_inner) const {
    if constexpr (F == Form::planes) {
      return (of_outer * pass.channels + tile) * pass.length + of_inner;
    } else {
      const int64_t per_channel = F == Form::runs ? pass.length : 1;
      return (of_outer * pass.channels + first_channel()) * per_channel + column * V;
    }
  }
  [[nodiscard]] __device__ __forceinline__ Walk begin() const {
    const bool there = takes_part() && (F != Form::planes || inner < inner_end);
    const int64_t first = there ? outer + row : outer_end;
    return {first, inner, place(first, inner)};
  }
  [[nodiscard]] __device__ __forceinline__ bool there(const Walk& walk) const { return walk.outer < outer_end; }
  __device__ __forceinline__ void advance(Walk& walk) const {
    if constexpr (F == Form::planes) {
      walk.inner += pass.columns * V;
      walk.at += pass.columns * V;
      if (walk.inner >= inner_end) {
        walk.inner = inner;
        walk.outer += pass.rows_at_once;
        walk.at = place(walk.outer, inner);
      }
    } else {
      walk.outer += pass.rows_at_once;
      walk.at += pass.rows_at_once * pass.channels * (F == Form::runs ? pass.length : 1);
    }
  }

  // The next U vectors: all are loaded, load(at), before the first is used, use(at, what was loaded).
  template <int U, typename Load, typename Use>
  __device__ __forceinline__ void batch(Walk& walk, const Load& load, const Use& use) const {
    int64_t at[U];
    bool is_there[U];
    decltype(load(int64_t{0})) loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      at[u] = walk.at;
      is_there[u] = there(walk);
      if (is_there[u]) {
        loaded[u] = load(at[u]);
      }
      advance(walk);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (is_there[u]) {
        use(at[u], loaded[u]);
      }
    }
  }
  template <int U, typename Load, typename Use>
  __device__ __forceinline__ void each(const Load& load, const Use& use) const {
    for (Walk walk = begin(); there(walk);) {
      batch<U>(walk, load, use);
    }
  }
};

// What a vector [C] has of the thread's channels; zeros for those that do not exist. It may start anywhere: parameters
// are views of one flat tensor in many an optimiser.
template <typename S, bool Wide, Form F, typename T>
__device__ __forceinline__ void load_channels(const Share<S, Wide, F>& share, Pointer<const T> from,
                                              T (&to)[Share<S, Wide, F>::W]) {
  constexpr int W = Share<S, Wide, F>::W;
  if (F == Form::rows && starts_a_vector(from)) {
    Vector<T, W> loaded = Vector<T, W>::filled(T(0));
    if (share.channel(0) < share.pass.channels) {
      loaded = load_vector<T, W>(from + share.channel(0));
    }
    loaded.widen(to);
    return;
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    to[w] = share.channel(w) < share.pass.channels ? from[share.channel(w)] : T(0);
  }
}

// Places of which a thread has the vectors of all its tensors in flight: 48 bytes, of three tensors 72, so that 768
// threads of a multiprocessor, or 512 with three tensors, have 36 KB, where an H200 asks for 29. Single elements are
// held back by registers, which their places take, too.
template <typename S, bool Wide, int Tensors>
[[nodiscard]] constexpr int in_flight() {
  constexpr int bytes = Tensors * ELEMENTS<S, Wide> * static_cast<int>(sizeof(S));
  constexpr int wanted = ((Tensors == 3 ? 72 : 48) + bytes - 1) / bytes;
  return std::clamp(wanted, 2, Tensors == 1 ? 6 : 4);
}

// What a block of batch normalisation has in shared memory.
template <typename S>
struct BatchNormShared {
  using T = typename Computing<S>::type;
  // Of a row of scratch; eight more than threads, so that neighbouring elements of a column lie in different banks.
  static constexpr int PITCH = MOST_THREADS + 8;
  static constexpr int MOST_SUMS = 3;
  static constexpr int ELEMENTS_OF_SCRATCH = MOST_SUMS * static_cast<int>(batch_norm_vector(sizeof(S))) * PITCH;

  Pointer<double> doubles;  // [ELEMENTS_OF_SCRATCH]
  Pointer<T> scratch;       // the same memory
  Pointer<double> totals;   // [MOST_SUMS, MOST_RUN_CHANNELS]
  Pointer<unsigned> flag;

  __device__ __forceinline__ BatchNormShared() {
    SharedLayout shared, same;
    doubles = shared.take<double>(ELEMENTS_OF_SCRATCH);
    scratch = same.take<T>(ELEMENTS_OF_SCRATCH);
    totals = shared.take<double>(MOST_SUMS * MOST_RUN_CHANNELS);
    flag = shared.take<unsigned>(1);
  }

  // What it takes, for the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add(ELEMENTS_OF_SCRATCH, sizeof(double));
    shared.add(MOST_SUMS * MOST_RUN_CHANNELS, sizeof(double));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

}  // namespace pal_fast::cuda
