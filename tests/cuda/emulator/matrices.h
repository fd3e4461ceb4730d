// The tensor-core instructions of csrc/cuda/landmark_heatmap/mma.cuh and wgmma.cuh on the emulator. All execute
// synchronously; a missing wait or fence of wgmma is for tests/virtual_gpu to find.
#pragma once

#include "emulator.h"

namespace emulator {

// The values passed by all lanes of the warp, indexed by thread of the block.
template <size_t Words>
const std::vector<std::array<unsigned, 6>>& exchange_fragments(const std::array<unsigned, Words>& mine) {
  Machine& m = machine;
  const int warp = m.current / LANES * LANES;
  auto& given = m.fragments[m.exchanges[m.current] % 2];
  std::copy(mine.begin(), mine.end(), given[m.current].begin());
  wait_for(m.exchanges, warp, warp + LANES, true);
  return given;
}

[[nodiscard]] inline float half_of(unsigned pair, int index) {
  const auto bits = static_cast<unsigned short>(index == 0 ? pair & 0xffffu : pair >> 16);
  __half value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(bits));
  return __half2float(value);
}

// Element [row, k] of A, of whose fragments two words of each lane hold eight k.
[[nodiscard]] inline float element_of_a(const std::vector<std::array<unsigned, 6>>& given, int warp, int row, int k) {
  return half_of(given[warp + row % 8 * 4 + k % 8 / 2][k / 8 * 2 + (row >= 8 ? 1 : 0)], k % 2);
}

}  // namespace emulator

namespace pal_fast::cuda {

// accumulator += A B by all lanes of a warp, with the fragments of the PTX ISA's mma.m16n8k8 and m16n8k16: two words of
// A and one of B for each 8 along k.
template <size_t Words>
void multiply_fragments(float (&accumulator)[4], const std::array<unsigned, Words>& fragments) {
  const int lane = emulator::machine.current % emulator::LANES, warp = emulator::machine.current - lane;
  const auto& given = emulator::exchange_fragments(fragments);
  constexpr int K_GROUPS = Words / 3;  // of 8
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8 * K_GROUPS; ++k) {
      const unsigned of_b = given[warp + column * 4 + k % 8 / 2][2 * K_GROUPS + k / 8];
      accumulator[i] += emulator::element_of_a(given, warp, row, k) * emulator::half_of(of_b, k % 2);
    }
  }
}

inline void mma_m16n8k16(float (&accumulator)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_fragments<6>(accumulator, {a[0], a[1], a[2], a[3], b[0], b[1]});
}
inline void mma_m16n8k8(float (&accumulator)[4], const unsigned (&a)[2], unsigned b) {
  multiply_fragments<3>(accumulator, {a[0], a[1], b});
}

// One warp's part of wgmma.m64n64k16: A [16, 16] from its registers times B [16, 64], in shared memory as [2][64][8].
using MatrixDescriptor = Pointer<const uint4>;
inline MatrixDescriptor matrix_descriptor(const MatrixDescriptor& start) { return start; }

inline void wgmma_m64n64k16(float (&accumulator)[32], const unsigned (&a)[4], const MatrixDescriptor& b,
                            bool accumulate) {
  const int lane = emulator::machine.current % emulator::LANES, warp = emulator::machine.current - lane;
  const auto& given = emulator::exchange_fragments<4>({a[0], a[1], a[2], a[3]});
  for (int i = 0; i < 32; ++i) {
    const int row = lane / 4 + (i % 4 >= 2 ? 8 : 0), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float sum = accumulate ? accumulator[i] : 0.0f;
    for (int k = 0; k < 16; ++k) {
      const uint4 row_of_b = b[k / 8 * 64 + column];
      const unsigned words[4] = {row_of_b.x, row_of_b.y, row_of_b.z, row_of_b.w};
      sum += emulator::element_of_a(given, warp, row, k) * emulator::half_of(words[k % 8 / 2], k % 2);
    }
    accumulator[i] = sum;
  }
}

inline void fence_proxy_async_shared() {}
inline void wgmma_fence() {}
inline void wgmma_commit_group() {}
inline void wgmma_wait_group(float (&)[32]) {}

}  // namespace pal_fast::cuda
