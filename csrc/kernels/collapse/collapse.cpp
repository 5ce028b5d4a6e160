#include "collapse.h"

#include <cstring>

#include "../gemm/panels.h"

namespace msg3d::collapse {
namespace {

constexpr int64_t kPieceBytes = 256 * 1024;  // of relu(bn(x)): half of a small second-level cache
constexpr int64_t kMostSplits = 16;

Chunks pieces_of(const Problem& p, int64_t element_size) {
  return {p.N, p.T, std::clamp<int64_t>(kPieceBytes / (p.nodes() * p.E * element_size), 1, p.T)};
}

// relu(bn(x)) of a piece -> (frames, tau*V, E).
template <typename T>
void normalize(const Call<T>& call, const batch_norm::Affine<T>& norm, const Chunks::Piece& piece, T* out) {
  const Problem& p = call.problem;
  Combine<T> pass{};
  pass.rows = piece.frames() * p.nodes(), pass.columns = p.E;
  pass.x = call.in.x + (piece.sample * p.T + piece.first) * p.nodes() * p.E;
  pass.scale = norm.scale.data(), pass.shift = norm.shift.data(), pass.relu = true;
  pass.out = out, pass.x_row = pass.out_row = p.E;
  call.gemm.passes.combine(pass);
}

template <typename T>
void sum_windows(const Call<T>& call, const T* packed, const Chunks::Piece& piece, const T* normalized, T* c) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width;
  PanelProduct<T> product{};
  product.rows = p.V, product.segments = p.window, product.depth = p.E;
  product.a = normalized, product.a_row = p.E, product.a_segment = p.V * p.E, product.a_depth = 1;
  product.b_segment = p.E * width, product.b_depth = width, product.c_row = p.O;
  for (int64_t first = 0; first < p.O; first += width) {
    product.columns = std::min(width, p.O - first);
    product.b = packed + first * p.window * p.E;
    product.c = c + (piece.sample * p.T + piece.first) * p.V * p.O + first;
    product_of_frames(call.gemm, product, piece.frames(), p.nodes() * p.E, p.V * p.O);
  }
}

// From grad_c (frames, V, O) of a piece: grad_x of relu(bn(x)), still without the ReLU, and the weight's gradient added
// to `partial` (tau, E, O padded to panels).
template <typename T>
void spread(const Call<T>& call, const T* by_output, const Chunks::Piece& piece, const T* normalized, const T* grad_c,
            T* grad_x, T* partial) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, padded = ceil_div(p.O, width) * width;
  for (int64_t w = 0; w < p.window; ++w) {
    PanelProduct<T> product{};
    product.rows = p.V, product.segments = 1, product.depth = p.O;
    product.a = grad_c, product.a_row = p.O, product.a_depth = 1, product.b_depth = width, product.c_row = p.E;
    for (int64_t first = 0; first < p.E; first += width) {
      product.columns = std::min(width, p.E - first);
      product.b = by_output + w * packed_size(p.O, p.E, width) + first * p.O;
      product.c = grad_x + ((piece.sample * p.T + piece.first) * p.window + w) * p.V * p.E + first;
      product_of_frames(call.gemm, product, piece.frames(), p.V * p.O, p.nodes() * p.E);
    }
    PanelProduct<T> outer{};
    outer.rows = p.E, outer.columns = width, outer.segments = piece.frames(), outer.depth = p.V;
    outer.a = normalized + w * p.V * p.E, outer.a_row = 1, outer.a_segment = p.nodes() * p.E, outer.a_depth = p.E;
    outer.b_segment = p.V * p.O, outer.b_depth = p.O, outer.c_row = padded;
    for (int64_t first = 0; first < p.O; first += width) {
      outer.b = grad_c + first;
      outer.c = partial + w * p.E * padded + first;
      accumulate(call.gemm, outer);
    }
  }
}

}  // namespace

