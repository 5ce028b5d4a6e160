// Back through the entry products, piece by piece:
//
//     grad_x = grad_p W_in + grad_z_last W_last + grad_r W_residual  (or + g, the residual being x itself)
//     grad_W = grad^T x for each of them
//
// where each grad is the gradient before its normalisation, made in a buffer that a cache holds.
#include "walk.h"

namespace msg3d::mstcn {
namespace {

// One of the products: `outputs` rows of a weight (outputs, C), whose gradients for a piece lie in `grad`.
template <typename T>
struct Product {
  int64_t outputs, stride;
  const T* grad;      // (frames of this product, V, outputs)
  const T* by_input;  // (panels of C, outputs, width)
  T* partial;         // (outputs, C)
};

template <typename T>
Buffer<T> pack_by_input(const Call<T>& call, const T* weight, int64_t outputs) {
  const int64_t C = call.problem.C, width = call.gemm.width;
  Buffer<T> packed(weight ? packed_size(outputs, C, width) : 0);
  if (weight)
    pack_panels(call.pool, outputs, C, width, packed.get(), [&](int64_t o, int64_t c) { return weight[o * C + c]; });
  return packed;
}

// grad_x of a piece = or += grad W, and partial += grad^T x. `edge` holds x's last, narrower panel.
template <typename T>
void apply(const Call<T>& call, const Chunks::Piece& piece, const Product<T>& from, const T* edge, bool add,
           T* grad_x) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, C = p.C, s = from.stride, frames = ceil_div(piece.frames(), s);
  for (int64_t first = 0; first < C; first += width) {
    PanelProduct<T> product{};
    product.rows = p.V, product.columns = std::min(width, C - first), product.segments = 1;
    product.depth = from.outputs;
    product.a = from.grad, product.a_row = from.outputs, product.a_depth = 1;
    product.b = from.by_input + first * from.outputs, product.b_depth = width;
    product.c = grad_x + row_of(p, piece, p.T) * C + first, product.c_row = product.start_row = C;
    if (add) product.start = product.c;
    product_of_frames(call.gemm, product, frames, p.V * from.outputs, s * p.V * C);

    const bool whole = first + width <= C;
    PanelProduct<T> outer{};
    outer.rows = from.outputs, outer.columns = std::min(width, C - first);
    outer.segments = s == 1 ? 1 : frames, outer.depth = s == 1 ? frames * p.V : p.V;
    outer.a = from.grad, outer.a_row = 1, outer.a_depth = from.outputs, outer.a_segment = p.V * from.outputs;
    outer.b = whole ? call.in.x + row_of(p, piece, p.T) * C + first : edge;
    outer.b_depth = whole ? C : width, outer.b_segment = s * p.V * outer.b_depth;
    outer.c = from.partial + first, outer.c_row = C;
    accumulate(call.gemm, outer);
  }
}

// g of a piece -> grad_x, where the residual is x itself.
template <typename T>
void start_with_residual(const Walk<T>& walk, const Chunks::Piece& piece, T* grad_x) {
  const Problem& p = walk.call.problem;
  const int64_t offset = row_of(p, piece, p.T) * p.C, rows = piece.frames() * p.V;
  if (!p.act) {
    std::memcpy(grad_x + offset, walk.gy + offset, rows * p.C * sizeof(T));
    return;
  }
  NormGradient<T> pass{};
  pass.rows = rows, pass.columns = p.C, pass.g_row = pass.mask_row = pass.out_row = p.C;
  pass.g = walk.gy + offset, pass.mask = walk.y + offset, pass.out = grad_x + offset;
  walk.call.gemm.passes.select(pass);
}

// The gradient of p's rows of a piece, before its normalisation -> E columns of out.
template <typename T>
void grad_of_p(const Walk<T>& walk, const T* g_p, const Chunks::Piece& piece, T* out, int64_t out_row) {
  const Problem& p = walk.call.problem;
  const int64_t E = p.entry(), offset = row_of(p, piece, p.T) * E;
  std::vector<T> b(2 * E);
  walk.norm_p.weighted(batch_norm::multiplicity_of(walk.call.in.multiplicity, piece.sample), 0, E, b.data(), &b[E]);
  NormGradient<T> pass{};
  pass.rows = piece.frames() * p.V, pass.columns = E;
  pass.g = g_p + offset, pass.x = walk.saved.p + offset, pass.g_row = pass.x_row = E;
  pass.mean = walk.norm_p.mean.data(), pass.a = walk.norm_p.a.data(), pass.b = b.data(), pass.c = &b[E];
  pass.out = out, pass.out_row = out_row;
  walk.call.gemm.passes.backward(pass);
}

}  // namespace

