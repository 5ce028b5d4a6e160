// The registered function of MSTCN's folded temporal branches on a GPU, for inference; see
// kernels/mstcn/cuda/temporal.h.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace msg3d::binding::gpu {

// Adds into out (N, O, T_out, V) what the branches make of h (N, (B+1)*w, T, V), both channels_last: B convolutions
// along time with weight (B, taps, w, w), output channel before input channel, and scale (w,) times a max-pool; a ReLU
// behind all of it with `relu`. With h_bias ((B+1)*w,) and out_bias (O,), max(h + h_bias, 0) and out + out_bias are
// taken for h and out, by multiply-adds. Deterministic; no wait for the device.
void mstcn_folded(const Tensor& h, const Tensor& weight, const Tensor& scale, Tensor& out,
                  std::vector<int64_t> dilations, int64_t stride, bool relu, const std::optional<Tensor>& h_bias,
                  const std::optional<Tensor>& out_bias);

}  // namespace msg3d::binding::gpu
