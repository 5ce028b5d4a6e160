// The backend "emulated": the GPU's operators over tensors on the CPU. The binding, the plans and the kernels are those
// of a GPU, compiled for the emulator; `python setup.py build_emulated` makes them a library,
// msg3d_fast/_emulated.abi3.so.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "../../csrc/kernels/simt/device.h"
#include "../../csrc/torch/ms_g3d_arguments.h"
#include "../../csrc/torch/ms_g3d_cuda.h"
#include "../../csrc/torch/ms_g3d_cuda_plan.h"
#include "../../csrc/torch/mstcn_cuda.h"
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
  m.def(
      "ms_g3d(Tensor x, Tensor A, Tensor weight, Tensor? bias, int window_size, int window_stride, int window_dilation,"
      " bool tf32=False) -> Tensor");
  m.def(
      "ms_g3d_layout(Tensor x, Tensor A, Tensor weight, Tensor? fold, int window_size, int window_stride,"
      " int window_dilation, bool tf32=False) -> int");
  m.def(
      "ms_g3d_pack(Tensor x, Tensor A, Tensor weight, Tensor? fold, int window_size, int window_stride,"
      " int window_dilation, bool tf32=False) -> Tensor");
  m.def(
      "ms_g3d_relu(Tensor x, Tensor A, Tensor weight, Tensor? bias, int window_size, int window_stride,"
      " int window_dilation, Tensor? packed=None, int layout=0, bool tf32=False) -> Tensor");
  m.def(
      "ms_g3d_collapse(Tensor x, Tensor A, Tensor weight, Tensor? bias, Tensor fold, Tensor? fold_bias,"
      " Tensor(a!) out, bool accumulate, bool relu, int window_size, int window_stride, int window_dilation,"
      " Tensor? packed=None, int layout=0, bool tf32=False) -> ()");
  m.def(
      "mstcn_folded(Tensor h, Tensor weight, Tensor scale, Tensor(a!) out, int[] dilations, int stride, bool relu,"
      " Tensor? h_bias=None, Tensor? out_bias=None) -> ()");
  m.def(
      "ms_g3d_backward_input(Tensor gy, Tensor x, Tensor A, Tensor weight, int window_size, int window_stride,"
      " int window_dilation, bool tf32=False) -> Tensor");
  m.def(
      "ms_g3d_backward_parameters(Tensor gy, Tensor x, Tensor A, Tensor weight, int window_size, int window_stride,"
      " int window_dilation, bool need_A, bool need_weight, bool need_bias)"
      " -> (Tensor grad_A, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "ms_g3d_cuda_plan(str dtype, int N, int C, int T, int V, int K, int O, int window_size, int window_stride,"
      " int window_dilation, int out_channels, int arch, int multiprocessors, int shared_bytes) -> str");
  m.def("ms_g3d_set_cuda_plan(str name) -> ()");
  m.def("device_limits(int index) -> str");
  m.def("set_device(int arch, int multiprocessors, int shared_bytes) -> ()");
  m.def("launches() -> int");
  m.def("format_conversions() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast_emulated, CPU, m) {
  m.impl("ms_g3d", TORCH_BOX(&msg3d::binding::gpu::ms_g3d));
  m.impl("ms_g3d_layout", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_layout));
  m.impl("ms_g3d_pack", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_pack));
  m.impl("ms_g3d_relu", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_relu));
  m.impl("ms_g3d_collapse", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_collapse));
  m.impl("mstcn_folded", TORCH_BOX(&msg3d::binding::gpu::mstcn_folded));
  m.impl("ms_g3d_backward_input", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_backward_input));
  m.impl("ms_g3d_backward_parameters", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_backward_parameters));
}

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast_emulated, CompositeExplicitAutograd, m) {
  m.impl("ms_g3d_cuda_plan", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_cuda_plan));
  m.impl("ms_g3d_set_cuda_plan", TORCH_BOX(&msg3d::binding::gpu::ms_g3d_set_cuda_plan));
  m.impl("device_limits", TORCH_BOX(&msg3d::binding::gpu::device_limits_of));
  m.impl("set_device", TORCH_BOX(&msg3d::binding::gpu::emulated_set_device));
  m.impl("launches", TORCH_BOX(&msg3d::binding::gpu::emulated_launches));
  m.impl("format_conversions", TORCH_BOX(&msg3d::binding::format_conversions));
}

PyMODINIT_FUNC PyInit__emulated() {
  // Tensors come from torch, not from the emulator: it cannot tell what is no global memory. Its own tests do that.
  msg3d::simt::emulator::options().strict = msg3d::simt::emulator::options().checks = false;
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_emulated", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
