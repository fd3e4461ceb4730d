// Whether a large output is best written by non-temporal stores; that depends on whether its pages are mapped yet.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pal_fast::cpu {

// Sizes from which an output is worth huge pages, and from which it is evicted from the cache before it is read.
inline constexpr int64_t LARGE_BYTES = int64_t{1} << 22;
inline constexpr int64_t UNCACHED_BYTES = int64_t{1} << 24;

// Whether most of `memory` has no pages yet: malloc returns tens of megabytes to the system when they are freed, so the
// next step gets them unmapped. Samples a few addresses.
[[nodiscard]] inline bool is_unmapped([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  constexpr int64_t samples = 8;
  int64_t missing = 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes / samples * sample);
    unsigned char present = 1;
    if (mincore(reinterpret_cast<void*>(address / page * page), page, &present) == 0) {
      missing += (present & 1) == 0;
    }
  }
  return 2 * missing > samples;
#else
  return false;
#endif
}

// Requests transparent huge pages for `memory`: thousands of page faults would cost more than the kernel that writes
// it. A hint, which is ignored where huge pages are disabled.
inline void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t huge_page = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page;
  const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / huge_page * huge_page;
  if (first < last) {
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// Whether to write `memory` by non-temporal stores. Not if its pages are unmapped: the system clears them on first
// touch, which brings them into the cache; for those it requests huge pages.
[[nodiscard]] inline bool prefers_streaming_stores(void* memory, int64_t bytes) {
  if (memory == nullptr || bytes < LARGE_BYTES) {
    return false;
  }
  if (is_unmapped(memory, bytes)) {
    advise_huge_pages(memory, bytes);
    return false;
  }
  return bytes >= UNCACHED_BYTES;
}

}  // namespace pal_fast::cpu
