// The folded network as an operator. CPU only, no gradients.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace msg3d::binding {

using torch::stable::Tensor;

// Features (N*M, num_features), float64, and whether each person is there, (N*M,) bool, from clips (N, M, T, V, C) and
// the packed network of kernels/folded/network.h. With skip_absent, a person that is zero throughout is not computed
// and gets zeros.
std::tuple<Tensor, Tensor> folded_features(const Tensor& clips, const Tensor& sizes, const Tensor& weights,
                                           int64_t num_features, bool skip_absent);

}  // namespace msg3d::binding
