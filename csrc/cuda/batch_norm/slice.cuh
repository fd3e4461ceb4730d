// The slice of the tensor that a block of batch normalisation's kernels processes, and its threads' iteration over it.
#pragma once

#include "cuda/batch_norm/params.h"
#include "cuda/block.cuh"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

// Elements that a thread loads and stores by one instruction.
template <typename S, bool Vectorised>
inline constexpr int THREAD_VECTOR = Vectorised ? static_cast<int>(batch_norm_vector_size(sizeof(S))) : 1;

// Kernel argument: BatchNormParams with typed pointers.
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
  Pointer<T> partial;         // [splits + 1, BATCH_NORM_PARTIAL_ROWS, C]: of each split, and the total
  Pointer<unsigned> tickets;  // [tiles], arrival counters

  [[nodiscard]] __device__ __forceinline__ int64_t count() const { return batch * length; }  // M
  [[nodiscard]] __device__ __forceinline__ Pointer<T> partial_row(int split, int row) const {
    return partial + (static_cast<int64_t>(split) * BATCH_NORM_PARTIAL_ROWS + row) * channels;
  }
};

// The order of a pass over the tensor. The second pass is the mirror image of the first, so that it begins with what
// the first read last, which may still be in L2, whether the blocks run together or one after another.
enum class Order { ascending, descending };

// The slice of a block, one of the splits of one tile, and the position of a thread in it. Threads form a grid of rows
// and columns; a thread stays in its column, whose channels are fixed (Tiling).
template <typename S, bool Vectorised, Tiling F>
struct BlockSlice {
  static constexpr int V = THREAD_VECTOR<S, Vectorised>;
  // Channels of a thread: one for planes, else one per element of its vector.
  static constexpr int W = F == Tiling::planes ? 1 : V;

  const BatchNormKernelParams<S>& params;
  int tile, split;
  int row, column;           // the thread's
  int64_t outer, outer_end;  // samples or, channels innermost, rows
  int64_t inner, inner_end;  // elements of a plane: the thread's first, and the end of the block's slice

  // blocks: the order in which they take the slices.
  __device__ __forceinline__ explicit BlockSlice(const BatchNormKernelParams<S>& given, Order blocks = Order::ascending)
      : params(given) {
    const unsigned block = blocks == Order::descending ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    tile = static_cast<int>(block % static_cast<unsigned>(params.tiles));
    split = static_cast<int>(block / static_cast<unsigned>(params.tiles));
    row = static_cast<int>(threadIdx.x) / params.columns;
    column = static_cast<int>(threadIdx.x) % params.columns;
    const int64_t outer_count = F == Tiling::rows ? params.count() : params.batch;
    const int64_t begin = params.outer_per_split * (split / params.inner_splits);
    outer_end = min(begin + params.outer_per_split, outer_count);
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
  // The channel of the thread's element e, relative to the tile's first.
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
  // Whether the thread's column exists. All elements of a vector are in range, or none is.
  [[nodiscard]] __device__ __forceinline__ bool is_active() const {
    return row < params.rows_per_step && (F == Tiling::planes || channel(0) < params.channels);
  }
  // Whether this thread stores the results of channel(w).
  [[nodiscard]] __device__ __forceinline__ bool stores_channel(int w) const {
    if constexpr (F == Tiling::planes) {
      return threadIdx.x == 0;
    } else {
      const bool first = F == Tiling::rows || (column * V + w) % static_cast<int>(params.length) == 0;
      return row == 0 && first && channel(w) < params.channels;
    }
  }
  // The slice's elements of each channel.
  [[nodiscard]] __device__ __forceinline__ int64_t elements_per_channel() const {
    const int64_t each = F == Tiling::rows ? 1 : F == Tiling::runs ? params.length : inner_end - (inner - column * V);
    return (outer_end - outer) * each;
  }

  // A thread's position in its iteration, which counts upwards in either order; offset: of its vector in the tensor.
  struct Cursor {
    int64_t outer, inner, offset;
  };
  template <Order O>
  [[nodiscard]] __device__ __forceinline__ int64_t offset_of(int64_t outer_index, int64_t inner_index) const {
    if constexpr (O == Order::descending) {  // as far from the slice's end as in the other order from its beginning
      outer_index = outer + outer_end - 1 - outer_index;
      inner_index = inner - column * V + inner_end - V - inner_index;
    }
    if constexpr (F == Tiling::planes) {
      return (outer_index * params.channels + tile) * params.length + inner_index;
    } else {
      const int64_t per_channel = F == Tiling::runs ? params.length : 1;
      return (outer_index * params.channels + first_channel()) * per_channel + column * V;
    }
  }
  template <Order O>
  [[nodiscard]] __device__ __forceinline__ Cursor begin() const {
    const bool has_work = is_active() && (F != Tiling::planes || inner < inner_end);
    const int64_t first = has_work ? outer + row : outer_end;
    return {first, inner, offset_of<O>(first, inner)};
  }
  [[nodiscard]] __device__ __forceinline__ bool in_range(const Cursor& cursor) const {
    return cursor.outer < outer_end;
  }
  template <Order O>
  __device__ __forceinline__ void advance(Cursor& cursor) const {
    constexpr int SIGN = O == Order::ascending ? 1 : -1;
    if constexpr (F == Tiling::planes) {
      cursor.inner += params.columns * V;
      cursor.offset += SIGN * params.columns * V;
      if (cursor.inner >= inner_end) {
        cursor.inner = inner;
        cursor.outer += params.rows_per_step;
        cursor.offset = offset_of<O>(cursor.outer, inner);
      }
    } else {
      cursor.outer += params.rows_per_step;
      cursor.offset += SIGN * params.rows_per_step * params.channels * (F == Tiling::runs ? params.length : 1);
    }
  }

  // Processes the next U vectors: issues all loads, load(offset), before the first use(offset, loaded value).
  template <int U, Order O, typename Load, typename Use>
  __device__ __forceinline__ void load_and_use(Cursor& cursor, const Load& load, const Use& use) const {
    int64_t offset[U];
    bool valid[U];
    decltype(load(int64_t{0})) loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      offset[u] = cursor.offset;
      valid[u] = in_range(cursor);
      if (valid[u]) {
        loaded[u] = load(offset[u]);
      }
      advance<O>(cursor);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (valid[u]) {
        use(offset[u], loaded[u]);
      }
    }
  }
  // The same for all vectors of the thread, U at a time.
  template <int U, Order O, typename Load, typename Use>
  __device__ __forceinline__ void for_each_vector(const Load& load, const Use& use) const {
    for (Cursor cursor = begin<O>(); in_range(cursor);) {
      load_and_use<U, O>(cursor, load, use);
    }
  }
};

