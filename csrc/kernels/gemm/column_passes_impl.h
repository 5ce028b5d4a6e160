// The loops of column_passes.h. Each instruction set's file instantiates them with its own flags; see microkernel.h for
// why everything is a template over `Target`. Columns go by two vectors, whose coefficients stay in registers over all
// rows, and then one by one; every column is summed row after row, whatever the vector's width. Arguments
// are taken by value where they are used in a loop: the compiler then knows that no store changes them.
#pragma once

#include "column_passes.h"

namespace msg3d {

template <typename Target, typename T>
struct ColumnLoops {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(Target::kVectorBytes)));

  // What one turn works on: two vectors side by side, or one number. (As a template's argument a vector type would lose
  // its attribute.)
  struct Wide {
    Vector value[2];
  };
  struct Single {
    T value[1];
  };

  template <typename L>
  static inline __attribute__((always_inline)) L load(const T* p) {
    L lanes;
#pragma GCC unroll 2
    for (unsigned i = 0; i < sizeof(L) / sizeof(lanes.value[0]); ++i) {
      __builtin_memcpy(&lanes.value[i], p + i * sizeof(lanes.value[0]) / sizeof(T), sizeof(lanes.value[0]));
    }
    return lanes;
  }

  template <typename L>
  static inline __attribute__((always_inline)) void store(T* p, const L& lanes) {
#pragma GCC unroll 2
    for (unsigned i = 0; i < sizeof(L) / sizeof(lanes.value[0]); ++i) {
      __builtin_memcpy(p + i * sizeof(lanes.value[0]) / sizeof(T), &lanes.value[i], sizeof(lanes.value[0]));
    }
  }

  // Calls body(zero, column) with zeros of either kind.
  template <typename Body>
  static inline __attribute__((always_inline)) void each_column(int64_t columns, const Body& body) {
    int64_t c = 0;
    for (; c + 2 * kLanes <= columns; c += 2 * kLanes) body(Wide{}, c);
    for (; c < columns; ++c) body(Single{}, c);
  }

  // f(values of every operand), lane by lane.
  template <typename F, typename L, typename... Others>
  static inline __attribute__((always_inline)) L map(const F& f, const L& first, const Others&... others) {
    L result;
#pragma GCC unroll 2
    for (unsigned i = 0; i < sizeof(first.value) / sizeof(first.value[0]); ++i) {
      result.value[i] = f(first.value[i], others.value[i]...);
    }
    return result;
  }

  static void moments(int64_t rows, int64_t columns, const T* x, int64_t x_row, T* mean, T* squares) {
    const T share = T(1) / static_cast<T>(rows);
    each_column(columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      L sum = zero, square = zero;
      for (int64_t r = 0; r < rows; ++r) {
        sum = map([](auto s, auto value) { return s + value; }, sum, load<L>(x + r * x_row + c));
      }
      const L middle = map([&](auto s) { return s * share; }, sum);
      for (int64_t r = 0; r < rows; ++r) {
        square = map([](auto s, auto value, auto m) { return s + (value - m) * (value - m); }, square,
                     load<L>(x + r * x_row + c), middle);
      }
      store(mean + c, middle);
      store(squares + c, square);
    });
  }

  template <bool kOther, bool kOtherScale, bool kRelu>
  static void combine_as(const Combine<T> p) {
    each_column(p.columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      const L scale = load<L>(p.scale + c), shift = load<L>(p.shift + c);
      const L other_scale = kOtherScale ? load<L>(p.other_scale + c) : zero;
      for (int64_t r = 0; r < p.rows; ++r) {
        L value = map([](auto x, auto a, auto b) { return x * a + b; }, load<L>(p.x + r * p.x_row + c), scale, shift);
        if constexpr (kOther) {
          const L other = load<L>(p.other + r * p.other_row + c);
          value = kOtherScale ? map([](auto v, auto o, auto a) { return v + o * a; }, value, other, other_scale)
                              : map([](auto v, auto o) { return v + o; }, value, other);
        }
        if constexpr (kRelu) value = map([](auto v, auto z) { return v < 0 ? z : v; }, value, zero);  // NaN passes
        store(p.out + r * p.out_row + c, value);
      }
    });
  }

  static void combine(const Combine<T>& p) {
    if (!p.other) return p.relu ? combine_as<false, false, true>(p) : combine_as<false, false, false>(p);
    if (!p.other_scale) return p.relu ? combine_as<true, false, true>(p) : combine_as<true, false, false>(p);
    p.relu ? combine_as<true, true, true>(p) : combine_as<true, true, false>(p);
  }

  template <bool kMask, typename L>
  static inline __attribute__((always_inline)) L gradient(const NormGradient<T>& p, int64_t r, int64_t c, L zero) {
    const L g = load<L>(p.g + r * p.g_row + c);
    if constexpr (!kMask) return g;
    return map([](auto m, auto v, auto z) { return m > 0 ? v : z; }, load<L>(p.mask + r * p.mask_row + c), g, zero);
  }

  template <bool kMask>
  static void sums_as(const NormGradient<T> p) {
    each_column(p.columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      const L mean = load<L>(p.mean + c);
      L sum = zero, product = zero;
      for (int64_t r = 0; r < p.rows; ++r) {
        const L g = gradient<kMask>(p, r, c, zero), x = load<L>(p.x + r * p.x_row + c);
        sum = map([](auto s, auto v) { return s + v; }, sum, g);
        product = map([](auto s, auto v, auto x, auto m) { return s + v * (x - m); }, product, g, x, mean);
        if (p.out) store(p.out + r * p.out_row + c, g);
      }
      store(p.sum + c, sum);
      store(p.product + c, product);
    });
  }

  static void sums(const NormGradient<T>& p) { p.mask ? sums_as<true>(p) : sums_as<false>(p); }

  template <bool kMask>
  static void backward_as(const NormGradient<T> p) {
    each_column(p.columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      const L mean = load<L>(p.mean + c), a = load<L>(p.a + c), b = load<L>(p.b + c), shift = load<L>(p.c + c);
      for (int64_t r = 0; r < p.rows; ++r) {
        const L g = gradient<kMask>(p, r, c, zero), x = load<L>(p.x + r * p.x_row + c);
        const L normal = map([](auto x, auto m, auto b, auto s) { return (x - m) * b + s; }, x, mean, b, shift);
        store(p.out + r * p.out_row + c, map([](auto v, auto a, auto n) { return v * a + n; }, g, a, normal));
      }
    });
  }

  static void backward(const NormGradient<T>& p) { p.mask ? backward_as<true>(p) : backward_as<false>(p); }

  static void select_as(const NormGradient<T> p) {
    each_column(p.columns, [&](auto zero, int64_t c) {
      for (int64_t r = 0; r < p.rows; ++r) store(p.out + r * p.out_row + c, gradient<true>(p, r, c, zero));
    });
  }

  static void select(const NormGradient<T>& p) { select_as(p); }

  static constexpr ColumnPasses<T> table() { return {&moments, &combine, &sums, &backward, &select}; }
};

}  // namespace msg3d
