// What loading the extension registers: the schemas of the loss's and the heatmap's operators in `torch.ops.pal_fast`
// (batch normalisation's are in batch_norm.cpp). Implementations are registered in cpu/ and cuda/, fakes and autograd
// in pal_fast/ops.py and pal_fast/nn/batch_norm_operators.py. Where setup.py defines Py_LIMITED_API it is also the
// Python module `pal_fast._C`; pal_fast loads it as a library of PyTorch either way.
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

STABLE_TORCH_LIBRARY(pal_fast, m) {
  m.def("build_info() -> str");
  m.def(
      "landmark_heatmap(Tensor landmarks, Tensor? visible, Tensor? weights, int height, int width, "
      "float image_height, float image_width, float sigma, int combine, int normalize) -> Tensor");
  m.def(
      "landmark_heatmap_backward(Tensor grad, Tensor landmarks, Tensor? visible, Tensor? weights, "
      "int height, int width, float image_height, float image_width, float sigma, int combine, int normalize, "
      "bool need_landmarks, bool need_weights) -> (Tensor, Tensor)");
  m.def(
      "pal_loss(Tensor? activation, Tensor? gradient, Tensor? heatmap, Tensor? landmarks, Tensor? visible, "
      "Tensor? weights, Tensor? sample_weight, float image_height, float image_width, float sigma, int combine, "
      "int normalize, int attribution, bool absolute, int grouping, int channel_count, int score, int scale, "
      "int reduction) -> (Tensor loss, Tensor plane, Tensor coefficients, Tensor factor)");
  m.def(
      "pal_loss_backward(Tensor grad_loss, Tensor? activation, Tensor? gradient, Tensor plane, "
      "Tensor coefficients, Tensor factor, int attribution, bool absolute, int grouping, int channel_count, "
      "bool need_activation, bool need_gradient) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }

#ifdef Py_LIMITED_API
static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_C", "The compiled operators of pal_fast.", 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
#endif
