// A folded temporal unit in two steps, a task each: the hidden layer of its first five branches, then all six branches
// and the residual.
//
// h[t] = relu(x[t] W + b) has `padding` frames of zeros on both ends, which serve the max-pool too, since h >= 0. Each
// branch has its own h, so that the rows which its products read follow one another in memory.
#pragma once

#include "network.h"

namespace msg3d::folded {

// Rows (t, v) from `begin` to `end` of the clip, at a stride those of whole frames: x (T, V, in) -> h (5, padding + T +
// padding, V, slot). The task of row 0 also writes the padding.
template <typename T>
void temporal_hidden(const TemporalUnit<T>& unit, int64_t joints, const T* x, int64_t frames, int64_t begin,
                     int64_t end, T* h, ProductFunction<T> product);

// Output rows (t, v) from `begin` to `end`, at a stride those of whole frames: x (T, V, in), h -> y (T_out, V, out).
template <typename T>
void temporal_output(const TemporalUnit<T>& unit, int64_t joints, const T* x, int64_t frames, const T* h, int64_t begin,
                     int64_t end, T* y, ProductFunction<T> product);

}  // namespace msg3d::folded