template <typename T>
void forward(const Call<T>& call, const T* other, T* c, T* y, double* statistics_x, double* statistics_c) {
  const Problem& p = call.problem;
  const Chunks pieces = pieces_of(p, sizeof(T));
  const ColumnPasses<T>& passes = call.gemm.passes;
  batch_norm::Moments moments_x(pieces.count(), p.E), moments_c(pieces.count(), p.O);
  for_each_task(call.pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    const T* x = call.in.x + (piece.sample * p.T + piece.first) * p.nodes() * p.E;
    moments_x.add(passes, task, piece.frames() * p.nodes(), 0, p.E, x, p.E);
  });
  moments_x.merge(pieces, call.in.multiplicity, statistics_x);
  const batch_norm::Affine<T> norm_x(p.E, statistics_x, call.in.norm_x, p.eps);

  const Buffer<T> packed(packed_size(p.window * p.E, p.O, call.gemm.width));
  pack_panels(call.pool, p.window * p.E, p.O, call.gemm.width, packed.get(),
              [&](int64_t k, int64_t o) { return call.in.weight[(o * p.E + k % p.E) * p.window + k / p.E]; });
  const int64_t local_size = pieces.step * p.nodes() * p.E;
  const Buffer<T> locals(call.pool.workers * local_size);
  for_each_task(call.pool, pieces.count(), [&](int worker, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    normalize(call, norm_x, piece, locals + worker * local_size);
    sum_windows<T>(call, packed.get(), piece, locals + worker * local_size, c);
    const T* rows = c + (piece.sample * p.T + piece.first) * p.V * p.O;
    moments_c.add(passes, task, piece.frames() * p.V, 0, p.O, rows, p.O);
  });
  moments_c.merge(pieces, call.in.multiplicity, statistics_c);
  const batch_norm::Affine<T> norm_c(p.O, statistics_c, call.in.norm_c, p.eps);

  for_each_task(call.pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    const int64_t offset = (piece.sample * p.T + piece.first) * p.V * p.O;
    Combine<T> pass{};
    pass.rows = piece.frames() * p.V, pass.columns = p.O;
    pass.x = c + offset, pass.scale = norm_c.scale.data(), pass.shift = norm_c.shift.data();
    if (other) pass.other = other + offset;
    pass.out = y + offset, pass.x_row = pass.other_row = pass.out_row = p.O;
    passes.combine(pass);
  });
}

