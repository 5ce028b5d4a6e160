// The register tile of fused_product.h; see microkernel.h for the rules that hold here too.
//
// A panel is 16 columns for every instruction set, so weights packed once serve all of them: one vector of AVX-512, two
// of AVX2, four of 16 bytes. Two panels share a tile where a panel is one vector: a tile one vector wide loads about as
// often as it multiplies. The tile's rows are what the registers leave room for.
#pragma once

#include <limits>

#include "column_passes_impl.h"
#include "fused_product.h"
#include "microkernel.h"

namespace msg3d {

// Target: { kVectorBytes, kRegisters }, an unnamed-namespace type.
template <typename Target, typename T, int kPanels>
struct FusedTile {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  static constexpr int kPanelVectors = kPanel / kLanes;
  static constexpr int kVectors = kPanels * kPanelVectors;
  static constexpr int kFree =
      (Target::kRegisters - 1 - kVectors) / kVectors;  // one register broadcasts a, kVectors hold b
  static constexpr int kMaxRows = kFree < 1 ? 1 : kFree > 14 ? 14 : kFree;  // 14: what Rows reaches
  static constexpr int kAhead = 16;      // a is fetched so many values ahead: a prefetching unit loses so many streams
  static constexpr int kRowsAhead = 48;  // and b so many rows: the first tile finds weights far away
  typedef T Vector __attribute__((vector_size(Target::kVectorBytes)));

  static inline __attribute__((always_inline)) Vector load(const T* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }

  // Where vector j of a row lies.
  static inline __attribute__((always_inline)) int64_t place(int j, int64_t panel) {
    return j / kPanelVectors * panel + j % kPanelVectors * kLanes;
  }

  template <int kRows>
  static inline __attribute__((always_inline)) void step(Vector (&sum)[kRows][kVectors], Rows<Target, T>& a, int64_t k,
                                                         const T* b, int64_t b_panel) {
    a.keep();
    Vector column[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      column[j] = load(b + place(j, b_panel));
      MSG3D_KEEP_IN_REGISTER(column[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      Vector value = a.at(i, k) - Vector{};  // a broadcast: x - 0 is x
      MSG3D_KEEP_IN_REGISTER(value);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += value * column[j];
    }
  }

  // What follows the sums. Decisions are taken once a tile: taken for each of its vectors they cost short contractions
  // a tenth.
  template <int kRows>
  static inline __attribute__((always_inline)) void finish(const FusedProduct<T>& p, int64_t panel, int64_t group,
                                                           int64_t row, Vector (&sum)[kRows][kVectors]) {
    if (p.add) {
      const T* add = p.add + panel * p.add_panel + group * p.add_group + row * p.add_row;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i, add += p.add_row) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) sum[i][j] += load(add + place(j, p.add_panel));
      }
    }
    Vector bias[kVectors] = {};
    for (int j = 0; p.bias && j < kVectors; ++j) bias[j] = load(p.bias + panel * kPanel + j * kLanes);
    const Vector lowest = (p.relu ? T(0) : -std::numeric_limits<T>::infinity()) - Vector{};
    const int64_t c_row = p.c_row;
    T* c = p.c + panel * p.c_panel + group * p.c_group + row * c_row;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, c += c_row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        Vector value = sum[i][j] + bias[j];
        value = value < lowest ? lowest : value;  // lets NaN through, as torch does
        __builtin_memcpy(c + place(j, p.c_panel), &value, sizeof(value));
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