// Loads the thread's channels of a vector [C]; zeros for channels that do not exist. The vector need not be aligned to
// 16 bytes: many optimisers make parameters views of one flat tensor.
template <typename S, bool Vectorised, Tiling F, typename T>
__device__ __forceinline__ void load_channels(const BlockSlice<S, Vectorised, F>& slice, Pointer<const T> from,
                                              T (&to)[BlockSlice<S, Vectorised, F>::W]) {
  constexpr int W = BlockSlice<S, Vectorised, F>::W;
  if (F == Tiling::rows && is_vector_aligned(from)) {
    Vector<T, W> loaded = Vector<T, W>::broadcast(T(0));
    if (slice.channel(0) < slice.params.channels) {
      loaded = load_vector<T, W, Cache::l1>(from + slice.channel(0));
    }
    loaded.widen(to);
    return;
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    to[w] = slice.channel(w) < slice.params.channels ? from[slice.channel(w)] : T(0);
  }
}

// Offsets whose vectors, of all tensors that are read, a thread has in flight: 48 bytes a thread, 72 with three
// tensors, so that the 768 resident threads of a multiprocessor, or 512 with three tensors, have 36 KB in flight, where
// an H200 needs 29. For single elements the registers of their offsets limit it.
template <typename S, bool Vectorised, int Tensors>
[[nodiscard]] constexpr int unroll_factor() {
  constexpr int bytes = Tensors * THREAD_VECTOR<S, Vectorised> * static_cast<int>(sizeof(S));
  constexpr int wanted = ((Tensors == 3 ? 72 : 48) + bytes - 1) / bytes;
  return std::clamp(wanted, 2, Tensors == 1 ? 6 : 4);
}

// The shared memory of a block.
template <typename S>
struct BatchNormShared {
  using T = typename ComputeType<S>::type;
  // Of a row of scratch; eight more than threads, so that the elements of a vector lie in different banks.
  static constexpr int PITCH = MAX_BLOCK_THREADS + 8;
  static constexpr int MAX_SUMS = 3;
  static constexpr int SCRATCH_ELEMENTS = MAX_SUMS * static_cast<int>(batch_norm_vector_size(sizeof(S))) * PITCH;

  Pointer<double> double_scratch;  // [SCRATCH_ELEMENTS]
  Pointer<T> scratch;              // the same memory
  Pointer<double> totals;          // [MAX_SUMS, MAX_RUN_CHANNELS]
  Pointer<unsigned> flag;

  __host__ __device__ __forceinline__ explicit BatchNormShared(SharedLayout& layout) {
    SharedLayout overlaid = layout;
    scratch = overlaid.allocate<T>(SCRATCH_ELEMENTS);
    double_scratch = layout.allocate<double>(SCRATCH_ELEMENTS);
    totals = layout.allocate<double>(MAX_SUMS * MAX_RUN_CHANNELS);
    flag = layout.allocate<unsigned>(1);
  }
};

}  // namespace pal_fast::cuda