template <typename T>
void backward(const Call<T>& call, const T* c, const double* statistics_x, const double* statistics_c, const T* gy,
              const Gradients<T>& gradients) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, padded = ceil_div(p.O, width) * width;
  const Chunks pieces = pieces_of(p, sizeof(T));
  const ColumnPasses<T>& passes = call.gemm.passes;
  double samples = 0;
  for (int64_t n = 0; n < p.N; ++n) samples += batch_norm::multiplicity_of(call.in.multiplicity, n);

  batch_norm::Backward<T> norm_c(p.O, statistics_c, call.in.norm_c, p.eps);
  batch_norm::GradientSums sums_c(pieces.count(), p.O), sums_x(pieces.count(), p.E);
  const auto gradient_of_c = [&](const Chunks::Piece& piece) {
    const int64_t offset = (piece.sample * p.T + piece.first) * p.V * p.O;
    NormGradient<T> pass{};
    pass.rows = piece.frames() * p.V, pass.columns = p.O;
    pass.g = gy + offset, pass.x = c + offset, pass.g_row = pass.x_row = p.O;
    pass.mean = norm_c.mean.data(), pass.a = norm_c.a.data();
    return pass;
  };
  for_each_task(call.pool, pieces.count(),
                [&](int, int64_t task) { sums_c.add(passes, task, 0, gradient_of_c(pieces[task])); });
  norm_c.finish(sums_c.merge(), samples * p.T * p.V, gradients.norm_c);

  const batch_norm::Affine<T> affine_x(p.E, statistics_x, call.in.norm_x, p.eps);
  batch_norm::Backward<T> norm_x(p.E, statistics_x, call.in.norm_x, p.eps);
  const int64_t by_output_size = packed_size(p.O, p.E, width), weight_size = p.window * p.E * padded;
  const Buffer<T> by_output(p.window * by_output_size);
  for (int64_t w = 0; w < p.window; ++w) {
    pack_panels(call.pool, p.O, p.E, width, by_output + w * by_output_size,
                [&](int64_t o, int64_t e) { return call.in.weight[(o * p.E + e) * p.window + w]; });
  }
  // Enough rows in each split that adding up its partial sums, as large as the weight, costs little.
  const int64_t splits = std::clamp<int64_t>(p.N * p.T * p.V / (2 * p.O), 1, std::min(kMostSplits, pieces.count()));
  const Buffer<T> partials(splits * weight_size);
  const int64_t normalized_size = pieces.step * p.nodes() * p.E;
  const int64_t local_size = normalized_size + pieces.step * p.V * p.O + width;
  const Buffer<T> locals(call.pool.workers * local_size);
  for_each_task(call.pool, splits, [&](int worker, int64_t split) {
    T *const normalized = locals + worker * local_size, *const grad_c = normalized + normalized_size;
    T* const partial = partials + split * weight_size;
    std::memset(partial, 0, weight_size * sizeof(T));
    std::vector<T> b(2 * p.O);
    for (int64_t i = pieces.count() * split / splits; i < pieces.count() * (split + 1) / splits; ++i) {
      const Chunks::Piece piece = pieces[i];
      norm_c.weighted(batch_norm::multiplicity_of(call.in.multiplicity, piece.sample), 0, p.O, b.data(), &b[p.O]);
      NormGradient<T> pass = gradient_of_c(piece);
      pass.b = b.data(), pass.c = &b[p.O], pass.out = grad_c, pass.out_row = p.O;
      passes.backward(pass);
      normalize(call, affine_x, piece, normalized);
      spread<T>(call, by_output.get(), piece, normalized, grad_c, gradients.x, partial);

      const int64_t offset = (piece.sample * p.T + piece.first) * p.nodes() * p.E;
      NormGradient<T> sums{};
      sums.rows = piece.frames() * p.nodes(), sums.columns = p.E;
      T* g = gradients.x + offset;
      sums.mask = normalized, sums.mask_row = sums.out_row = p.E, sums.out = g;
      sums.g = g, sums.x = call.in.x + offset, sums.g_row = sums.x_row = p.E, sums.mean = norm_x.mean.data();
      sums_x.add(passes, i, 0, sums);
    }
  });
  norm_x.finish(sums_x.merge(), samples * p.T * p.nodes(), gradients.norm_x);

  for_each_task(call.pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    const int64_t offset = (piece.sample * p.T + piece.first) * p.nodes() * p.E;
    std::vector<T> b(2 * p.E);
    norm_x.weighted(batch_norm::multiplicity_of(call.in.multiplicity, piece.sample), 0, p.E, b.data(), &b[p.E]);
    NormGradient<T> pass{};
    pass.rows = piece.frames() * p.nodes(), pass.columns = p.E;
    pass.g = gradients.x + offset, pass.x = call.in.x + offset, pass.mean = norm_x.mean.data();
    pass.a = norm_x.a.data(), pass.b = b.data(), pass.c = &b[p.E], pass.out = gradients.x + offset;
    pass.g_row = pass.x_row = pass.out_row = p.E;
    passes.backward(pass);
  });
  for_each_task(call.pool, p.window * p.E, [&](int, int64_t row) {
    T* sum = partials + row * padded;
    for (int64_t split = 1; split < splits; ++split) {
      for (int64_t o = 0; o < p.O; ++o) sum[o] += sum[split * weight_size + o];
    }
  });
  for_each_task(call.pool, ceil_div(p.O, width), [&](int, int64_t panel) {
    const int64_t columns = std::min(width, p.O - panel * width);
    for (int64_t e = 0; e < p.E; ++e) {
      for (int64_t w = 0; w < p.window; ++w) {
        const T* sum = partials + (w * p.E + e) * padded + panel * width;
        for (int64_t j = 0; j < columns; ++j) gradients.weight[((panel * width + j) * p.E + e) * p.window + w] = sum[j];
      }
    }
  });
}

#define MSG3D_INSTANTIATE(T)                                                 \
  template void forward(const Call<T>&, const T*, T*, T*, double*, double*); \
  template void backward(const Call<T>&, const T*, const double*, const double*, const T*, const Gradients<T>&);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)
#undef MSG3D_INSTANTIATE

}  // namespace msg3d::collapse
