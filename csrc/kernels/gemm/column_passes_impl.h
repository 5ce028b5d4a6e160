// The loops of column_passes.h. Each instruction set's file instantiates them with its own flags; see microkernel.h for
// why everything is a template over `Target`. Columns go by two vectors, whose coefficients stay in registers over all
// rows, then by one vector, the rest one by one; every column is summed row after row, whatever the vector's width.
// Arguments are taken by value where they are used in a loop: the compiler then knows that no store changes them.
#pragma once

#include "column_passes.h"

namespace msg3d {

template <typename Target, typename T>
struct ColumnLoops {
  static constexpr int kLanes = Target::kVectorBytes / sizeof(T);
  static constexpr int64_t kRows = 8;  // at a time
  typedef T Vector __attribute__((vector_size(Target::kVectorBytes)));

  // What one turn works on: two vectors side by side, one, or one number. (As a template's argument a vector type would
  // lose its attribute.)
  struct Wide {
    Vector value[2];
  };
  struct Narrow {
    Vector value[1];
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

  // Calls body(zero, column) with zeros of each kind.
  template <typename Body>
  static inline __attribute__((always_inline)) void each_column(int64_t columns, const Body& body) {
    int64_t c = 0;
    for (; c + 2 * kLanes <= columns; c += 2 * kLanes) body(Wide{}, c);
    for (; c + kLanes <= columns; c += kLanes) body(Narrow{}, c);
    for (; c < columns; ++c) body(Single{}, c);
  }

  // Calls body(zero, column, first row, last row), a few rows at a time: memory is then read and written in its order.
  template <typename Body>
  static inline __attribute__((always_inline)) void each_tile(int64_t rows, int64_t columns, const Body& body) {
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t last = rows - first < kRows ? rows : first + kRows;
      each_column(columns, [&](auto zero, int64_t c) { body(zero, c, first, last); });
    }
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
    each_tile(rows, columns, [&](auto zero, int64_t c, int64_t first, int64_t last) {
      using L = decltype(zero);
      L sum = first ? load<L>(mean + c) : zero;
      for (int64_t r = first; r < last; ++r) {
        sum = map([](auto s, auto value) { return s + value; }, sum, load<L>(x + r * x_row + c));
      }
      store(mean + c, last < rows ? sum : map([&](auto s) { return s * share; }, sum));
    });
    each_column(columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      const L middle = load<L>(mean + c);
      L square = zero;
      for (int64_t r = 0; r < rows; ++r) {
        square = map([](auto s, auto value, auto m) { return s + (value - m) * (value - m); }, square,
                     load<L>(x + r * x_row + c), middle);
      }
      store(squares + c, square);
    });
  }