  // `tiles` tiles of kRows rows and kPanels panels, from `row` and `panel` on.
  template <int kRows>
  static __attribute__((noinline)) void run(const FusedProduct<T>& p, int64_t panel, int64_t group, int64_t row,
                                            int64_t tiles) {
    for (const int64_t end = row + tiles * kRows; row < end; row += kRows) {
      Vector sum[kRows][kVectors] = {};
      {
        const T* c = p.c + panel * p.c_panel + group * p.c_group + row * p.c_row;
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, c += p.c_row) {
#pragma GCC unroll 2
          for (int panel = 0; panel < kPanels; ++panel) __builtin_prefetch(c + panel * p.c_panel, 1);
        }
      }
      if (p.add) {
        const T* add = p.add + panel * p.add_panel + group * p.add_group + row * p.add_row;
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, add += p.add_row) {
#pragma GCC unroll 2
          for (int panel = 0; panel < kPanels; ++panel) __builtin_prefetch(add + panel * p.add_panel);
        }
      }
      for (int64_t s = 0; s < p.num_segments; ++s) {
        const Segment<T>& segment = p.segments[s];
        if (s + 1 < p.num_segments) {
          fetch<kRows>(p.segments[s + 1], group, row);
        } else if (row + kRows < end) {
          fetch<kRows>(p.segments[0], group, row + kRows);
        }
        Rows<Target, T> a(segment.a + group * segment.a_group + row * segment.a_row, segment.a_row);
        const T* b = segment.b + panel * segment.b_panel + group * segment.b_group;
        const int64_t b_row = segment.b_row, b_panel = segment.b_panel, depth = segment.depth;
        // The first panels' pass finds `a` far away and fetches what the next tile reads; later ones find it nearby.
        const int64_t next = row + kRows < p.rows ? kRows * segment.a_row : segment.a_group - row * segment.a_row;
        const int64_t ahead = panel == 0 ? next : kAhead;
        int64_t k = 0;
        for (; k + 8 <= depth; k += 8) {
#pragma GCC unroll 8
          for (int u = 0; u < 8; ++u) {
            step<kRows>(sum, a, u, b, b_panel);
            b += b_row;
#pragma GCC unroll 2
            for (int panel = 0; panel < kPanels; ++panel) __builtin_prefetch(b + kRowsAhead * b_row + panel * b_panel);
            MSG3D_OPAQUE_POINTER(b);
          }
          a.forward(8);
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) __builtin_prefetch(a.address(i, 0) + ahead);
        }
        for (; k < depth; ++k, b += b_row) {
          step<kRows>(sum, a, 0, b, b_panel);
          a.forward(1);
        }
      }
      finish<kRows>(p, panel, group, row, sum);
    }
  }

  template <int kRows = kMaxRows>
  static inline void run_height(int64_t height, const FusedProduct<T>& p, int64_t panel, int64_t group, int64_t row,
                                int64_t tiles) {
    if constexpr (kRows > 0) {
      if (height == kRows) return run<kRows>(p, panel, group, row, tiles);
      run_height<kRows - 1>(height, p, panel, group, row, tiles);
    }
  }

  static void product(const FusedProduct<T>& p, int64_t panel) {
    const int64_t tiles = (p.rows + kMaxRows - 1) / kMaxRows;
    const int64_t low = p.rows / tiles, taller = p.rows % tiles;
    for (int64_t g = 0; g < p.groups; ++g) {
      if (taller > 0) run_height(low + 1, p, panel, g, 0, taller);
      run_height(low, p, panel, g, taller * (low + 1), tiles - taller);
    }
  }
};

template <typename Target, typename T>
struct FusedMicrokernel {
  static constexpr int kPanels = Target::kVectorBytes / sizeof(T) == kPanel ? 2 : 1;  // of a tile

  static void product(const FusedProduct<T>& p) {
    int64_t panel = 0;
    if (p.rows == 0) return;
    for (; panel + kPanels <= p.panels; panel += kPanels) FusedTile<Target, T, kPanels>::product(p, panel);
    for (; panel < p.panels; ++panel) FusedTile<Target, T, 1>::product(p, panel);
  }
};

template <typename Target, typename T>
constexpr Gemm<T> all_products() {
  return {Microkernel<Target, T>::kWidth, FusedMicrokernel<Target, T>::kPanels, &Microkernel<Target, T>::product,
          &FusedMicrokernel<Target, T>::product, ColumnLoops<Target, T>::table()};
}

}  // namespace msg3d