template <typename T>
void leave(const Walk<T>& walk, const T* g_p, const Gradients<T>& gradients) {
  const Call<T>& call = walk.call;
  const Problem& p = call.problem;
  const Chunks& chunks = walk.chunks;
  const int64_t width = call.gemm.width, C = p.C, E = p.entry();
  const bool together = p.stride == 1;  // the last branch is then one product with the others
  const int64_t entries = together ? p.O : E;
  const int64_t rows = chunks.step * p.V, out_rows = walk.out_chunks.step * p.V;
  const int64_t residuals = walk.saved.r ? p.O : 0, outputs = p.O + residuals;
  const Buffer<T> by_input = pack_by_input(call, call.in.weight_in, entries);
  const Buffer<T> last_by_input = pack_by_input(call, together ? nullptr : call.in.weight_in + E * C, p.last());
  const Buffer<T> residual_by_input = pack_by_input(call, call.in.weight_residual, p.O);
  const Buffer<T> partials(walk.splits * outputs * C);
  const int64_t local_size = rows * entries + out_rows * (p.last() + residuals) + rows * width;
  const Buffer<T> locals(call.pool.workers * local_size);

  for_each_task(call.pool, walk.splits, [&](int worker, int64_t split) {
    T* const grad_p = locals + worker * local_size;
    T *const grad_last = grad_p + rows * entries, *const grad_r = grad_last + out_rows * p.last();
    T* const edge = grad_r + out_rows * residuals;
    T* const partial = partials + split * outputs * C;
    std::memset(partial, 0, outputs * C * sizeof(T));
    for (int64_t i = chunks.count() * split / walk.splits; i < chunks.count() * (split + 1) / walk.splits; ++i) {
      const Chunks::Piece piece = chunks[i], out = walk.out_chunks[i];
      if (C % width) {
        const T* x = call.in.x + row_of(p, piece, p.T) * C + C / width * width;
        for (int64_t r = 0; r < piece.frames() * p.V; ++r) {
          for (int64_t c = 0; c < width; ++c) edge[r * width + c] = c < C % width ? x[r * C + c] : T(0);
        }
      }
      if (p.identity) start_with_residual(walk, piece, gradients.x);
      grad_of_p(walk, g_p, piece, grad_p, entries);
      walk.grad_rows(walk.saved.z, walk.norm_z, out.sample, out.first, out.last, E, p.last(),
                     together ? grad_p + E : grad_last, together ? p.O : p.last());
      apply<T>(call, piece, {entries, 1, grad_p, by_input.get(), partial}, edge, p.identity, gradients.x);
      if (!together) {
        const Product<T> last{p.last(), p.stride, grad_last, last_by_input.get(), partial + E * C};
        apply(call, piece, last, edge, true, gradients.x);
      }
      if (residuals) {
        walk.grad_rows(walk.saved.r, walk.norm_r, out.sample, out.first, out.last, 0, p.O, grad_r, p.O);
        const Product<T> residual{p.O, p.stride, grad_r, residual_by_input.get(), partial + p.O * C};
        apply<T>(call, piece, residual, edge, true, gradients.x);
      }
    }
  });

  for_each_task(call.pool, outputs, [&](int, int64_t o) {
    T* sum = partials + o * C;
    for (int64_t split = 1; split < walk.splits; ++split) {
      for (int64_t c = 0; c < C; ++c) sum[c] += sum[split * outputs * C + c];
    }
    T* to = o < p.O ? gradients.weight_in + o * C : gradients.weight_residual + (o - p.O) * C;
    std::memcpy(to, sum, C * sizeof(T));
  });
}

template void leave(const Walk<float>&, const float*, const Gradients<float>&);
template void leave(const Walk<double>&, const double*, const Gradients<double>&);

}  // namespace msg3d::mstcn
