#include "batch_norm.h"

namespace msg3d::batch_norm {
namespace {

constexpr int64_t kRowsPerPiece = 256;

Chunks pieces_of(const Problem& p) { return {p.N, p.rows, kRowsPerPiece}; }

}  // namespace

template <typename T>
void forward(const Problem& p, const T* x, const T* norm, const T* multiplicity, const Gemm<T>& gemm, const Pool& pool,
             double* statistics, T* y) {
  const Chunks pieces = pieces_of(p);
  Moments moments(pieces.count(), p.C);
  for_each_task(pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    moments.add(gemm.passes, task, piece.frames(), 0, p.C, x + (piece.sample * p.rows + piece.first) * p.C, p.C);
  });
  moments.merge(pieces, multiplicity, statistics);
  const Affine<T> affine(p.C, statistics, norm, p.eps);
  for_each_task(pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    const int64_t offset = (piece.sample * p.rows + piece.first) * p.C;
    Combine<T> pass{};
    pass.rows = piece.frames(), pass.columns = p.C, pass.x = x + offset, pass.x_row = pass.out_row = p.C;
    pass.scale = affine.scale.data(), pass.shift = affine.shift.data(), pass.relu = p.act, pass.out = y + offset;
    gemm.passes.combine(pass);
  });
}

template <typename T>
void backward(const Problem& p, const T* x, const T* norm, const T* multiplicity, const double* statistics, const T* y,
              const T* gy, const Gemm<T>& gemm, const Pool& pool, T* grad_x, T* grad_norm) {
  const Chunks pieces = pieces_of(p);
  Backward<T> state(p.C, statistics, norm, p.eps);
  GradientSums sums(pieces.count(), p.C);
  double samples = 0;
  for (int64_t n = 0; n < p.N; ++n) samples += multiplicity_of(multiplicity, n);
  const auto gradient = [&](const Chunks::Piece& piece) {
    const int64_t offset = (piece.sample * p.rows + piece.first) * p.C;
    NormGradient<T> pass{};
    pass.rows = piece.frames(), pass.columns = p.C, pass.g_row = pass.mask_row = pass.x_row = pass.out_row = p.C;
    pass.g = gy + offset, pass.x = x + offset, pass.mean = state.mean.data(), pass.a = state.a.data();
    if (p.act) pass.mask = y + offset;
    return pass;
  };
  for_each_task(pool, pieces.count(),
                [&](int, int64_t task) { sums.add(gemm.passes, task, 0, gradient(pieces[task])); });
  state.finish(sums.merge(), samples * p.rows, grad_norm);
  for_each_task(pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    std::vector<T> b(2 * p.C);
    state.weighted(multiplicity_of(multiplicity, piece.sample), 0, p.C, b.data(), &b[p.C]);
    NormGradient<T> pass = gradient(piece);
    pass.b = b.data(), pass.c = &b[p.C];
    pass.out = grad_x + (piece.sample * p.rows + piece.first) * p.C;
    gemm.passes.backward(pass);
  });
}

#define MSG3D_INSTANTIATE(T)                                                                                     \
  template void forward(const Problem&, const T*, const T*, const T*, const Gemm<T>&, const Pool&, double*, T*); \
  template void backward(const Problem&, const T*, const T*, const T*, const double*, const T*, const T*,        \
                         const Gemm<T>&, const Pool&, T*, T*);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)
#undef MSG3D_INSTANTIATE

}  // namespace msg3d::batch_norm
