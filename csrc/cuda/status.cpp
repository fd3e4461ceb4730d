// The operator that says whether CUDA tensors can be computed; it is defined in builds with CUDA only.
#include "status.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace {

std::string cuda_status(int64_t device) {
  return pal_fast::cuda::why_unusable(static_cast<int>(device), PAL_FAST_CUDA_ARCHITECTURES);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pal_fast, library) { library.def("cuda_status(int device) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CompositeExplicitAutograd, library) {
  library.impl("cuda_status", TORCH_BOX(&cuda_status));
}
