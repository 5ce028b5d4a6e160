// What both directions of the multi-scale temporal convolution share.
#pragma once

#include <cstring>

#include "../gemm/panels.h"
#include "mstcn.h"

namespace msg3d::mstcn {

constexpr int64_t kRowsPerPiece = 256;

// Frames that one task covers: a multiple of the stride, so that output frames fall into exactly one piece.
inline int64_t frames_per_piece(const Problem& p) {
  return ceil_div(std::max<int64_t>(1, kRowsPerPiece / p.V), p.stride) * p.stride;
}

// Frames that a branch may read for `frames` frames of output.
inline int64_t branch_frames(const Problem& p, int64_t frames) {
  int64_t halo = 1;
  for (const int64_t d : p.dilations) halo = std::max(halo, p.taps / 2 * d);
  return (frames - 1) * p.stride + 2 * halo + 1;
}

inline int64_t row_of(const Problem& p, const Chunks::Piece& piece, int64_t frames) {
  return (piece.sample * frames + piece.first) * p.V;
}

// The weights of the 1x1 products, packed.
template <typename T>
struct Entry {
  Buffer<T> p, last, residual;

  explicit Entry(const Call<T>& call)
      : p(packed_size(call.problem.C, call.problem.entry(), call.gemm.width)),
        last(packed_size(call.problem.C, call.problem.last(), call.gemm.width)),
        residual(call.in.weight_residual ? packed_size(call.problem.C, call.problem.O, call.gemm.width) : 0) {
    const int64_t C = call.problem.C, E = call.problem.entry(), O = call.problem.O, width = call.gemm.width;
    const T *in = call.in.weight_in, *from_residual = call.in.weight_residual;
    pack_panels(call.pool, C, E, width, p.get(), [&](int64_t c, int64_t o) { return in[o * C + c]; });
    pack_panels(call.pool, C, O - E, width, last.get(), [&](int64_t c, int64_t o) { return in[(E + o) * C + c]; });
    if (!from_residual) return;
    pack_panels(call.pool, C, O, width, residual.get(), [&](int64_t c, int64_t o) { return from_residual[o * C + c]; });
  }
};

// The temporal weights (b out, b in, taps) of every branch, packed as (taps * inputs) x outputs or its transpose,
// (taps * outputs) x inputs: panels hold every tap.
template <typename T>
Buffer<T> pack_time(const Call<T>& call, bool transposed) {
  const Problem& p = call.problem;
  const int64_t b = p.branch(), size = packed_size(p.taps * b, b, call.gemm.width);
  Buffer<T> packed(p.convolutions() * size);
  for (int64_t branch = 0; branch < p.convolutions(); ++branch) {
    const T* weight = call.in.weight_time + branch * b * b * p.taps;
    pack_panels(call.pool, p.taps * b, b, call.gemm.width, packed + branch * size, [&](int64_t k, int64_t j) {
      const int64_t tap = k / b, inner = k % b;
      return transposed ? weight[(inner * b + j) * p.taps + tap] : weight[(j * b + inner) * p.taps + tap];
    });
  }
  return packed;
}

// relu(bn(p)) of one branch's columns, frames [first, last) of a sample, zeros outside the clip -> (frames, V, b).
template <typename T>
void normalized_branch(const Call<T>& call, const T* from_p, const batch_norm::Affine<T>& norm, int64_t branch,
                       int64_t sample, int64_t first, int64_t last, T* h) {
  const Problem& p = call.problem;
  const int64_t b = p.branch(), E = p.entry(), frame = p.V * b;
  const int64_t inside = std::clamp<int64_t>(0, first, last), end = std::clamp(p.T, inside, last);
  std::memset(h, 0, (inside - first) * frame * sizeof(T));
  Combine<T> pass{};
  pass.rows = (end - inside) * p.V, pass.columns = b;
  pass.x = from_p + (sample * p.T + inside) * p.V * E + branch * b, pass.x_row = E;
  pass.scale = &norm.scale[branch * b], pass.shift = &norm.shift[branch * b], pass.relu = true;
  pass.out = h + (inside - first) * frame, pass.out_row = b;
  if (pass.rows > 0) call.gemm.passes.combine(pass);
  std::memset(h + (end - first) * frame, 0, (last - end) * frame * sizeof(T));
}

}  // namespace msg3d::mstcn
