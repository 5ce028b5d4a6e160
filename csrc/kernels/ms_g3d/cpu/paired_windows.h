// Windows of five frames, two frames apart, two at a time: 7 products with A's columns of one slot instead of 10, in
// exact algebra (Winograd's F(2,3) on the even frames, F(2,2) on the odd ones; folded/joined_windows.h takes four at a
// time, for the folded network). With B_j the columns of slot j, and the sums
//
//     E = (B_0 + B_2 + B_4) / 2,    D = (B_0 - B_2 + B_4) / 2,    H = B_1 + B_3
//
// windows t and t + 1 of the frames e_0 o_0 e_1 o_1 e_2 o_2 e_3 of Z are
//
//     P = E (e_1 + e_2) + H o_1,    Q = D (e_2 - e_1)
//     y_t     = P + Q + B_0 (e_0 - e_2) + B_1 (o_0 - o_1)
//     y_(t+1) = P - Q + B_3 (o_2 - o_1) + B_4 (e_3 - e_1)
//
// and four frames e o e' o' of dZ, of which e is the middle of window t, from the gradients g_(-1) to g_2 of t - 1 to
// t + 2 are
//
//     e  = E^T (g_0 + g_1) + D^T (g_1 - g_0) + B_4^T (g_(-1) - g_1)
//     e' = E^T (g_0 + g_1) - D^T (g_1 - g_0) + B_0^T (g_2 - g_0)
//     o  = H^T g_1 + B_3^T (g_0 - g_1)
//     o' = H^T g_1 + B_1^T (g_2 - g_1)
//
// A frame or gradient enters only what depends on it anyway, so what is not a number stays within its windows.
//
// The gradient of A is the sum over all pairs of the same seven products, each of what stands beside a block above and
// what that block adds to: with g_0, g_1 of windows t and t + 1
//
//     E += (e_1 + e_2) (g_0 + g_1)^T,    H += o_1 (g_0 + g_1)^T,    D += (e_2 - e_1) (g_0 - g_1)^T
//     B_0 += (e_0 - e_2) g_0^T,    B_1 += (o_0 - o_1) g_0^T,    B_3 += (o_2 - o_1) g_1^T,    B_4 += (e_3 - e_1) g_1^T
//
// and in the end B_0 and B_4 get (E + D) / 2, B_2 gets (E - D) / 2, B_1 and B_3 get H.
#pragma once

#include "pack.h"

namespace msg3d::ms_g3d::project_first {

// E, H and D beside one another, from A as (rows, tau, columns) or, `by_source`, as (tau, rows, columns): the same
// layout with three instead of tau.
template <typename T>
void pack_paired(const Call<T>& call, const T* adjacency, bool by_source, T* to) {
  const Problem& p = call.problem;
  const int64_t J = p.V * p.K, R = p.nodes();
  const int64_t rows = by_source ? 1 : R, block = by_source ? J * R : J;
  for_each_task(call.pool, rows, [&](int, int64_t r) {
    const T* from = adjacency + r * p.window * block;
    T* sums = to + r * 3 * block;
    for (int64_t i = 0; i < block; ++i) {
      const T outer = from[i] + from[i + 4 * block], middle = from[i + 2 * block];
      sums[i] = (outer + middle) / 2;
      sums[i + block] = from[i + block] + from[i + 3 * block];
      sums[i + 2 * block] = (outer - middle) / 2;
    }
  });
}

// The sums of Z over the seven frames of two windows -> seven frames: e_1 + e_2, o_1; e_0 - e_2, o_0 - o_1; o_2 - o_1,
// e_3 - e_1; e_2 - e_1.
template <typename T>
void sums_of_frames(const Call<T>& call, const T* z, T* to) {
  const int64_t frame = call.problem.V * call.problem.K * call.plan.width;
  const auto at = [&](int64_t f) { return z + f * frame; };
  const auto& passes = call.gemm.passes;
  passes.sum_and_difference(frame, at(4), at(2), to, to + 6 * frame);
  std::memcpy(to + frame, at(3), frame * sizeof(T));
  passes.difference(frame, at(0), at(4), to + 2 * frame);
  passes.difference(frame, at(1), at(3), to + 3 * frame);
  passes.difference(frame, at(5), at(3), to + 4 * frame);
  passes.difference(frame, at(6), at(2), to + 5 * frame);
}

// Two windows of one panel from Z of their seven frames -> y (2, R, O). A as (R, tau, J), paired as (R, 3, J).
template <typename T>
void two_windows(const Call<T>& call, const T* adjacency, const T* paired, const T* z, const T* bias, int64_t columns,
                 T* scratch, T* y) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, J = p.V * p.K, R = p.nodes(), frame = J * width;
  const T *const both = scratch, *const first = both + 2 * frame;  // what both windows have, what only one has
  const T *const second = first + 2 * frame, *const across = second + 2 * frame;
  T *const P = scratch + 7 * frame, *const Q = P + R * width;
  sums_of_frames(call, z, scratch);

