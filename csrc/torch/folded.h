// The folded network as an operator. CPU only, no gradients.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace msg3d::binding {

using torch::stable::Tensor;

// From clips (N, M, T, V, C), the packed network of kernels/folded/network.h and the classifier, float64: weight
// (classes, width) and bias.
//
//   logits    (N, classes), of the clips' type
//   features  (N, width), float64: what the classifier looks at
//   absent    (M, width), float64: the features of each slot without a person, if this call had to compute them
//
// With skip_absent, a person that is zero throughout is not computed and gets its slot's row of `absent`, which is
// given from an earlier call of as many frames, or computed once for all of them.
std::tuple<Tensor, Tensor, Tensor> folded_network(const Tensor& clips, const Tensor& sizes, const Tensor& weights,
                                                  const Tensor& fc_weight, const Tensor& fc_bias, bool skip_absent,
                                                  const std::optional<Tensor>& absent);

}  // namespace msg3d::binding
