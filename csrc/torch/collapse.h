// The registered functions of what follows a graph convolution in training; see kernels/collapse and
// kernels/batch_norm.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace msg3d::binding {

using torch::stable::Tensor;

// y and c (N, O, T, V), channels_last, and the statistics of x and c one after the other, float64;
// x (N, E, T, tau*V), weight (O, E, tau), other like y or none.
std::tuple<Tensor, Tensor, Tensor> collapse(const Tensor& x, const Tensor& weight, const Tensor& norm_x,
                                            const Tensor& norm_c, const std::optional<Tensor>& other,
                                            const std::optional<Tensor>& multiplicity, double eps);

// The gradients of x, weight, norm_x and norm_c; other's is gy.
std::tuple<Tensor, Tensor, Tensor, Tensor> collapse_backward(const Tensor& gy, const Tensor& c,
                                                             const Tensor& statistics, const Tensor& x,
                                                             const Tensor& weight, const Tensor& norm_x,
                                                             const Tensor& norm_c,
                                                             const std::optional<Tensor>& multiplicity, double eps);

// y = act(bn(x)) like x (N, C, T, V), channels_last, and the statistics (2, C), float64; norm (2, C).
std::tuple<Tensor, Tensor> batch_norm(const Tensor& x, const Tensor& norm, const std::optional<Tensor>& multiplicity,
                                      bool act, double eps);

// The gradients of x and norm.
std::tuple<Tensor, Tensor> batch_norm_backward(const Tensor& gy, const Tensor& y, const Tensor& statistics,
                                               const Tensor& x, const Tensor& norm,
                                               const std::optional<Tensor>& multiplicity, bool act, double eps);

}  // namespace msg3d::binding