  PanelProduct<T> product{};
  product.rows = R, product.columns = width, product.a_depth = 1, product.b_depth = width, product.c_row = width;
  product.depth = J, product.a_row = 3 * J, product.a_segment = J;
  product.segments = 2, product.a = paired, product.b = both, product.b_segment = frame;
  product.start = bias, product.c = P;
  call.gemm.product(product);
  product.segments = 1, product.a = paired + 2 * J, product.b = across, product.start = nullptr, product.c = Q;
  call.gemm.product(product);
  call.gemm.passes.sum_and_difference(R * width, P, Q, P, Q);

  product.segments = 2, product.columns = columns, product.a_row = p.window * J;
  product.start_row = width, product.c_row = p.O;
  product.a = adjacency, product.b = first, product.start = P, product.c = y;
  call.gemm.product(product);
  product.a = adjacency + 3 * J, product.b = second, product.start = Q, product.c = y + R * p.O;
  call.gemm.product(product);
}

// Four frames of dZ from an even one on, for one panel; gy(t): that panel of window t, zeros where there is none. A as
// (tau, J, R), paired as (3, J, R).
template <typename T, typename Gradient>
void four_frames(const Call<T>& call, const T* adjacency, const T* paired, const Gradient& gy, int64_t first,
                 T* scratch, T* grad_z) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, J = p.V * p.K, R = p.nodes(), frame = J * width, size = R * width;
  const int64_t t = first / 2;
  const T *const before = gy(t - 1), *const here = gy(t), *const next = gy(t + 1), *const after = gy(t + 2);
  T *const both = scratch, *const across = both + size, *const outer = across + size, *const inner = outer + 2 * size;
  const auto& passes = call.gemm.passes;
  passes.sum_and_difference(size, next, here, both, across);
  passes.difference(size, before, next, outer);
  passes.difference(size, after, here, outer + size);
  passes.difference(size, here, next, inner);
  passes.difference(size, after, next, inner + size);

  T* const to[4] = {grad_z, grad_z + frame, grad_z + 2 * frame, grad_z + 3 * frame};
  PanelProduct<T> product{};
  product.rows = J, product.columns = product.b_depth = product.c_row = product.start_row = width;
  product.segments = 1, product.depth = R, product.a_row = R, product.a_depth = 1;
  const auto multiply = [&](const T* a, const T* b, const T* start, T* c) {
    product.a = a, product.b = b, product.start = start, product.c = c;
    call.gemm.product(product);
  };
  multiply(paired, both, nullptr, to[0]);
  multiply(paired + 2 * J * R, across, nullptr, to[2]);
  passes.sum_and_difference(frame, to[0], to[2], to[0], to[2]);
  multiply(adjacency + 4 * J * R, outer, to[0], to[0]);
  multiply(adjacency, outer + size, to[2], to[2]);
  multiply(paired + J * R, next, nullptr, to[1]);
  multiply(adjacency + J * R, inner + size, to[1], to[3]);
  multiply(adjacency + 3 * J * R, inner, to[1], to[1]);
}

}  // namespace msg3d::ms_g3d::project_first
