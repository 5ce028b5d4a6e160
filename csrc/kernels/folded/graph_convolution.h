// The two orders of a folded graph convolution, and the collapse of its windows; a task each. See network.h for the
// formulas.
//
// Project first, where channels are many: for a few panels of 16 output channels, Z[frame][(k,u)] = x[frame][u] W_k is
// kept for the frames of a few windows. A window is then a contiguous (window*scales*V) x 16 panel, the right-hand side
// of one product with the adjacency: nothing is unfolded or copied. Z is computed once per frame, not once per window
// slot. Aggregate first, for the few channels of the input: four frames' channels are the 16 columns of a product with
// the adjacency.
#pragma once

#include "network.h"

namespace msg3d::folded {

constexpr int64_t kWindowBlock = 8;  // windows that share a block of Z
constexpr int64_t kTogether = 8;     // frames that the aggregate-first order takes at a time

// Output channels [16 * first, 16 * (first + count)).
struct Panels {
  int64_t first, count;
};

// Values of scratch memory that a task needs.
template <typename T>
int64_t project_first_scratch(const GraphConvolution<T>& conv, int64_t joints, int64_t panels);
template <typename T>
int64_t aggregate_first_scratch(const GraphConvolution<T>& conv, int64_t joints);

// Windows [begin, end), where `begin` is a multiple of kWindowBlock: x (frames, V, in) -> y (windows, window*V, out).
template <typename T>
void project_first(const GraphConvolution<T>& conv, int64_t joints, const T* x, int64_t frames, Panels panels,
                   int64_t begin, int64_t end, T* y, T* scratch, const Machine<T>& machine);

// Frames [begin, end), all channels, stride 1: x (V, x_frames, in), whose first `before` frames lie before the clip, ->
// y, whose first frame is `begin`, (end - begin, window*V, out).
template <typename T>
void aggregate_first(const GraphConvolution<T>& conv, int64_t joints, const T* x, int64_t x_frames, int64_t before,
                     int64_t begin, int64_t end, T* y, T* scratch, ProductFunction<T> product);

// y[t] = relu(y[t] + bias + sum over windows and their slots of h[t, slot] W) of some channels, for `count` windows; h
// and y start at the first of them.
template <typename T>
void collapse(const Stage<T>& stage, int64_t joints, Panels panels, const T* const* h, int64_t count, T* y,
              ProductFunction<T> product);

}  // namespace msg3d::folded
