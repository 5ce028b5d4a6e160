// The folded network as an operator. CPU only, no gradients.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace msg3d::binding {

using torch::stable::Tensor;

// Features (N*M, num_features), float64, and whether each person is there, (N*M,) bool, from clips (N, M, T, V, C) and
// the packed network of kernels/folded/network.h. With skip_absent, a person that is zero throughout is not computed
// and gets its slot's row of `absent` (M, num_features), or zeros.
std::tuple<Tensor, Tensor> folded_features(const Tensor& clips, const Tensor& sizes, const Tensor& weights,
                                           int64_t num_features, bool skip_absent, const std::optional<Tensor>& absent);

}  // namespace msg3d::binding
