// The register tile of gemm.h, written once with vector extensions; each instruction set's file instantiates it with
// its own flags.
//
// A tile is kMaxRows rows by two vectors, held in registers over the whole contraction. Rows are split evenly over the
// tiles, because a tile of one or two rows waits for its own additions. Only this file's own code may be compiled here:
// everything is a template over `Target`, a type private to the including file, so that the linker cannot merge code
// made for different machines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "gemm.h"

// The compiler must believe that these values change here. Otherwise gcc recomputes row addresses from a hoisted,
// spilled stride and folds b's loads into every multiply-add: 20 % slower.
#define MSG3D_OPAQUE_POINTER(p) asm("" : "+r"(p))
#if defined(MSG3D_KEEP_IN_REGISTER)  // defined away by tests that compile wide vectors for narrow machines
#elif defined(__x86_64__)
#define MSG3D_KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define MSG3D_KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define MSG3D_KEEP_IN_REGISTER(v)
#endif

namespace msg3d {

// Target: { kVectorBytes, kMaxRows }, an unnamed-namespace type.
template <typename Target, typename T>
struct Microkernel {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  static constexpr int kWidth = 2 * kLanes;
  static constexpr int kMaxRows = Target::kMaxRows;
  // Long sums are added up in blocks: the error of one running sum grows with its length, to several times eager's.
  static constexpr int64_t kBlock = 64;
  typedef T Vector __attribute__((vector_size(Target::kVectorBytes)));

  static inline __attribute__((always_inline)) Vector load(const T* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }

  template <std::size_t... kLane>
  static inline __attribute__((always_inline)) Vector broadcast(T value, std::index_sequence<kLane...>) {
    return Vector{((void)kLane, value)...};
  }

  // Two vectors of a row of which `columns` values exist.
  static inline __attribute__((always_inline)) void load_row(const T* from, int64_t columns, Vector& lo, Vector& hi) {
    T edge[kWidth] = {};
    if (columns < kWidth) {
      for (int64_t j = 0; j < columns; ++j) edge[j] = from[j];
      from = edge;
    }
    lo = load(from), hi = load(from + kLanes);
  }

  template <int kRows>
  static void tile(const PanelProduct<T>& p, int64_t row) {
    Vector lo[kRows] = {}, hi[kRows] = {};    // registers: the sum of the current block
    Vector total_lo[kRows], total_hi[kRows];  // memory: start and the blocks so far, where there are several
    const bool several = p.segments * p.depth > kBlock;
    if (several) {
      for (int i = 0; i < kRows; ++i) total_lo[i] = total_hi[i] = Vector{};
      for (int i = 0; p.start && i < kRows; ++i) {
        load_row(p.start + (row + i) * p.start_row, p.columns, total_lo[i], total_hi[i]);
      }
    }
    int64_t block = kBlock;
    for (int64_t s = 0; s < p.segments; ++s) {
      const T* a[kRows];
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        a[i] = p.a + (row + i) * p.a_row + s * p.a_segment;
        MSG3D_OPAQUE_POINTER(a[i]);
      }
      const T* b = p.b + s * p.b_segment;
      const int64_t a_depth = p.a_depth, b_depth = p.b_depth;
      int64_t offset = 0;
      for (int64_t depth = p.depth; depth > 0;) {
        const int64_t steps = depth < block ? depth : block;
#pragma GCC unroll 4
        for (int64_t d = steps; d > 0; --d) {
          Vector b_lo = load(b), b_hi = load(b + kLanes);
          MSG3D_KEEP_IN_REGISTER(b_lo);
          MSG3D_KEEP_IN_REGISTER(b_hi);
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
            Vector value = broadcast(a[i][offset], std::make_index_sequence<kLanes>());
            MSG3D_KEEP_IN_REGISTER(value);
            lo[i] += value * b_lo;
            hi[i] += value * b_hi;
          }
          offset += a_depth;
          b += b_depth;
        }
        depth -= steps;
        block -= steps;
        if (block == 0 && several) {
          block = kBlock;
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
            total_lo[i] += lo[i], total_hi[i] += hi[i];
            lo[i] = hi[i] = Vector{};
          }
        }
      }
    }
    if (several) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) lo[i] += total_lo[i], hi[i] += total_hi[i];
    } else if (p.start) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        Vector start_lo, start_hi;
        load_row(p.start + (row + i) * p.start_row, p.columns, start_lo, start_hi);
        lo[i] += start_lo, hi[i] += start_hi;
      }
    }
    const int64_t c_row = p.c_row;
    T* c = p.c + row * c_row;
    if (p.columns == kWidth) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i, c += c_row) {
        __builtin_memcpy(c, &lo[i], sizeof(Vector));
        __builtin_memcpy(c + kLanes, &hi[i], sizeof(Vector));
      }
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, c += c_row) {
      T edge[kWidth];
      __builtin_memcpy(edge, &lo[i], sizeof(Vector));
      __builtin_memcpy(edge + kLanes, &hi[i], sizeof(Vector));
      for (int64_t j = 0; j < p.columns; ++j) c[j] = edge[j];
    }
  }

  template <std::size_t... kRow>
  static void call_tile(int height, const PanelProduct<T>& p, int64_t row, std::index_sequence<kRow...>) {
    static constexpr void (*kTiles[])(const PanelProduct<T>&, int64_t) = {&tile<kRow + 1>...};
    kTiles[height - 1](p, row);
  }

  static void product(const PanelProduct<T>& p) {
    const int64_t tiles = (p.rows + kMaxRows - 1) / kMaxRows;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int height = static_cast<int>((p.rows * (i + 1)) / tiles - row);
      call_tile(height, p, row, std::make_index_sequence<kMaxRows>());
      row += height;
    }
  }

  static constexpr Gemm<T> gemm() { return {kWidth, &product}; }
};

}  // namespace msg3d
