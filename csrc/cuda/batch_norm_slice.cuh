// Which elements a block of batch normalisation's kernels takes, and how its threads go through them.
#pragma once

#include "batch_norm_params.h"
#include "block.cuh"

namespace pal_fast::cuda {

// Elements that a thread loads and stores at once.
template <typename S, bool Vectorised>
inline constexpr int THREAD_VECTOR = Vectorised ? static_cast<int>(batch_norm_vector_size(sizeof(S))) : 1;

// A pass with its pointers typed, as kernels take it.
template <typename S>
struct BatchNormKernelParams {
  using T = typename ComputeType<S>::type;

  int64_t batch, channels, length;  // B, C, L
  bool training, relu;
  // The plan.
  int tiles, tile_channels, columns, rows_per_step, splits, inner_splits;
  int64_t outer_per_split, inner_per_split;
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
  [[nodiscard]] __device__ __forceinline__ Pointer<T> partial_row(int split, int row) const {
    return partial + (static_cast<int64_t>(split) * BATCH_NORM_PARTIAL_ROWS + row) * channels;
  }
};

// The share of a block and the place of a thread in it.
template <typename S, bool Vectorised, Tiling F>
struct BlockSlice {
  static constexpr int V = THREAD_VECTOR<S, Vectorised>;
  // How many channels a thread works on: of a plane's vector one, else one an element.
  static constexpr int W = F == Tiling::planes ? 1 : V;

  const BatchNormKernelParams<S>& params;
  int tile, split;
  int row, column;           // the thread's
  int64_t outer, outer_end;  // samples or, channels innermost, rows
  int64_t inner, inner_end;  // elements of a plane: the thread's first, and where the block's part ends

  // `turned`: the last block's share first. What the pass before has read last is then read first, out of L2.
  __device__ __forceinline__ explicit BlockSlice(const BatchNormKernelParams<S>& given, bool reversed = false)
      : params(given) {
    const unsigned block = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    tile = static_cast<int>(block % static_cast<unsigned>(params.tiles));
    split = static_cast<int>(block / static_cast<unsigned>(params.tiles));
    row = static_cast<int>(threadIdx.x) / params.columns;
    column = static_cast<int>(threadIdx.x) % params.columns;
    const int64_t all = F == Tiling::rows ? params.count() : params.batch;
    const int64_t begin = params.outer_per_split * (split / params.inner_splits);
    outer_end = min(begin + params.outer_per_split, all);
    outer = min(begin, outer_end);
    if constexpr (F == Tiling::planes) {
      const int64_t first = params.inner_per_split * (split % params.inner_splits) * V;
      inner_end = min(first + params.inner_per_split * V, params.length);
      inner = first + column * V;
    } else {
      inner = inner_end = 0;
    }
  }

  [[nodiscard]] __device__ __forceinline__ int64_t first_channel() const {
    return static_cast<int64_t>(tile) * params.tile_channels;
  }
  // The channel of a thread's element e, from the block's first.
  [[nodiscard]] __device__ __forceinline__ int channel_offset(int e) const {
    if constexpr (F == Tiling::planes) {
      return 0;
    } else if constexpr (F == Tiling::rows) {
      return column * V + e;
    } else {
      return (column * V + e) / static_cast<int>(params.length);
    }
  }
  [[nodiscard]] __device__ __forceinline__ int64_t channel(int w) const { return first_channel() + channel_offset(w); }
  // Whether the thread's column exists. A vector takes part as a whole.
  [[nodiscard]] __device__ __forceinline__ bool is_active() const {
    return row < params.rows_per_step && (F == Tiling::planes || channel(0) < params.channels);
  }
  // Whether it is this thread that stores what is known of channel(w).
  [[nodiscard]] __device__ __forceinline__ bool stores_channel(int w) const {
    if constexpr (F == Tiling::planes) {
      return threadIdx.x == 0;
    } else {
      const bool first = F == Tiling::rows || (column * V + w) % static_cast<int>(params.length) == 0;
      return row == 0 && first && channel(w) < params.channels;
    }
  }
  // Elements of each channel that the block takes.
  [[nodiscard]] __device__ __forceinline__ int64_t size() const {
    const int64_t each = F == Tiling::rows ? 1 : F == Tiling::runs ? params.length : inner_end - (inner - column * V);
    return (outer_end - outer) * each;
  }

