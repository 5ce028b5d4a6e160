// The registered functions of the multi-scale temporal convolution in training; see kernels/mstcn/mstcn.h.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace msg3d::binding {

using torch::stable::Tensor;

// y, p, z, r (N, channels, T or T_out, V), channels_last, r empty without weight_residual; and the statistics of p, z
// and r one after the other, float64.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mstcn(
    const Tensor& x, const Tensor& weight_in, const Tensor& weight_time, const std::optional<Tensor>& weight_residual,
    const Tensor& norm_p, const Tensor& norm_z, const std::optional<Tensor>& norm_r,
    const std::optional<Tensor>& multiplicity, std::vector<int64_t> dilations, int64_t stride, bool identity, bool act,
    double eps);

// The gradients of x, the three weights and the three norms; those of the residual convolution may be empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mstcn_backward(
    const Tensor& gy, const Tensor& y, const Tensor& p, const Tensor& z, const Tensor& r, const Tensor& statistics,
    const Tensor& x, const Tensor& weight_in, const Tensor& weight_time, const std::optional<Tensor>& weight_residual,
    const Tensor& norm_p, const Tensor& norm_z, const std::optional<Tensor>& norm_r,
    const std::optional<Tensor>& multiplicity, std::vector<int64_t> dilations, int64_t stride, bool identity, bool act,
    double eps);

}  // namespace msg3d::binding
