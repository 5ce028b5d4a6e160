// Carving the workspace, and packing operands into panels: `width` columns side by side, zeros where the tensor ends.
#pragma once

#include <algorithm>
#include <cstring>

#include "ms_g3d.h"

namespace msg3d::ms_g3d {

// Hands out aligned pieces of a workspace in turn.
class Arena {
 public:
  explicit Arena(std::byte* memory) : memory_(memory) {}

  template <typename T>
  T* take(int64_t elements) {
    T* piece = reinterpret_cast<T*>(memory_);
    memory_ += detail::padded(elements, sizeof(T));
    return piece;
  }

 private:
  std::byte* memory_;
};

template <typename T>
Arena worker_arena(const Call<T>& call, int worker) {
  return Arena(call.workspace.workers + worker * call.plan.worker_bytes);
}

template <typename T>
void zero(T* data, int64_t count) {
  std::memset(data, 0, count * sizeof(T));
}

template <typename T>
void add(T* sum, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
}

// So many clips at a time, if what is stored of each between two uses shall stay in a cache, and cost no fresh pages.
template <typename T>
int64_t stored_clips(const Problem& p, int64_t elements_per_clip) {
  constexpr int64_t kStoredBytes = 8 << 20;
  return std::min(std::max<int64_t>(1, kStoredBytes / (elements_per_clip * static_cast<int64_t>(sizeof(T)))), p.N);
}

// Calls body(first clip, clips) for groups of clips; once where there are none, so that sums become zero.
template <typename Body>
void for_each_group(const Problem& p, int64_t group, const Body& body) {
  for (int64_t first = 0; first < p.N || first == 0; first += std::max<int64_t>(1, group)) {
    body(first, std::min(group, p.N - first));
  }
}

// rows of `width` values from rows of `columns <= width` values.
template <typename T>
void pack_rows(const T* from, int64_t from_row, int64_t rows, int64_t columns, int64_t width, T* to) {
  for (int64_t r = 0; r < rows; ++r, from += from_row, to += width) {
    std::memcpy(to, from, columns * sizeof(T));
    if (columns < width) zero(to + columns, width - columns);
  }
}

// weight (O, K, C) -> (panels, K, C, width): row (k, c) holds the weights of one panel of output channels.
template <typename T>
void pack_weight(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width;
  for_each_task(call.pool, call.plan.panels * p.K, [&](int, int64_t task) {
    const int64_t panel = task / p.K, k = task % p.K;
    T* rows = to + task * p.C * width;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t o = panel * width + j;
      for (int64_t c = 0; c < p.C; ++c) rows[c * width + j] = o < p.O ? call.in.weight.at(o, k, c) : T(0);
    }
  });
}

// bias -> (panels * width), zeros without one.
template <typename T>
void pack_bias(const Call<T>& call, T* to) {
  zero(to, call.plan.panels * call.plan.width);
  if (call.in.bias) std::memcpy(to, call.in.bias, call.problem.O * sizeof(T));
}

// One panel of the bias gradient over rows [first, last) of gy (N * T_out * R, O). In double: the one sum here as long
// as the data.
template <typename T>
void sum_rows(const Call<T>& call, int64_t first, int64_t last, int64_t panel, T* to) {
  const int64_t width = call.plan.width, O = call.problem.O, columns = std::min(width, O - panel * width);
  for (int64_t j = 0; j < width; ++j) to[j] = T(0);
  constexpr int64_t kLanes = 8;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t lanes = std::min(kLanes, columns - j);
    double sums[kLanes] = {};
    for (int64_t r = first; r < last; ++r) {
      const T* row = call.in.gy + r * O + panel * width + j;
      for (int64_t i = 0; i < lanes; ++i) sums[i] += row[i];
    }
    for (int64_t i = 0; i < lanes; ++i) to[j + i] = static_cast<T>(sums[i]);
  }
}

// Adds up the splits' partial (panels, K, C, width) in their order -> grad_weight (O, K, C).
template <typename T>
void reduce_weight(const Call<T>& call, T* partial, T* grad_weight) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t rows = p.K * p.C, size = rows * plan.width;
  for_each_task(call.pool, plan.panels, [&](int, int64_t panel) {
    T* sum = partial + panel * size;
    for (int64_t split = 1; split < plan.splits; ++split) add(sum, sum + split * plan.panels * size, size);
    for (int64_t j = 0; j < std::min(plan.width, p.O - panel * plan.width); ++j) {
      T* to = grad_weight + (panel * plan.width + j) * rows;
      for (int64_t row = 0; row < rows; ++row) to[row] = sum[row * plan.width + j];
    }
  });
}

// Adds up the splits' partial (panels, width) in their order -> grad_bias (O,).
template <typename T>
void reduce_bias(const Call<T>& call, const T* partial, T* grad_bias) {
  for (int64_t o = 0; o < call.problem.O; ++o) {
    double sum = 0;
    for (int64_t split = 0; split < call.plan.splits; ++split)
      sum += partial[split * call.plan.panels * call.plan.width + o];
    grad_bias[o] = static_cast<T>(sum);
  }
}

}  // namespace msg3d::ms_g3d
