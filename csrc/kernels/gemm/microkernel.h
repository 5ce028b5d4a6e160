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
  static constexpr int64_t kBlock = 128;
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

  // The vectors of a row of which `columns` values exist.
  template <int kVectors>
  static inline __attribute__((always_inline)) void load_row(const T* from, int64_t columns, Vector (&row)[kVectors]) {
    T edge[kVectors * kLanes] = {};
    if (columns < kVectors * kLanes) {
      for (int64_t j = 0; j < columns; ++j) edge[j] = from[j];
      from = edge;
    }
    for (int j = 0; j < kVectors; ++j) row[j] = load(from + j * kLanes);
  }

  // kVectors: 2, or 1 where that holds all columns.
  template <int kRows, int kVectors>
  static void tile(const PanelProduct<T>& p, int64_t row) {
    Vector sum[kRows][kVectors] = {};  // registers: the sum of the current block
    Vector total[kRows][kVectors];     // memory: start and the blocks so far, where there are several
    const bool several = p.segments * p.depth > kBlock;
    if (several) {
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) total[i][j] = Vector{};
      }
      for (int i = 0; p.start && i < kRows; ++i) load_row(p.start + (row + i) * p.start_row, p.columns, total[i]);
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
          Vector column[kVectors];
#pragma GCC unroll 2
          for (int j = 0; j < kVectors; ++j) {
            column[j] = load(b + j * kLanes);
            MSG3D_KEEP_IN_REGISTER(column[j]);
          }
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
            Vector value = broadcast(a[i][offset], std::make_index_sequence<kLanes>());
            MSG3D_KEEP_IN_REGISTER(value);
#pragma GCC unroll 2
            for (int j = 0; j < kVectors; ++j) sum[i][j] += value * column[j];
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
#pragma GCC unroll 2
            for (int j = 0; j < kVectors; ++j) total[i][j] += sum[i][j], sum[i][j] = Vector{};
          }
        }
      }
    }
    if (several) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sum[i][j] += total[i][j];
      }
    } else if (p.start) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        Vector start[kVectors];
        load_row(p.start + (row + i) * p.start_row, p.columns, start);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sum[i][j] += start[j];
      }
    }
    const int64_t c_row = p.c_row;
    T* c = p.c + row * c_row;
    if (p.columns == kVectors * kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i, c += c_row) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) __builtin_memcpy(c + j * kLanes, &sum[i][j], sizeof(Vector));
      }
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, c += c_row) {
      T edge[kVectors * kLanes];
      for (int j = 0; j < kVectors; ++j) __builtin_memcpy(edge + j * kLanes, &sum[i][j], sizeof(Vector));
      for (int64_t j = 0; j < p.columns; ++j) c[j] = edge[j];
    }
  }

  template <int kVectors, std::size_t... kRow>
  static void run(const PanelProduct<T>& p, std::index_sequence<kRow...>) {
    static constexpr void (*kTiles[])(const PanelProduct<T>&, int64_t) = {&tile<kRow + 1, kVectors>...};
    const int64_t tiles = (p.rows + kMaxRows - 1) / kMaxRows;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t height = p.rows * (i + 1) / tiles - row;
      kTiles[height - 1](p, row);
      row += height;
    }
  }

  static void product(const PanelProduct<T>& p) {
    constexpr auto kHeights = std::make_index_sequence<kMaxRows>();
    p.columns > kLanes ? run<2>(p, kHeights) : run<1>(p, kHeights);
  }
};

}  // namespace msg3d
