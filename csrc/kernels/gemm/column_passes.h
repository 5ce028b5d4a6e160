// The passes over a block of rows that are no product, column by column: what batch normalisation and its neighbours
// do, and the sums of a fast algorithm.
//
// Rows lie `*_row` elements apart; a row's columns are contiguous. One table per instruction set, beside its products.
#pragma once

#include <cstdint>

namespace msg3d {

// out = act( x * scale + shift + other * other_scale ), `other` optional, its scale 1 if null.
template <typename T>
struct Combine {
  int64_t rows, columns;
  const T* x;
  int64_t x_row;
  const T *scale, *shift;
  const T* other = nullptr;
  int64_t other_row = 0;
  const T* other_scale = nullptr;
  bool relu = false;
  T* out = nullptr;
  int64_t out_row = 0;
};

// A gradient g, taken where `mask` is positive (everywhere if null), beside the x that was normalised:
//   sums      sum[c] = sum_r g,   product[c] = sum_r g * (x - mean); out = g unless null
//   backward  out = g * a + (x - mean) * b + c
//   select    out = g; the mask is not null
// out may be g.
template <typename T>
struct NormGradient {
  int64_t rows, columns;
  const T* g;
  int64_t g_row;
  const T* mask = nullptr;
  int64_t mask_row = 0;
  const T* x = nullptr;
  int64_t x_row = 0;
  const T* mean = nullptr;
  T *sum = nullptr, *product = nullptr;
  const T *a = nullptr, *b = nullptr, *c = nullptr;
  T* out = nullptr;
  int64_t out_row = 0;
};

// The gradient of a maximum of three rows, as `here` sees it: out += g where here is the largest; of equal ones it must
// come before the other (*_first false: it does).
template <typename T>
struct MaximumGradient {
  int64_t rows, columns;
  const T *here, *one, *two, *g;
  int64_t row;  // between the rows of each of these
  bool one_first, two_first;
  T* out;
  int64_t out_row;
};

template <typename T>
struct ColumnPasses {
  // The mean of every column, and the sum of squared deviations from it: two passes, for a block that a cache holds.
  void (*moments)(int64_t rows, int64_t columns, const T* x, int64_t x_row, T* mean, T* squares);
  void (*combine)(const Combine<T>&);
  void (*sums)(const NormGradient<T>&);
  void (*backward)(const NormGradient<T>&);
  void (*select)(const NormGradient<T>&);
  void (*maximum)(const MaximumGradient<T>&);
  // Of `count` contiguous values: a + b and a - b, a - b alone; the results may take the operands' places.
  void (*sum_and_difference)(int64_t count, const T* a, const T* b, T* sum, T* difference);
  void (*difference)(int64_t count, const T* a, const T* b, T* difference);
  // Four windows of five at once (folded/joined_windows.h): eleven frames of `count` values -> eleven sums of them; six
  // products (rows, 16) of these -> y[w] = relu(bias + sum of products), windows and rows as far apart as one is told.
  void (*winograd_input)(int64_t count, const T* frames, T* sums);
  void (*winograd_output)(int64_t rows, const T* products, const T* bias, T* y, int64_t y_row, int64_t y_window);
  // to[c][r] = from[r][c]
  void (*transpose)(int64_t rows, int64_t columns, const T* from, int64_t from_row, T* to, int64_t to_row);
};

}  // namespace msg3d
