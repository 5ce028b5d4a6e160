// Every operator of the library, those of a GPU by torch/gpu_operators.h, and the module that Python imports so that
// they are registered.
//
// Shapes, types and strides are checked by the functions registered here. Fake kernels and autograd stand in
// msg3d_fast/ops.py.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "torch/collapse.h"
#include "torch/folded.h"
#include "torch/gpu_operators.h"
#include "torch/info.h"
#include "torch/ms_g3d.h"
#include "torch/mstcn.h"
#include "torch/watch.h"

STABLE_TORCH_LIBRARY(msg3d_fast, m) {
  msg3d::binding::gpu::define_operators(m);

  m.def(
      "ms_g3d_backward(Tensor gy, Tensor x, Tensor A, Tensor weight, int window_size, int window_stride,"
      " int window_dilation) -> (Tensor grad_x, Tensor grad_A, Tensor grad_weight)");

  m.def(
      "ms_g3d_plan(str pass_name, int N, int C, int T, int V, int K, int O, int window_size, int window_stride,"
      " int window_dilation, bool float64) -> str");
  m.def("ms_g3d_set_order(str name) -> bool");
  m.def(
      "folded_network(Tensor clips, Tensor sizes, Tensor weights, Tensor fc_weight, Tensor fc_bias, bool skip_absent,"
      " Tensor? absent=None)"
      " -> (Tensor logits, Tensor features, Tensor computed_absent)");
  m.def("same_values(Tensor places, Tensor expected, Tensor near) -> bool");

  m.def(
      "collapse(Tensor x, Tensor weight, Tensor norm_x, Tensor norm_c, Tensor? other, Tensor? multiplicity, float eps)"
      " -> (Tensor y, Tensor c, Tensor statistics)");
  m.def(
      "collapse_backward(Tensor gy, Tensor c, Tensor statistics, Tensor x, Tensor weight, Tensor norm_x, Tensor norm_c,"
      " Tensor? multiplicity, float eps)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_norm_x, Tensor grad_norm_c)");
  m.def(
      "batch_norm(Tensor x, Tensor norm, Tensor? multiplicity, bool act, float eps) -> (Tensor y, Tensor statistics)");
  m.def(
      "batch_norm_backward(Tensor gy, Tensor y, Tensor statistics, Tensor x, Tensor norm, Tensor? multiplicity, bool "
      "act,"
      " float eps) -> (Tensor grad_x, Tensor grad_norm)");
  m.def(
      "mstcn(Tensor x, Tensor weight_in, Tensor weight_time, Tensor? weight_residual, Tensor norm_p, Tensor norm_z,"
      " Tensor? norm_r, Tensor? multiplicity, int[] dilations, int stride, bool identity, bool act, float eps)"
      " -> (Tensor y, Tensor p, Tensor z, Tensor r, Tensor statistics)");
  m.def(
      "mstcn_backward(Tensor gy, Tensor y, Tensor p, Tensor z, Tensor r, Tensor statistics, Tensor x, Tensor weight_in,"
      " Tensor weight_time, Tensor? weight_residual, Tensor norm_p, Tensor norm_z, Tensor? norm_r, Tensor? "
      "multiplicity,"
      " int[] dilations, int stride, bool identity, bool act, float eps)"
      " -> (Tensor grad_x, Tensor grad_weight_in, Tensor grad_weight_time, Tensor grad_weight_residual,"
      " Tensor grad_norm_p, Tensor grad_norm_z, Tensor grad_norm_r)");

  m.def("info() -> str");
  m.def("set_isa(str name) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast, CPU, m) {
  m.impl("ms_g3d", TORCH_BOX(&msg3d::binding::ms_g3d));
  m.impl("ms_g3d_backward_input", TORCH_BOX(&msg3d::binding::ms_g3d_backward_input));
  m.impl("ms_g3d_backward_parameters", TORCH_BOX(&msg3d::binding::ms_g3d_backward_parameters));
  m.impl("folded_network", TORCH_BOX(&msg3d::binding::folded_network));
  m.impl("same_values", TORCH_BOX(&msg3d::binding::same_values));
  m.impl("ms_g3d_backward", TORCH_BOX(&msg3d::binding::ms_g3d_backward));
  m.impl("collapse", TORCH_BOX(&msg3d::binding::collapse));
  m.impl("collapse_backward", TORCH_BOX(&msg3d::binding::collapse_backward));
  m.impl("batch_norm", TORCH_BOX(&msg3d::binding::batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&msg3d::binding::batch_norm_backward));
  m.impl("mstcn", TORCH_BOX(&msg3d::binding::mstcn));
  m.impl("mstcn_backward", TORCH_BOX(&msg3d::binding::mstcn_backward));
}

#ifdef MSG3D_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(msg3d_fast, CUDA, m) { msg3d::binding::gpu::implement_operators(m); }
#endif

STABLE_TORCH_LIBRARY_IMPL(msg3d_fast, CompositeExplicitAutograd, m) {
  m.impl("ms_g3d_plan", TORCH_BOX(&msg3d::binding::ms_g3d_plan));
  m.impl("ms_g3d_set_order", TORCH_BOX(&msg3d::binding::ms_g3d_set_order));
  msg3d::binding::gpu::implement_plans(m);
#ifdef MSG3D_WITH_CUDA
  m.impl("device_limits", TORCH_BOX(&msg3d::binding::gpu::device_limits_of));
#endif
  m.impl("info", TORCH_BOX(&msg3d::binding::info));
  m.impl("set_isa", TORCH_BOX(static_cast<bool (*)(std::string)>(&msg3d::binding::set_isa)));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
