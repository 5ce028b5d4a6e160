// The register tile of fused_product.h; see microkernel.h for the rules that hold here too.
//
// A panel is 16 columns for every instruction set, so weights packed once serve all of them: one vector of AVX-512, two
// of AVX2, four of 16 bytes. The tile's rows are what the registers leave room for.
#pragma once

#include <limits>

#include "column_passes_impl.h"
#include "fused_product.h"
#include "microkernel.h"

namespace msg3d {

// Target: { kVectorBytes, kRegisters }, an unnamed-namespace type.
template <typename Target, typename T>
struct FusedMicrokernel {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  static constexpr int kVectors = kPanel / kLanes;
  static constexpr int kFree =
      (Target::kRegisters - 1 - kVectors) / kVectors;                     // one register broadcasts a, kVectors hold b
  static constexpr int kMaxRows = kFree < 1 ? 1 : kFree > 9 ? 9 : kFree;  // 9: each row needs an address register too
  typedef T Vector __attribute__((vector_size(Target::kVectorBytes)));

  static inline __attribute__((always_inline)) Vector load(const T* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }

  template <int kRows>
  static inline __attribute__((always_inline)) void step(Vector (&sum)[kRows][kVectors], const T* const (&a)[kRows],
                                                         int64_t k, const T* b) {
    Vector column[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      column[j] = load(b + j * kLanes);
      MSG3D_KEEP_IN_REGISTER(column[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      Vector value = a[i][k] - Vector{};  // a broadcast: x - 0 is x
      MSG3D_KEEP_IN_REGISTER(value);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += value * column[j];
    }
  }

  // What follows the sums. Decisions are taken once a tile: taken for each of its vectors they cost short contractions
  // a tenth.
  template <int kRows>
  static inline __attribute__((always_inline)) void finish(const FusedProduct<T>& p, int64_t group, int64_t row,
                                                           Vector (&sum)[kRows][kVectors]) {
    if (p.add) {
      const T* add = p.add + group * p.add_group + row * p.add_row;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i, add += p.add_row) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) sum[i][j] += load(add + j * kLanes);
      }
    }
    Vector bias[kVectors] = {};
    for (int j = 0; p.bias && j < kVectors; ++j) bias[j] = load(p.bias + j * kLanes);
    const Vector lowest = (p.relu ? T(0) : -std::numeric_limits<T>::infinity()) - Vector{};
    const int64_t c_row = p.c_row;
    T* c = p.c + group * p.c_group + row * c_row;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, c += c_row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        Vector value = sum[i][j] + bias[j];
        value = value < lowest ? lowest : value;  // lets NaN through, as torch does
        __builtin_memcpy(c + j * kLanes, &value, sizeof(value));
      }
    }
  }

  // The first lines of rows that come next: a prefetching unit finds each row's stream only after misses, and rows are
  // short.
  template <int kRows>
  static inline __attribute__((always_inline)) void fetch(const Segment<T>& segment, int64_t group, int64_t row) {
    const T* a = segment.a + group * segment.a_group + row * segment.a_row;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, a += segment.a_row) {
      __builtin_prefetch(a);
      __builtin_prefetch(a + 64 / sizeof(T));
    }
  }

  // `tiles` tiles of kRows rows, from `row` on.
  template <int kRows>
  static __attribute__((noinline)) void run(const FusedProduct<T>& p, int64_t group, int64_t row, int64_t tiles) {
    for (const int64_t end = row + tiles * kRows; row < end; row += kRows) {
      Vector sum[kRows][kVectors] = {};
      {
        const T* c = p.c + group * p.c_group + row * p.c_row;
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, c += p.c_row) __builtin_prefetch(c, 1);
      }
      if (p.add) {
        const T* add = p.add + group * p.add_group + row * p.add_row;
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, add += p.add_row) __builtin_prefetch(add);
      }
      for (int64_t s = 0; s < p.num_segments; ++s) {
        const Segment<T>& segment = p.segments[s];
        if (s + 1 < p.num_segments) {
          fetch<kRows>(p.segments[s + 1], group, row);
        } else if (row + kRows < end) {
          fetch<kRows>(p.segments[0], group, row + kRows);
        }
        const T* a[kRows];
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          a[i] = i ? a[i - 1] + segment.a_row : segment.a + group * segment.a_group + row * segment.a_row;
          MSG3D_OPAQUE_POINTER(a[i]);
        }
        const T* b = segment.b + group * segment.b_group;
        const int64_t b_row = segment.b_row, depth = segment.depth;
        int64_t k = 0;
        for (; k + 8 <= depth; k += 8) {
#pragma GCC unroll 8
          for (int u = 0; u < 8; ++u) {
            step<kRows>(sum, a, k + u, b);
            b += b_row;
            MSG3D_OPAQUE_POINTER(b);
          }
        }
        for (; k < depth; ++k, b += b_row) step<kRows>(sum, a, k, b);
      }
      finish<kRows>(p, group, row, sum);
    }
  }

  template <int kRows = kMaxRows>
  static inline void run_height(int64_t height, const FusedProduct<T>& p, int64_t group, int64_t row, int64_t tiles) {
    if constexpr (kRows > 0) {
      if (height == kRows) return run<kRows>(p, group, row, tiles);
      run_height<kRows - 1>(height, p, group, row, tiles);
    }
  }

  static void product(const FusedProduct<T>& p) {
    if (p.rows == 0) return;
    const int64_t tiles = (p.rows + kMaxRows - 1) / kMaxRows;
    const int64_t low = p.rows / tiles, taller = p.rows % tiles;
    for (int64_t g = 0; g < p.groups; ++g) {
      if (taller > 0) run_height(low + 1, p, g, 0, taller);
      run_height(low, p, g, taller * (low + 1), tiles - taller);
    }
  }
};

template <typename Target, typename T>
constexpr Gemm<T> all_products() {
  return {Microkernel<Target, T>::kWidth, &Microkernel<Target, T>::product, &FusedMicrokernel<Target, T>::product,
          ColumnLoops<Target, T>::table()};
}

}  // namespace msg3d
