// The backend "emulated": the GPU's operators over tensors on the CPU. The binding, the plans and the kernels are those
// of a GPU, compiled for the emulator; `python setup.py build_emulated` makes them a library,
// msg3d_fast/_emulated.abi3.so.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "../../csrc/kernels/simt/device.h"
#include "../../csrc/torch/gpu_operators.h"
#include "control.h"

namespace msg3d {

// An A100, unless told otherwise.
static DeviceLimits emulated_device{80, 108, 163 * 1024};

int device_limits(int, DeviceLimits& limits) {
  limits = emulated_device;
  return 0;
}

const char* cuda_error_text(int status) {
  static std::string text;  // of the last error; calls come one at a time, see OnDevice
  text = simt::emulator::fault();
  if (text.empty()) text = simt::error_text(status);
  simt::emulator::clear_fault();
  return text.c_str();
}

namespace binding::gpu {

// The device that plans are made for, from now on.
void emulated_set_device(int64_t arch, int64_t multiprocessors, int64_t shared_bytes) {
  emulated_device = {static_cast<int>(arch), static_cast<int>(multiprocessors), static_cast<int>(shared_bytes)};
}

// Kernels launched since the library was loaded.
int64_t emulated_launches() { return simt::emulator::launches(); }

}  // namespace binding::gpu
}  // namespace msg3d

STABLE_TORCH_LIBRARY(msg3d_fast_emulated, m) {
  msg3d::binding::gpu::define_operators(m);
  m.def("set_device(int arch, int multiprocessors, int shared_bytes) -> ()");
  m.def("launches() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast_emulated, CPU, m) { msg3d::binding::gpu::implement_operators(m); }

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast_emulated, CompositeExplicitAutograd, m) {
  msg3d::binding::gpu::implement_plans(m);
  m.impl("device_limits", TORCH_BOX(&msg3d::binding::gpu::device_limits_of));
  m.impl("set_device", TORCH_BOX(&msg3d::binding::gpu::emulated_set_device));
  m.impl("launches", TORCH_BOX(&msg3d::binding::gpu::emulated_launches));
}

PyMODINIT_FUNC PyInit__emulated() {
  // Tensors come from torch, not from the emulator: it cannot tell what is no global memory. Its own tests do that.
  msg3d::simt::emulator::options().strict = msg3d::simt::emulator::options().checks = false;
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_emulated", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
