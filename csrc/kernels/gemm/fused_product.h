// The matrix product with everything a network layer does around it, on panels of 16 packed columns:
//
//     c[g][r][j] = act( bias[j] + add[g][r][j] + sum_s sum_k a_s[g][r][k] * b_s[g][k][j] )          j < 16 * panels
//
// Panels lie apart wherever one is told, so no layout depends on how many of them an instruction set takes at a time.
// Groups g and rows r are two strides of the same operand (frames and joints). The segments s let the contraction run
// over pieces that lie apart (the taps of a temporal convolution, the slots of a window) or come from different tensors
// (a residual). `a` is read where it lies, one value broadcast at a time, so activations are never packed. Every
// element is summed in the order (s, k), whatever tile it falls into: the split of rows over tasks does not show in the
// result.
#pragma once

#include <cstdint>

namespace msg3d {

constexpr int kPanel = 16;

template <typename T>
struct Segment {
  const T* a;  // element (g, r, k) at g * a_group + r * a_row + k
  int64_t a_group, a_row;
  const T* b;  // element (g, k, j) at g * b_group + k * b_row + j / 16 * b_panel + j % 16
  int64_t b_group, b_row;
  int64_t depth;
  int64_t b_panel = 0;
};

template <typename T>
struct FusedProduct {
  const Segment<T>* segments;
  int64_t num_segments;
  int64_t groups, rows;
  T* c;  // element (g, r, j) at g * c_group + r * c_row + j / 16 * c_panel + j % 16
  int64_t c_group, c_row;
  const T* bias = nullptr;  // (16 * panels,), or none
  const T* add = nullptr;   // as c, may be c itself, or none
  int64_t add_group = 0, add_row = 0;
  bool relu = false;
  int64_t panels = 1, c_panel = kPanel, add_panel = kPanel;
};

}  // namespace msg3d
