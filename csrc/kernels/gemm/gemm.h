// The matrix product that every CPU kernel is made of: tall operand times one narrow panel, for the instruction set
// chosen at run time.
//
//     c[r][j] = start[r][j] + sum_s sum_d a[r, s, d] * b[s, d, j]          r < rows, j < columns <= width
//
// `width` is two vectors of the instruction set. b's rows are `width` values long, padded by whoever packed them. The
// contraction runs over segments of `depth` with free strides in between, so a window whose frames lie apart, or a
// transposed operand, needs no gathered copy.
#pragma once

#include <cstdint>

#include "column_passes.h"
#include "fused_product.h"

namespace msg3d {

template <typename T>
struct PanelProduct {
  int64_t rows, columns;
  int64_t segments, depth;
  const T* a;  // element (r, s, d) at r * a_row + s * a_segment + d * a_depth
  int64_t a_row, a_segment, a_depth;
  const T* b;  // row (s, d) at s * b_segment + d * b_depth
  int64_t b_segment, b_depth;
  const T* start;  // null: zeros; start_row 0: one row for all (a bias); start == c: accumulate
  int64_t start_row;
  T* c;
  int64_t c_row;
};

template <typename T>
struct Gemm {
  int width;   // columns of `product`
  int panels;  // that one tile of `fused` takes
  void (*product)(const PanelProduct<T>&);
  void (*fused)(const FusedProduct<T>&);
  ColumnPasses<T> passes;
};

struct Isa {
  const char* name;
  Gemm<float> f32;
  Gemm<double> f64;
};

extern const Isa kPortable;
extern const Isa kAvx2;
extern const Isa kAvx512;

// The names of those in this binary that this machine supports, widest first, separated by blanks.
const char* supported_isas();

// The fastest one that this machine supports, unless set_isa chose another.
const Isa& current_isa();

// The same for tiles two vectors wide, where another one may be the fastest.
const Isa& current_wide_isa();

// Chooses by name; "auto" returns to the fastest. False: no such name here, or this machine lacks it.
bool set_isa(const char* name);

template <typename T>
const Gemm<T>& gemm(const Isa& isa);
template <>
inline const Gemm<float>& gemm<float>(const Isa& isa) {
  return isa.f32;
}
template <>
inline const Gemm<double>& gemm<double>(const Isa& isa) {
  return isa.f64;
}

// p on the instruction set that is the fastest for so many panels.
template <typename T>
inline void fused_product(const FusedProduct<T>& p) {
  const Gemm<T>& wide = gemm<T>(current_wide_isa());
  (p.panels < wide.panels ? gemm<T>(current_isa()) : wide).fused(p);
}

}  // namespace msg3d
