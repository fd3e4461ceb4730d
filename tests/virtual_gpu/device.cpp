// A CUDA device for a PyTorch that is built without CUDA: its memory is the CPU's, its one stream is
// synchronous. Its tensors are labelled as CUDA tensors; device.py implements their operators.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>
#include <map>
#include <mutex>

extern "C" {
void virtual_gpu_allocate(const void* memory, int64_t bytes);
void virtual_gpu_free(const void* memory);
}

namespace {

const c10::Device THE_DEVICE(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return THE_DEVICE; }
  c10::Device getDevice() const override { return THE_DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, THE_DEVICE); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(THE_DEVICE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct VirtualHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};
// PyTorch creates its hooks once, at import: those of a build without CUDA. They cannot be registered again, so this
// overwrites the functions of the existing object.
void install_hooks() {
  static const VirtualHooks hooks;
  const auto& made = at::detail::getCUDAHooks();
  static_assert(sizeof(VirtualHooks) == sizeof(made));
  std::memcpy(const_cast<void*>(static_cast<const void*>(&made)), static_cast<const void*>(&hooks), sizeof(void*));
}

std::mutex mutex;
std::map<const void*, int> owners;  // tensors on the device that hold a piece of memory

void hold(const void* memory, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (owners[memory]++ == 0) {
    virtual_gpu_allocate(memory, bytes);
  }
}
void let_go(const void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--owners[memory] == 0) {
    owners.erase(memory);
    virtual_gpu_free(memory);
  }
}

at::Tensor blob(const at::Tensor& tensor, c10::Device device, const std::function<void(void*)>& deleter) {
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .deleter(deleter)
      .options(tensor.options().device(device))
      .target_device(device)
      .make_tensor();
}

// A tensor on the device that owns a CPU tensor's memory.
at::Tensor onto_device(const at::Tensor& tensor) {
  const void* memory = tensor.storage().data();
  const auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
  if (bytes > 0) {
    hold(memory, bytes);
  }
  return blob(tensor, THE_DEVICE, [tensor, memory, bytes](void*) {
    if (bytes > 0) {
      let_go(memory);
    }
  });
}

// A CPU tensor of the same memory, for as long as an operator runs.
at::Tensor as_cpu(const at::Tensor& tensor) {
  return blob(tensor, c10::Device(c10::kCPU), [tensor](void*) {});
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("install_hooks", &install_hooks);
  module.def("onto_device", &onto_device);
  module.def("as_cpu", &as_cpu);
}
