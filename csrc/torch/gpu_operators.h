// The operators that a GPU has, once for both who offer them: the library, and the backend "emulated" of the tests.
#pragma once

#include <torch/csrc/stable/library.h>

#include "ms_g3d_arguments.h"
#include "ms_g3d_cuda.h"
#include "ms_g3d_cuda_plan.h"
#include "mstcn_cuda.h"

namespace msg3d::binding::gpu {

template <class Library>
void define_operators(Library& m) {
  m.def(
      "ms_g3d(Tensor x, Tensor A, Tensor weight, Tensor? bias, int window_size, int window_stride, int window_dilation,"
      " bool tf32=False) -> Tensor");
  m.def(
      "ms_g3d_statistics(Tensor x, Tensor A, Tensor weight, Tensor? bias, int window_size, int window_stride,"
      " int window_dilation, bool tf32=False) -> (Tensor y, Tensor statistics)");
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
      " int window_dilation, bool need_A, bool need_weight, bool need_bias, bool tf32=False)"
      " -> (Tensor grad_A, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "ms_g3d_cuda_plan(str dtype, int N, int C, int T, int V, int K, int O, int window_size, int window_stride,"
      " int window_dilation, int out_channels, int arch, int multiprocessors, int shared_bytes) -> str");
  m.def("ms_g3d_set_cuda_plan(str name) -> ()");
  m.def("device_limits(int index) -> str");
  m.def("format_conversions() -> int");
}

template <class Library>
void implement_operators(Library& m) {
  m.impl("ms_g3d", TORCH_BOX(&ms_g3d));
  m.impl("ms_g3d_statistics", TORCH_BOX(&ms_g3d_statistics));
  m.impl("ms_g3d_layout", TORCH_BOX(&ms_g3d_layout));
  m.impl("ms_g3d_pack", TORCH_BOX(&ms_g3d_pack));
  m.impl("ms_g3d_relu", TORCH_BOX(&ms_g3d_relu));
  m.impl("ms_g3d_collapse", TORCH_BOX(&ms_g3d_collapse));
  m.impl("mstcn_folded", TORCH_BOX(&mstcn_folded));
  m.impl("ms_g3d_backward_input", TORCH_BOX(&ms_g3d_backward_input));
  m.impl("ms_g3d_backward_parameters", TORCH_BOX(&ms_g3d_backward_parameters));
}

// Of what asks for no tensor; they are there without CUDA code too.
template <class Library>
void implement_plans(Library& m) {
  m.impl("ms_g3d_cuda_plan", TORCH_BOX(&ms_g3d_cuda_plan));
  m.impl("ms_g3d_set_cuda_plan", TORCH_BOX(&ms_g3d_set_cuda_plan));
  m.impl("format_conversions", TORCH_BOX(&format_conversions));
}

}  // namespace msg3d::binding::gpu
