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
#include <type_traits>
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

// The rows of a matrix in five registers: x86 adds a distance times 1, 2, 4 or 8 as it loads. Otherwise the compiler
// computes every row's address beforehand, more than there are registers.
template <typename Target, typename T>
struct Rows {
  const char *row0, *row7;
  int64_t one, three, five;  // distances of so many rows, in bytes

  Rows(const T* a, int64_t a_row) : row0(reinterpret_cast<const char*>(a)), one(a_row * int64_t{sizeof(T)}) {
    three = 3 * one, five = 5 * one, row7 = row0 + 7 * one;
  }

  // 0 to 6, 8, 10 or 12 rows.
  inline __attribute__((always_inline)) int64_t distance(int rows) const {
    return rows % 5 == 0 ? rows / 5 * five : rows % 3 == 0 ? rows / 3 * three : rows * one;
  }
  inline __attribute__((always_inline)) const T* address(int row, int64_t k) const {
    const char* from = row < 7 || row % 2 == 0 ? row0 + distance(row) : row7 + distance(row - 7);
    return reinterpret_cast<const T*>(from + k * int64_t{sizeof(T)});
  }
  inline __attribute__((always_inline)) T at(int row, int64_t k) const { return *address(row, k); }
  inline __attribute__((always_inline)) void forward(int64_t k) {
    row0 += k * int64_t{sizeof(T)}, row7 += k * int64_t{sizeof(T)};
  }
  inline __attribute__((always_inline)) void keep() {
    MSG3D_OPAQUE_POINTER(row0);
    MSG3D_OPAQUE_POINTER(row7);
    MSG3D_OPAQUE_POINTER(one);
    MSG3D_OPAQUE_POINTER(three);
    MSG3D_OPAQUE_POINTER(five);
  }
};

// The rows of a transposed matrix: side by side, steps of the contraction `depth` apart.
template <typename Target, typename T>
struct TransposedRows {
  const T* column;
  int64_t depth;

  inline __attribute__((always_inline)) T at(int row, int64_t) const { return column[row]; }
  inline __attribute__((always_inline)) void forward(int64_t k) {
    column += k * depth;
    MSG3D_OPAQUE_POINTER(column);
  }
  inline __attribute__((always_inline)) void keep() {}  // one register, hidden where it moves
};

// Target: { kVectorBytes, kMaxRows }, an unnamed-namespace type.
template <typename Target, typename T>
struct Microkernel {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  static constexpr int kWidth = 2 * kLanes;
  static constexpr int kMaxRows = Target::kMaxRows;
  // Long sums are added up in blocks: the error of one running sum grows with its length, to several times eager's.
  static constexpr int64_t kBlock = 128;
  static constexpr int kAhead = 16;      // a row of a is fetched so many values ahead, where no tile follows
  static constexpr int kRowsAhead = 48;  // and b so many rows: the first tile may find them far away
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

  template <int kRows, int kVectors, typename Operand>
  static inline __attribute__((always_inline)) void step(Vector (&sum)[kRows][kVectors], Operand& a, int64_t k,
                                                         const T* b) {
    a.keep();
    Vector row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      row[j] = load(b + j * kLanes);
      MSG3D_KEEP_IN_REGISTER(row[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      Vector value = broadcast(a.at(i, k), std::make_index_sequence<kLanes>());
      MSG3D_KEEP_IN_REGISTER(value);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sum[i][j] += value * row[j];
    }
  }

  // kVectors: 2, or 1 where that holds all columns. kTransposed: a_row is 1; otherwise a_depth is.
  template <int kRows, int kVectors, bool kTransposed>
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
      using Operand = std::conditional_t<kTransposed, TransposedRows<Target, T>, Rows<Target, T>>;
      Operand a{p.a + row * p.a_row + s * p.a_segment, kTransposed ? p.a_depth : p.a_row};
      const T* b = p.b + s * p.b_segment;
      const int64_t b_depth = p.b_depth;
      // A tile fetches the rows of the next one: a prefetching unit finds each row's stream only after misses.
      const int64_t ahead = row + kRows < p.rows ? kRows * p.a_row : kAhead;
      for (int64_t depth = p.depth; depth > 0;) {
        const int64_t steps = depth < block ? depth : block;
        constexpr int kSteps = kTransposed ? 4 : 8;  // at a time
        int64_t d = steps;
        for (; d >= kSteps; d -= kSteps) {
#pragma GCC unroll 8
          for (int u = 0; u < kSteps; ++u) {
            step(sum, a, kTransposed ? 0 : u, b);
            if constexpr (kTransposed) a.forward(1);
            b += b_depth;
            if constexpr (!kTransposed) {
#pragma GCC unroll 2
              for (int64_t line = 0; line < int64_t{sizeof(sum[0])}; line += 64) {
                __builtin_prefetch(reinterpret_cast<const char*>(b + kRowsAhead * b_depth) + line);
              }
            }
            MSG3D_OPAQUE_POINTER(b);
          }
          if constexpr (!kTransposed) {
            a.forward(kSteps);
#pragma GCC unroll 16
            for (int i = 0; i < kRows; ++i) __builtin_prefetch(a.address(i, 0) + ahead);
          }
          // Otherwise the compiler lets some change places from one turn to the next, through memory.
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
            for (int j = 0; j < kVectors; ++j) MSG3D_KEEP_IN_REGISTER(sum[i][j]);
          }
        }
        for (; d > 0; --d) {
          step(sum, a, 0, b);
          a.forward(1);
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

  // Where a tile will write, early; in the tile itself this would take registers.
  static inline __attribute__((always_inline)) void fetch_for_writing(const PanelProduct<T>& p, int64_t row,
                                                                      int64_t height) {
    const char* c = reinterpret_cast<const char*>(p.c + row * p.c_row);
    const int64_t bytes = p.columns * int64_t{sizeof(T)};
    for (int64_t i = 0; i < height; ++i, c += p.c_row * int64_t{sizeof(T)}) {
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(c + line, 1);
    }
  }

  template <int kVectors, bool kTransposed, std::size_t... kRow>
  static void run(const PanelProduct<T>& p, std::index_sequence<kRow...>) {
    static constexpr void (*kTiles[])(const PanelProduct<T>&, int64_t) = {&tile<kRow + 1, kVectors, kTransposed>...};
    const int64_t tiles = (p.rows + kMaxRows - 1) / kMaxRows;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t height = p.rows * (i + 1) / tiles - row;
      fetch_for_writing(p, row, height);
      kTiles[height - 1](p, row);
      row += height;
    }
  }

  static void product(const PanelProduct<T>& p) {
    constexpr auto kHeights = std::make_index_sequence<kMaxRows>();
    if (p.a_row == 1) return p.columns > kLanes ? run<2, true>(p, kHeights) : run<1, true>(p, kHeights);
    p.columns > kLanes ? run<2, false>(p, kHeights) : run<1, false>(p, kHeights);
  }
};

}  // namespace msg3d
