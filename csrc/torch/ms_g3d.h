// The registered functions of MS-G3D: they check, allocate, plan and call the kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace msg3d::binding {

using torch::stable::Tensor;

// y (N, O, T_out, tau*V), channels_last, from x (N, C, T, V), A (K, tau*V, tau*V), weight (O, K, C), bias (O,) or none.
// tf32 is for GPUs: a CPU computes in full precision.
Tensor ms_g3d(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
              int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);

// grad_x (N, C, T, V), channels_last.
Tensor ms_g3d_backward_input(const Tensor& gy, const Tensor& x, const Tensor& A, const Tensor& weight,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);

// (grad_A, grad_weight, grad_bias); those that are not needed are empty.
std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward_parameters(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                              const Tensor& weight, int64_t window_size,
                                                              int64_t window_stride, int64_t window_dilation,
                                                              bool need_A, bool need_weight, bool need_bias, bool tf32);

// (grad_x, grad_A, grad_weight) in one walk, which costs less than the two above.
std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                   const Tensor& weight, int64_t window_size, int64_t window_stride,
                                                   int64_t window_dilation);

// What make_plan says for these sizes on this machine, as JSON. pass: forward, backward_input or backward_parameters.
std::string ms_g3d_plan(std::string pass, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O,
                        int64_t window_size, int64_t window_stride, int64_t window_dilation, bool float64);

// Forces the order of evaluation: "project_first", "aggregate_first" or "auto". False: no such order.
bool ms_g3d_set_order(std::string name);

}  // namespace msg3d::binding
