// Operands of PanelProduct: packing a matrix into panels, and products whose rows lie in frames apart.
#pragma once

#include <algorithm>

#include "../parallel.h"
#include "gemm.h"

namespace msg3d {

// element(k, j) of a (depth x columns) matrix -> (panels, depth, width), zeros beyond the last column.
template <typename T, typename Element>
void pack_panels(const Pool& pool, int64_t depth, int64_t columns, int64_t width, T* to, const Element& element) {
  for_each_task(pool, (columns + width - 1) / width, [&](int, int64_t panel) {
    T* row = to + panel * depth * width;
    for (int64_t k = 0; k < depth; ++k, row += width) {
      for (int64_t j = 0; j < width; ++j) row[j] = panel * width + j < columns ? element(k, panel * width + j) : T(0);
    }
  });
}

inline int64_t packed_size(int64_t depth, int64_t columns, int64_t width) {
  return (columns + width - 1) / width * depth * width;
}

// `product` has the rows of one frame; a and c of the next frame lie a_frame and c_frame further on.
template <typename T>
void product_of_frames(const Gemm<T>& gemm, PanelProduct<T> product, int64_t frames, int64_t a_frame, int64_t c_frame) {
  if (a_frame == product.rows * product.a_row && c_frame == product.rows * product.c_row) {
    product.rows *= frames;
    return gemm.product(product);
  }
  const bool accumulate = product.start == product.c;
  for (int64_t f = 0; f < frames; ++f, product.a += a_frame, product.c += c_frame) {
    if (accumulate) product.start = product.c;
    gemm.product(product);
  }
}

// product.c += a b for a contraction over rows that lie far apart, a few at a time: more would not stay in a
// first-level cache and its page table while the tiles of c go over them again.
template <typename T>
void accumulate(const Gemm<T>& gemm, PanelProduct<T> product) {
  constexpr int64_t kDepth = 96;
  product.start = product.c, product.start_row = product.c_row;
  if (product.segments == 1) {
    for (int64_t left = product.depth; left > 0; left -= kDepth) {
      product.depth = std::min(kDepth, left);
      gemm.product(product);
      product.a += kDepth * product.a_depth, product.b += kDepth * product.b_depth;
    }
    return;
  }
  const int64_t step = std::max<int64_t>(1, kDepth / product.depth);
  for (int64_t left = product.segments; left > 0; left -= step) {
    product.segments = std::min(step, left);
    gemm.product(product);
    product.a += step * product.a_segment, product.b += step * product.b_segment;
  }
}

}  // namespace msg3d