  // Where a thread is on its way.
  struct Cursor {
    int64_t outer, inner, at;
  };
  [[nodiscard]] __device__ __forceinline__ int64_t offset_of(int64_t of_outer, int64_t of_inner) const {
    if constexpr (F == Tiling::planes) {
      return (of_outer * params.channels + tile) * params.length + of_inner;
    } else {
      const int64_t per_channel = F == Tiling::runs ? params.length : 1;
      return (of_outer * params.channels + first_channel()) * per_channel + column * V;
    }
  }
  [[nodiscard]] __device__ __forceinline__ Cursor begin() const {
    const bool there = is_active() && (F != Tiling::planes || inner < inner_end);
    const int64_t first = there ? outer + row : outer_end;
    return {first, inner, offset_of(first, inner)};
  }
  [[nodiscard]] __device__ __forceinline__ bool in_range(const Cursor& cursor) const {
    return cursor.outer < outer_end;
  }
  __device__ __forceinline__ void advance(Cursor& cursor) const {
    if constexpr (F == Tiling::planes) {
      cursor.inner += params.columns * V;
      cursor.at += params.columns * V;
      if (cursor.inner >= inner_end) {
        cursor.inner = inner;
        cursor.outer += params.rows_per_step;
        cursor.at = offset_of(cursor.outer, inner);
      }
    } else {
      cursor.outer += params.rows_per_step;
      cursor.at += params.rows_per_step * params.channels * (F == Tiling::runs ? params.length : 1);
    }
  }

  // The next U vectors: all are loaded, load(at), before the first is used, use(at, what was loaded).
  template <int U, typename Load, typename Use>
  __device__ __forceinline__ void load_and_use(Cursor& cursor, const Load& load, const Use& use) const {
    int64_t at[U];
    bool valid[U];
    decltype(load(int64_t{0})) loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      at[u] = cursor.at;
      valid[u] = in_range(cursor);
      if (valid[u]) {
        loaded[u] = load(at[u]);
      }
      advance(cursor);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (valid[u]) {
        use(at[u], loaded[u]);
      }
    }
  }
  template <int U, typename Load, typename Use>
  __device__ __forceinline__ void for_each_vector(const Load& load, const Use& use) const {
    for (Cursor cursor = begin(); in_range(cursor);) {
      load_and_use<U>(cursor, load, use);
    }
  }
};

// What a vector [C] has of the thread's channels; zeros for those that do not exist. It may start anywhere: parameters
// are views of one flat tensor in many an optimiser.
template <typename S, bool Vectorised, Tiling F, typename T>
__device__ __forceinline__ void load_channels(const BlockSlice<S, Vectorised, F>& slice, Pointer<const T> from,
                                              T (&to)[BlockSlice<S, Vectorised, F>::W]) {
  constexpr int W = BlockSlice<S, Vectorised, F>::W;
  if (F == Tiling::rows && is_vector_aligned(from)) {
    Vector<T, W> loaded = Vector<T, W>::broadcast(T(0));
    if (slice.channel(0) < slice.params.channels) {
      loaded = load_vector<T, W>(from + slice.channel(0));
    }
    loaded.widen(to);
    return;
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    to[w] = slice.channel(w) < slice.params.channels ? from[slice.channel(w)] : T(0);
  }
}

// Places of which a thread has the vectors of all its tensors in flight: 48 bytes, of three tensors 72, so that 768
// threads of a multiprocessor, or 512 with three tensors, have 36 KB, where an H200 asks for 29. Single elements are
// held back by registers, which their places take, too.
template <typename S, bool Vectorised, int Tensors>
[[nodiscard]] constexpr int unroll_factor() {
  constexpr int bytes = Tensors * THREAD_VECTOR<S, Vectorised> * static_cast<int>(sizeof(S));
  constexpr int wanted = ((Tensors == 3 ? 72 : 48) + bytes - 1) / bytes;
  return std::clamp(wanted, 2, Tensors == 1 ? 6 : 4);
}

// What a block of batch normalisation has in shared memory.
template <typename S>
struct BatchNormShared {
  using T = typename ComputeType<S>::type;
  // Of a row of scratch; eight more than threads, so that neighbouring elements of a column lie in different banks.
  static constexpr int PITCH = MAX_BLOCK_THREADS + 8;
  static constexpr int MAX_SUMS = 3;
  static constexpr int SCRATCH_ELEMENTS = MAX_SUMS * static_cast<int>(batch_norm_vector_size(sizeof(S))) * PITCH;

  Pointer<double> double_scratch;  // [ELEMENTS_OF_SCRATCH]
  Pointer<T> scratch;              // the same memory
  Pointer<double> totals;          // [MAX_SUMS, MAX_RUN_CHANNELS]
  Pointer<unsigned> flag;

  __device__ __forceinline__ BatchNormShared() {
    SharedLayout shared, same;
    double_scratch = shared.allocate<double>(SCRATCH_ELEMENTS);
    scratch = same.allocate<T>(SCRATCH_ELEMENTS);
    totals = shared.allocate<double>(MAX_SUMS * MAX_RUN_CHANNELS);
    flag = shared.allocate<unsigned>(1);
  }

  // What it takes, for the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add(SCRATCH_ELEMENTS, sizeof(double));
    shared.add(MAX_SUMS * MAX_RUN_CHANNELS, sizeof(double));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

}  // namespace pal_fast::cuda
