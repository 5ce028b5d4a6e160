// The temporal branches of MSTCN for inference on a GPU, every batch normalisation folded into the weights:
//
//     out[.., b*w + o]  = act(out + sum_tap sum_i weight[b,tap,o,i] h[t*s + (tap - taps/2)*d_b, b*w + i])    b < B
//     out[.., B*w + o]  = act(out + scale[o] * max over the frames t*s - 1 .. t*s + 1 of h[.., B*w + o])
//     out[.., (B+1)*w ..] = act(out)
//
// frames outside the clip are zero (or not looked at); act is a ReLU or nothing. `out` comes with what else is summed:
// the residual, the 1x1 branch and every bias. h (N, T, V, (B+1)*w), out (N, T_out, V, O), dense in memory.
//
// Where matrix products come without biases and ReLUs (float64's), h_bias ((B+1)*w,) and out_bias (O,) say them: then
// max(h + h_bias, 0) and out + out_bias stand above in the places of h and out.
#pragma once

#include <cstdint>

namespace msg3d::mstcn::cuda {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

constexpr int kMostBranches = 8;

struct TemporalProblem {
  int64_t N, T, V;
  int64_t width, O;  // channels of a branch, of out
  int branches, taps, stride;
  int dilations[kMostBranches];
  bool relu;

  int64_t windows() const { return (T - 1) / stride + 1; }
  int64_t rows() const { return N * windows() * V; }
};

// Whether tensor cores run it, or fused multiply-adds: 16-bit types, branches of whole k16 steps, vectors of four.
bool temporal_on_tensor_cores(const TemporalProblem& p, Type type, int arch);

// CUDA's error code of the one launch, 0 if there is none. All pointers are 16-byte aligned; weight (B, taps, w, w) and
// scale (w,) are dense. The biases, both or none, are for multiply-adds only.
int temporal(const TemporalProblem& p, Type type, int arch, const void* h, const void* weight, const void* scale,
             void* out, void* stream, const void* h_bias = nullptr, const void* out_bias = nullptr);

}  // namespace msg3d::mstcn::cuda
