// What the extension was built from and for. Loading it registers this and the operators of pal_loss.cpp,
// landmark_heatmap.cpp and batch_norm.cpp in `torch.ops.pal_fast`; fakes and autograd are registered in pal_fast/ops.py
// and pal_fast/nn/batch_norm_operators.py. Where setup.py defines Py_LIMITED_API it is also the Python module
// `pal_fast._C`; pal_fast loads it as a library of PyTorch either way.
#ifdef Py_LIMITED_API
#include <Python.h>
#endif
#include <torch/csrc/stable/library.h>

#include <string>

#ifndef PAL_FAST_SOURCE_DIGEST
#define PAL_FAST_SOURCE_DIGEST ""
#endif
#ifndef PAL_FAST_CUDA_ARCHITECTURES
#define PAL_FAST_CUDA_ARCHITECTURES ""
#endif

namespace {

// One "name=value" a line: digest (of csrc/, as setup.py takes it) and cuda (architectures; empty: CPU only).
std::string build_info() { return "digest=" PAL_FAST_SOURCE_DIGEST "\ncuda=" PAL_FAST_CUDA_ARCHITECTURES "\n"; }

}  // namespace

STABLE_TORCH_LIBRARY(pal_fast, library) { library.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&build_info));
}

#ifdef Py_LIMITED_API
static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_C", "The compiled operators of pal_fast.", 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
#endif