  template <bool kOther, bool kOtherScale, bool kRelu>
  static void combine_as(const Combine<T> p) {
    each_tile(p.rows, p.columns, [&](auto zero, int64_t c, int64_t first, int64_t last) {
      using L = decltype(zero);
      const L scale = load<L>(p.scale + c), shift = load<L>(p.shift + c);
      const L other_scale = kOtherScale ? load<L>(p.other_scale + c) : zero;
      for (int64_t r = first; r < last; ++r) {
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
    each_tile(p.rows, p.columns, [&](auto zero, int64_t c, int64_t first, int64_t last) {
      using L = decltype(zero);
      const L mean = load<L>(p.mean + c);
      L sum = first ? load<L>(p.sum + c) : zero, product = first ? load<L>(p.product + c) : zero;
      for (int64_t r = first; r < last; ++r) {
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
    each_tile(p.rows, p.columns, [&](auto zero, int64_t c, int64_t first, int64_t last) {
      using L = decltype(zero);
      const L mean = load<L>(p.mean + c), a = load<L>(p.a + c), b = load<L>(p.b + c), shift = load<L>(p.c + c);
      for (int64_t r = first; r < last; ++r) {
        const L g = gradient<kMask>(p, r, c, zero), x = load<L>(p.x + r * p.x_row + c);
        const L normal = map([](auto x, auto m, auto b, auto s) { return (x - m) * b + s; }, x, mean, b, shift);
        store(p.out + r * p.out_row + c, map([](auto v, auto a, auto n) { return v * a + n; }, g, a, normal));
      }
    });
  }

  static void backward(const NormGradient<T>& p) { p.mask ? backward_as<true>(p) : backward_as<false>(p); }

  static void select_as(const NormGradient<T> p) {
    each_tile(p.rows, p.columns, [&](auto zero, int64_t c, int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) store(p.out + r * p.out_row + c, gradient<true>(p, r, c, zero));
    });
  }

  static void select(const NormGradient<T>& p) { select_as(p); }

  template <bool kOneFirst, bool kTwoFirst>
  static void maximum_as(const MaximumGradient<T> p) {
    each_column(p.columns, [&](auto zero, int64_t c) {
      using L = decltype(zero);
      for (int64_t r = 0; r < p.rows; ++r) {
        const L here = load<L>(p.here + r * p.row + c), g = load<L>(p.g + r * p.row + c);
        const L one = load<L>(p.one + r * p.row + c), two = load<L>(p.two + r * p.row + c);
        const L kept = map([](auto h, auto o, auto g, auto z) { return (kOneFirst ? h > o : h >= o) ? g : z; }, here,
                           one, g, zero);
        const L won = map([](auto h, auto t, auto g, auto z) { return (kTwoFirst ? h > t : h >= t) ? g : z; }, here,
                          two, kept, zero);
        store(p.out + r * p.out_row + c,
              map([](auto sum, auto g) { return sum + g; }, load<L>(p.out + r * p.out_row + c), won));
      }
    });
  }

  static void maximum(const MaximumGradient<T>& p) {
    if (p.one_first) return p.two_first ? maximum_as<true, true>(p) : maximum_as<true, false>(p);
    p.two_first ? maximum_as<false, true>(p) : maximum_as<false, false>(p);
  }

  static void sum_and_difference(int64_t count, const T* a, const T* b, T* sum, T* difference) {
    each_column(count, [&](auto zero, int64_t i) {
      using L = decltype(zero);
      const L one = load<L>(a + i), two = load<L>(b + i);
      store(sum + i, map([](auto x, auto y) { return x + y; }, one, two));
      store(difference + i, map([](auto x, auto y) { return x - y; }, one, two));
    });
  }

  static void difference(int64_t count, const T* a, const T* b, T* to) {
    each_column(count, [&](auto zero, int64_t i) {
      using L = decltype(zero);
      store(to + i, map([](auto x, auto y) { return x - y; }, load<L>(a + i), load<L>(b + i)));
    });
  }

  // Sums of frames 0 to 10 at each point: of the even ones, then of the odd ones.
  static constexpr double kInput[11][11] = {
      {1, 0, -1.5, 0, -2, 0, 1.5, 0, 1, 0, 0}, {0, .5, 0, -1, 0, -.5, 0, 1, 0, 0, 0},  // 0
      {0, 0, 1, 0, -1.5, 0, -2, 0, 1.5, 0, 1}, {0, 0, 0, .5, 0, -1, 0, -.5, 0, 1, 0},  // infinity
      {0, 0, -1, 0, .5, 0, 2.5, 0, 1, 0, 0},   {0, 0, 0, -.5, 0, .5, 0, 1, 0, 0, 0},   // 1
      {0, 0, 1, 0, -2.5, 0, .5, 0, 1, 0, 0},   {0, 0, 0, .5, 0, -1.5, 0, 1, 0, 0, 0},  // -1
      {0, 0, -2, 0, -1, 0, 2, 0, 1, 0, 0},     {0, 0, 0, -1, 0, 0, 0, 1, 0, 0, 0},     // 1/2
      {0, 0, .5, 0, -1, 0, -.5, 0, 1, 0, 0},                                           // -2
  };
  // The powers of each point, for each window.
  static constexpr double kOutput[4][6] = {
      {1, 0, 1, 1, 1, 1}, {0, 0, 1, -1, .5, -2}, {0, 0, 1, 1, .25, 4}, {0, 1, 1, -1, .125, -8}};

  // sum + the terms of one row of a table, whose zeros cost nothing.
  template <int kTerms, typename L>
  static inline __attribute__((always_inline)) L add_terms(L sum, const double (&factors)[kTerms],
                                                           const L (&terms)[kTerms]) {
#pragma GCC unroll 11
    for (int j = 0; j < kTerms; ++j) {
      const T factor = static_cast<T>(factors[j]);
      if (factor != 0) sum = map([factor](auto s, auto x) { return s + factor * x; }, sum, terms[j]);
    }
    return sum;
  }

  static void winograd_input(int64_t count, const T* frames, T* sums) {
    each_column(count, [=](auto zero, int64_t i) __attribute__((always_inline)) {
      decltype(zero) in[11];
#pragma GCC unroll 11
      for (int j = 0; j < 11; ++j) in[j] = load<decltype(zero)>(frames + j * count + i);
#pragma GCC unroll 11
      for (int s = 0; s < 11; ++s) store(sums + s * count + i, add_terms(zero, kInput[s], in));
    });
  }

  static void winograd_output(int64_t rows, const T* products, const T* bias, T* y, int64_t y_row, int64_t y_window) {
    each_column(16, [=](auto zero, int64_t c) __attribute__((always_inline)) {
      const auto shift = load<decltype(zero)>(bias + c);
      for (int64_t r = 0; r < rows; ++r) {
        decltype(zero) in[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) in[j] = load<decltype(zero)>(products + (j * rows + r) * 16 + c);
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) {
          store(y + w * y_window + r * y_row + c,
                map([](auto v, auto z) { return v < 0 ? z : v; }, add_terms(shift, kOutput[w], in), zero));
        }
      }
    });
  }

  static void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_row, T* to, int64_t to_row) {
    typedef T Four __attribute__((vector_size(4 * sizeof(T))));
    constexpr int64_t kLine = 64 / sizeof(T), kAhead = 8;  // rows far apart: no processor foresees the next ones
    const int64_t whole_rows = rows / 4 * 4;
    for (int64_t r = 0; r < whole_rows; r += 4) {
      const T *const one = from + r * from_row, *const two = one + from_row;
      const T *const three = two + from_row, *const four = three + from_row;
      for (int64_t c = 0; c < columns; c += kLine) {
        for (int64_t i = 0; i < 4; ++i) __builtin_prefetch(one + (kAhead + i) * from_row + c);
      }
      for (int64_t c = 0; c < columns; ++c) {
        const Four column = {one[c], two[c], three[c], four[c]};
        __builtin_memcpy(to + c * to_row + r, &column, sizeof(Four));
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = whole_rows; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c];
    }
  }

  static constexpr ColumnPasses<T> table() {
    return {
        &moments,        &combine,         &sums,     &backward, &select, &maximum, &sum_and_difference, &difference,
        &winograd_input, &winograd_output, &transpose};
  }
};

}  // namespace msg3d
