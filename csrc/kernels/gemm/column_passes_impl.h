// The loops of column_passes.h. Each instruction set's file instantiates them with its own flags; see microkernel.h for
// why everything is a template over `Target`. The inner loops run over columns, which the compiler vectorises; sums
// over rows are then independent of the vector's width.
#pragma once

#include "column_passes.h"

namespace msg3d {

template <typename Target, typename T>
struct ColumnLoops {
  static void moments(int64_t rows, int64_t columns, const T* __restrict x, int64_t x_row, T* __restrict mean,
                      T* __restrict squares) {
    for (int64_t c = 0; c < columns; ++c) mean[c] = squares[c] = T(0);
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict row = x + r * x_row;
      for (int64_t c = 0; c < columns; ++c) mean[c] += row[c];
    }
    const T share = T(1) / static_cast<T>(rows);
    for (int64_t c = 0; c < columns; ++c) mean[c] *= share;
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict row = x + r * x_row;
      for (int64_t c = 0; c < columns; ++c) squares[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
    }
  }

  template <bool kOther, bool kOtherScale, bool kRelu>
  static void combine_as(const Combine<T>& p) {
    const T* __restrict scale = p.scale, * __restrict shift = p.shift, * __restrict other_scale = p.other_scale;
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* __restrict x = p.x + r * p.x_row, * __restrict other = p.other + r * p.other_row;
      T* __restrict out = p.out + r * p.out_row;
      for (int64_t c = 0; c < p.columns; ++c) {
        T value = x[c] * scale[c] + shift[c];
        if constexpr (kOther) value += kOtherScale ? other[c] * other_scale[c] : other[c];
        if constexpr (kRelu) value = value < T(0) ? T(0) : value;  // lets NaN through, as torch does
        out[c] = value;
      }
    }
  }

  static void combine(const Combine<T>& p) {
    if (!p.other) return p.relu ? combine_as<false, false, true>(p) : combine_as<false, false, false>(p);
    if (!p.other_scale) return p.relu ? combine_as<true, false, true>(p) : combine_as<true, false, false>(p);
    p.relu ? combine_as<true, true, true>(p) : combine_as<true, true, false>(p);
  }

  template <bool kMask>
  static void sums_as(const NormGradient<T>& p) {
    T* __restrict sum = p.sum, * __restrict product = p.product;
    const T* __restrict mean = p.mean;
    for (int64_t c = 0; c < p.columns; ++c) sum[c] = product[c] = T(0);
    for (int64_t r = 0; r < p.rows; ++r) {
      const T* __restrict g = p.g + r * p.g_row, * __restrict x = p.x + r * p.x_row;
      const T* __restrict mask = p.mask + r * p.mask_row;
      for (int64_t c = 0; c < p.columns; ++c) {
        const T gradient = !kMask || mask[c] > T(0) ? g[c] : T(0);
        sum[c] += gradient;
        product[c] += gradient * (x[c] - mean[c]);
      }
    }
  }

  static void sums(const NormGradient<T>& p) { p.mask ? sums_as<true>(p) : sums_as<false>(p); }

  template <bool kMask>
  static void backward_as(const NormGradient<T>& p) {
    const T* __restrict mean = p.mean, * __restrict a = p.a, * __restrict b = p.b, * __restrict shift = p.c;
    for (int64_t r = 0; r < p.rows; ++r) {
      const T *g = p.g + r * p.g_row, *__restrict x = p.x + r * p.x_row;
      const T* __restrict mask = p.mask + r * p.mask_row;
      T* out = p.out + r * p.out_row;  // may be g
#pragma GCC ivdep
      for (int64_t c = 0; c < p.columns; ++c) {
        const T gradient = !kMask || mask[c] > T(0) ? g[c] : T(0);
        out[c] = gradient * a[c] + ((x[c] - mean[c]) * b[c] + shift[c]);
      }
    }
  }

  static void backward(const NormGradient<T>& p) { p.mask ? backward_as<true>(p) : backward_as<false>(p); }

  static constexpr ColumnPasses<T> table() { return {&moments, &combine, &sums, &backward}; }
};

}  // namespace msg3d
