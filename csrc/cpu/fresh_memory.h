// How large outputs are best written: it depends on whether their pages are there yet.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pal_fast::cpu {

// Outputs from this size on are worth huge pages, and from this on will have left the cache before they are read.
inline constexpr int64_t LARGE_BYTES = int64_t{1} << 22;
inline constexpr int64_t UNCACHED_BYTES = int64_t{1} << 24;

// Whether most of `memory` has no pages yet: an output of tens of megabytes is given back to the system when it is
// freed, so the next step gets it fresh. Only a few places are looked at.
[[nodiscard]] inline bool is_fresh([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  constexpr int64_t places = 8;
  int64_t missing = 0;
  for (int64_t place = 0; place < places; ++place) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes / places * place);
    unsigned char present = 1;
    if (mincore(reinterpret_cast<void*>(address / page * page), page, &present) == 0) {
      missing += (present & 1) == 0;
    }
  }
  return 2 * missing > places;
#else
  return false;
#endif
}

// Asks for huge pages under `memory`: thousands of page faults cost more than the kernel that writes the output. A
// hint, which is ignored where huge pages are switched off.
inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
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

// Whether to write `memory` past the cache. Fresh pages are cleared by the system first and are in the cache then;
// for them it prepares huge pages.
[[nodiscard]] inline bool writes_past_cache(void* memory, int64_t bytes) {
  if (memory == nullptr || bytes < LARGE_BYTES) {
    return false;
  }
  if (is_fresh(memory, bytes)) {
    prefer_huge_pages(memory, bytes);
    return false;
  }
  return bytes >= UNCACHED_BYTES;
}

}  // namespace pal_fast::cpu
