// What the walks back share: the pieces, the splits, and the three normalisations as seen from gy.
#pragma once

#include "pieces.h"

namespace msg3d::mstcn {

template <typename T>
struct Walk {
  const Call<T>& call;
  const Saved<T>& saved;
  const T *y, *gy;
  Chunks chunks, out_chunks;
  int64_t splits;
  batch_norm::Backward<T> norm_p, norm_z, norm_r;

  Walk(const Call<T>& call, const Saved<T>& saved, const T* y, const T* gy)
      : call(call),
        saved(saved),
        y(y),
        gy(gy),
        chunks{call.problem.N, call.problem.T, frames_per_piece(call.problem)},
        out_chunks{call.problem.N, call.problem.frames_out(), chunks.step / call.problem.stride},
        norm_p(call.problem.entry(), saved.statistics_p, call.in.norm_p, call.problem.eps),
        norm_z(call.problem.O, saved.statistics_z, call.in.norm_z, call.problem.eps),
        norm_r(saved.r ? call.problem.O : 0, saved.statistics_r, call.in.norm_r, call.problem.eps) {
    // A split's partial sums are O x C: enough rows in each that adding them up costs little.
    const int64_t rows = chunks.samples * chunks.frames * call.problem.V;
    splits = std::clamp<int64_t>(rows / (2 * call.problem.O), 1, std::min<int64_t>(16, chunks.count()));
  }

  // gy of frames from `first` on, `columns` columns, as the gradient of what was normalised from x.
  NormGradient<T> gradient(int64_t sample, int64_t first, int64_t frames, int64_t column, int64_t columns, const T* x,
                           const batch_norm::Backward<T>& norm) const {
    const Problem& p = call.problem;
    const int64_t offset = (sample * p.frames_out() + first) * p.V * p.O + column;
    NormGradient<T> pass{};
    pass.rows = frames * p.V, pass.columns = columns;
    pass.g = gy + offset, pass.x = x + offset, pass.g_row = pass.x_row = pass.mask_row = p.O;
    if (p.act) pass.mask = y + offset;
    pass.mean = &norm.mean[column], pass.a = &norm.a[column];
    return pass;
  }

  // The gradient of z's or r's columns before their normalisation, frames [first, last) of a sample -> out, rows of
  // out_row. Frames outside the clip are zeros, if there are any; out_row is then `columns`.
  void grad_rows(const T* x, const batch_norm::Backward<T>& norm, int64_t sample, int64_t first, int64_t last,
                 int64_t column, int64_t columns, T* out, int64_t out_row) const {
    const Problem& p = call.problem;
    const int64_t frame = p.V * out_row;
    const int64_t inside = std::clamp<int64_t>(0, first, last), end = std::clamp(p.frames_out(), inside, last);
    std::memset(out, 0, (inside - first) * frame * sizeof(T));
    if (end > inside) {
      std::vector<T> b(2 * columns);
      norm.weighted(batch_norm::multiplicity_of(call.in.multiplicity, sample), column, columns, b.data(), &b[columns]);
      NormGradient<T> pass = gradient(sample, inside, end - inside, column, columns, x, norm);
      pass.b = b.data(), pass.c = &b[columns];
      pass.out = out + (inside - first) * frame, pass.out_row = out_row;
      call.gemm.passes.backward(pass);
    }
    std::memset(out + (end - first) * frame, 0, (last - end) * frame * sizeof(T));
  }
};

// The last walk: grad_x and the gradients of the 1x1 products, from g_p (N, T, V, E), the gradient of relu(bn(p))
// through the ReLU. walk's normalisations are finished.
template <typename T>
void leave(const Walk<T>& walk, const T* g_p, const Gradients<T>& gradients);

}  // namespace msg3d::mstcn
