// The contract of MS-G3D, for every device and every order of evaluation:
//
//     y[n,o,t,w,v] = bias[o] + sum_k sum_c weight[o,k,c] * sum_{w',u} A[k,(w,v),(w',u)] * x[n,c, t*s + w'*d - p, u]
//
// in memory x (N, T, V, C), y (N, T_out, tau*V, O), both dense; A (K, tau*V, tau*V) and weight (O, K, C) with any
// strides. Nodes (w, v) are numbered w*V + v, p = ((tau-1)*d)/2, and frames outside [0, T) read as zero. MS-GCN is the
// case tau = s = d = 1.
#pragma once

#include <cstdint>

namespace msg3d::ms_g3d {

// A run [first, last) of windows.
struct WindowRange {
  int64_t first, last;
};

struct Problem {
  int64_t N, C, T, V;  // clips, input channels, frames, joints
  int64_t K, O;        // scales, output channels
  int64_t window, stride, dilation;

  int64_t padding() const { return (window - 1) * dilation / 2; }
  int64_t nodes() const { return window * V; }
  int64_t windows() const {  // T_out; 0 if even one window does not fit
    const int64_t room = T + 2 * padding() - dilation * (window - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
  // The windows that read any of the frames [first, last).
  WindowRange windows_touching(int64_t first, int64_t last) const {
    const int64_t lowest = first + padding() - (window - 1) * dilation, highest = last - 1 + padding();
    const int64_t end = highest / stride + 1;
    return {lowest <= 0 ? 0 : (lowest + stride - 1) / stride, end < windows() ? end : windows()};
  }
  // Whether two neighbouring windows share so many frames that computing both at once is cheaper.
  bool pairs() const { return window == 5 && stride == 2 && dilation == 1; }
  // Blocks that the gradient of A is summed in: one for each slot, and those of the pairs (cpu/paired_windows.h).
  int64_t slot_sums() const { return window + (pairs() ? 3 : 0); }
  // First frame of window t; negative inside the padding.
  int64_t first_frame(int64_t t) const { return t * stride - padding(); }
  // Frames from the first to the last that `count` consecutive windows read.
  int64_t frames_of(int64_t count) const { return (count - 1) * stride + (window - 1) * dilation + 1; }
  // At most so many windows read any of `count` consecutive frames.
  int64_t windows_of(int64_t count) const { return (count - 1 + (window - 1) * dilation) / stride + 1; }
};

// A tensor of three dimensions seen through its strides.
template <typename T>
struct Strided {
  const T* data;
  int64_t stride[3];

  T at(int64_t i, int64_t j, int64_t k) const { return data[i * stride[0] + j * stride[1] + k * stride[2]]; }
};

// What all passes read. gy is null in the forward pass, bias may be null.
template <typename T>
struct Inputs {
  const T* x;         // (N, T, V, C)
  Strided<T> A;       // (K, tau*V destinations, tau*V sources)
  Strided<T> weight;  // (O, K, C)
  const T* bias;      // (O,)
  const T* gy;        // (N, T_out, tau*V, O)
};

// What the backward pass for the parameters writes, dense; null where nothing is wanted.
template <typename T>
struct ParameterGradients {
  T* A;       // (K, tau*V, tau*V)
  T* weight;  // (O, K, C)
  T* bias;    // (O,)
};

}  // namespace msg3d::ms_g3d
