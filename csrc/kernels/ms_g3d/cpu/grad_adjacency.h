// The gradient of A in the order project-first: sums over windows of Z times gy, in blocks of (node panels, slots,
// (u,k), width of (w,v)), one set of blocks for each task.
#pragma once

#include "paired_windows.h"

namespace msg3d::ms_g3d::project_first {

// Elements that one task sums up.
template <typename T>
int64_t adjacency_sums(const Call<T>& call) {
  const Problem& p = call.problem;
  return ceil_div(p.nodes(), call.plan.width) * p.slot_sums() * p.V * p.K * call.plan.width;
}

// gy of windows [first, last), one panel of outputs -> (node panels, windows, o, width of (w,v)).
template <typename T>
void pack_gy_by_node(const Call<T>& call, int64_t n, int64_t first, int64_t last, int64_t panel, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes(), windows = last - first;
  const int64_t outputs = std::min(width, p.O - panel * width);
  for (int64_t t = 0; t < windows; ++t) {
    for (int64_t q = 0; q * width < R; ++q) {
      const T* from = call.in.gy + ((n * p.windows() + first + t) * R + q * width) * p.O + panel * width;
      T* block = to + (q * windows + t) * width * width;
      const int64_t nodes = std::min(width, R - q * width);
      if (nodes < width) zero(block, outputs * width);
      call.gemm.passes.transpose(nodes, outputs, from, p.O, block, width);
    }
  }
}

// Adds the step of windows [first, last) to `partial`, from Z of its frames. scratch, where windows pair: seven frames
// for each pair.
template <typename T>
void add_grad_A(const Call<T>& call, int64_t n, int64_t first, int64_t last, int64_t panel, const T* z, T* gy_by_node,
                T* scratch, T* partial) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, J = p.V * p.K, frame = J * width, block = width * width;
  const int64_t windows = last - first, pairs = p.pairs() ? windows / 2 : 0, node_panels = ceil_div(p.nodes(), width);
  pack_gy_by_node(call, n, first, last, panel, gy_by_node);
  for (int64_t i = 0; i < pairs; ++i) sums_of_frames(call, z + 2 * i * p.stride * frame, scratch + 7 * i * frame);

  T* const sums = gy_by_node + node_panels * windows * block;  // of a pair's g: sum, difference
  for (int64_t q = 0; q < node_panels; ++q, partial += p.slot_sums() * frame) {
    const T* g = gy_by_node + q * windows * block;
    PanelProduct<T> product{};
    product.columns = width, product.depth = std::min(width, p.O - panel * width);
    product.a_row = width, product.a_depth = 1, product.b_depth = width, product.c_row = product.start_row = width;
    const auto add = [&](int64_t slots, const T* a, const T* b, int64_t slot) {
      product.rows = slots * J, product.a = a, product.b = b;
      product.start = product.c = partial + slot * frame;
      call.gemm.product(product);
    };
    if (pairs) {
      for (int64_t i = 0; i < pairs; ++i) {
        T* const sum = sums + 2 * i * block;
        call.gemm.passes.sum_and_difference(product.depth * width, g + 2 * i * block, g + (2 * i + 1) * block, sum,
                                            sum + block);
      }
      product.segments = pairs, product.a_segment = 7 * frame, product.b_segment = 2 * block;
      add(2, scratch, sums, 5);
      add(1, scratch + 6 * frame, sums + block, 7);
      add(2, scratch + 2 * frame, g, 0);
      add(2, scratch + 4 * frame, g + block, 3);
    }
    product.segments = windows - 2 * pairs, product.a_segment = p.stride * frame, product.b_segment = block;
    for (int64_t w = 0; product.segments && w < p.window; ++w) {
      add(1, z + (2 * pairs * p.stride + w * p.dilation) * frame, g + 2 * pairs * block, w);
    }
  }
}

// Adds up the tasks' sums in their order -> grad_A (K, R, R).
template <typename T>
void reduce_adjacency(const Call<T>& call, T* partial, T* grad_A) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes(), frame = p.V * p.K * width, slots = p.slot_sums();
  const int64_t node_panels = ceil_div(R, width), size = adjacency_sums(call);
  for_each_task(call.pool, node_panels * slots, [&](int, int64_t block) {
    T* sum = partial + block * frame;
    for (int64_t task = 1; task < call.plan.tasks; ++task) add(sum, sum + task * size, frame);
  });
  for_each_task(call.pool, node_panels * p.window, [&](int, int64_t task) {
    const int64_t q = task / p.window, w = task % p.window, columns = std::min(width, R - q * width);
    T *const sum = partial + (q * slots + w) * frame, *const pairs = partial + (q * slots + p.window) * frame;
    for (int64_t i = 0; p.pairs() && i < frame; ++i) {
      const T E = pairs[i], H = pairs[i + frame], D = pairs[i + 2 * frame];
      sum[i] += w % 2 ? H : (w == 2 ? E - D : E + D) / 2;
    }
    for (int64_t k = 0; k < p.K; ++k) {
      for (int64_t j = 0; j < columns; ++j) {
        T* to = grad_A + (k * R + q * width + j) * R + w * p.V;
        for (int64_t u = 0; u < p.V; ++u) to[u] = sum[(u * p.K + k) * width + j];
      }
    }
  });
}

}  // namespace msg3d::ms_g3d::project_first
