// A quick look at memory that is spread widely, for who must know whether weights changed.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace msg3d::binding {

using torch::stable::Tensor;

// Whether the 16 bits at each of the addresses `places`, int64, are those `expected`, int16. `near` are addresses of
// objects that the caller looks at next, 48 bytes or more each: they and what they point to are fetched at once, which
// takes a fraction of waiting for one after the other. The caller keeps both alive.
bool same_values(const Tensor& places, const Tensor& expected, const Tensor& near);

}  // namespace msg3d::binding
