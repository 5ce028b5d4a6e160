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
  const T* by_input;  // panels of C: (panels, outputs, width)
  T* partial;         // (outputs, C padded to panels)
};

template <typename T>
Buffer<T> pack_by_input(const Call<T>& call, const T* weight, int64_t outputs) {
  const int64_t C = call.problem.C, width = call.gemm.width;
  Buffer<T> packed(weight ? packed_size(outputs, C, width) : 0);
  if (weight)
    pack_panels(call.pool, outputs, C, width, packed.get(), [&](int64_t o, int64_t c) { return weight[o * C + c]; });
  return packed;
}

// tile (panels of C, frames, V, width) = or += grad W, and partial += grad^T x. `edge` holds x's last, narrower panel.
template <typename T>
void apply(const Call<T>& call, const Chunks::Piece& piece, const Product<T>& from, const T* edge, T* tile, bool add) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, C = p.C, s = from.stride, frames = ceil_div(piece.frames(), s);
  const int64_t panel_size = piece.frames() * p.V * width, padded = ceil_div(C, width) * width;
  for (int64_t first = 0; first < C; first += width) {
    PanelProduct<T> product{};
    product.rows = p.V, product.columns = width, product.segments = 1, product.depth = from.outputs;
    product.a = from.grad, product.a_row = from.outputs, product.a_depth = 1;
    product.b = from.by_input + first * from.outputs, product.b_depth = width;
    product.c = tile + first / width * panel_size, product.c_row = product.start_row = width;
    if (add) product.start = product.c;
    product_of_frames(call.gemm, product, frames, p.V * from.outputs, s * p.V * width);

    const bool whole = first + width <= C;
    PanelProduct<T> outer{};
    outer.rows = from.outputs, outer.columns = width;
    outer.segments = s == 1 ? 1 : frames, outer.depth = s == 1 ? frames * p.V : p.V;
    outer.a = from.grad, outer.a_row = 1, outer.a_depth = from.outputs, outer.a_segment = p.V * from.outputs;
    outer.b = whole ? call.in.x + (piece.sample * p.T + piece.first) * p.V * C + first : edge;
    outer.b_depth = whole ? C : width, outer.b_segment = s * p.V * outer.b_depth;
    outer.c = from.partial + first, outer.c_row = outer.start_row = padded;
    outer.start = outer.c;
    call.gemm.product(outer);
  }
}

// grad_x of a piece from its tile, plus g itself where the residual is x.
template <typename T>
void store(const Walk<T>& walk, const Chunks::Piece& piece, const T* tile, T* grad_x) {
  const Problem& p = walk.call.problem;
  const int64_t width = walk.call.gemm.width, rows = piece.frames() * p.V;
  const int64_t offset = (piece.sample * p.T + piece.first) * p.V * p.C;
  for (int64_t first = 0; first < p.C; first += width, tile += rows * width) {
    const int64_t columns = std::min(width, p.C - first);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = offset + r * p.C + first;
      const T* value = tile + r * width;
      if (!p.identity) {
        std::memcpy(grad_x + at, value, columns * sizeof(T));
      } else if (p.act) {
        for (int64_t c = 0; c < columns; ++c) {
          grad_x[at + c] = value[c] + (walk.y[at + c] > T(0) ? walk.gy[at + c] : T(0));
        }
      } else {
        for (int64_t c = 0; c < columns; ++c) grad_x[at + c] = value[c] + walk.gy[at + c];
      }
    }
  }
}

// The gradient of p's rows of a piece, before its normalisation -> out (rows, E).
template <typename T>
void grad_of_p(const Walk<T>& walk, const T* g_p, const Chunks::Piece& piece, T* out) {
  const Problem& p = walk.call.problem;
  const int64_t E = p.entry(), offset = row_of(p, piece, p.T) * E;
  std::vector<T> b(2 * E);
  walk.norm_p.weighted(batch_norm::multiplicity_of(walk.call.in.multiplicity, piece.sample), 0, E, b.data(), &b[E]);
  NormGradient<T> pass{};
  pass.rows = piece.frames() * p.V, pass.columns = E;
  pass.g = g_p + offset, pass.x = walk.saved.p + offset, pass.g_row = pass.x_row = E;
  pass.mean = walk.norm_p.mean.data(), pass.a = walk.norm_p.a.data(), pass.b = b.data(), pass.c = &b[E];
  pass.out = out, pass.out_row = E;
  walk.call.gemm.passes.backward(pass);
}

}  // namespace

template <typename T>
void leave(const Walk<T>& walk, const T* g_p, const Gradients<T>& gradients) {
  const Call<T>& call = walk.call;
  const Problem& p = call.problem;
  const Chunks& chunks = walk.chunks;
  const int64_t width = call.gemm.width, C = p.C, E = p.entry(), padded = ceil_div(C, width) * width;
  const int64_t rows = chunks.step * p.V, out_rows = walk.out_chunks.step * p.V;
  const int64_t residuals = walk.saved.r ? p.O : 0, outputs = p.O + residuals;
  const Buffer<T> by_input = pack_by_input(call, call.in.weight_in, E);
  const Buffer<T> last_by_input = pack_by_input(call, call.in.weight_in + E * C, p.last());
  const Buffer<T> residual_by_input = pack_by_input(call, call.in.weight_residual, p.O);
  const Buffer<T> partials(walk.splits * outputs * padded);
  const int64_t local_size = rows * E + out_rows * (p.last() + residuals) + rows * (padded + width);
  const Buffer<T> locals(call.pool.workers * local_size);

  for_each_task(call.pool, walk.splits, [&](int worker, int64_t split) {
    T* const grad_p = locals + worker * local_size;
    T *const grad_last = grad_p + rows * E, *const grad_r = grad_last + out_rows * p.last();
    T *const tile = grad_r + out_rows * residuals, *const edge = tile + rows * padded;
    T* const partial = partials + split * outputs * padded;
    std::memset(partial, 0, outputs * padded * sizeof(T));
    for (int64_t i = chunks.count() * split / walk.splits; i < chunks.count() * (split + 1) / walk.splits; ++i) {
      const Chunks::Piece piece = chunks[i], out = walk.out_chunks[i];
      if (C % width) {
        const T* x = call.in.x + row_of(p, piece, p.T) * C + C / width * width;
        for (int64_t r = 0; r < piece.frames() * p.V; ++r) {
          for (int64_t c = 0; c < width; ++c) edge[r * width + c] = c < C % width ? x[r * C + c] : T(0);
        }
      }
      grad_of_p(walk, g_p, piece, grad_p);
      walk.grad_rows(walk.saved.z, walk.norm_z, out.sample, out.first, out.last, E, p.last(), grad_last);
      apply<T>(call, piece, {E, 1, grad_p, by_input.get(), partial}, edge, tile, false);
      apply<T>(call, piece, {p.last(), p.stride, grad_last, last_by_input.get(), partial + E * padded}, edge, tile,
               true);
      if (residuals) {
        walk.grad_rows(walk.saved.r, walk.norm_r, out.sample, out.first, out.last, 0, p.O, grad_r);
        apply<T>(call, piece, {p.O, p.stride, grad_r, residual_by_input.get(), partial + p.O * padded}, edge, tile,
                 true);
      }
      store(walk, piece, tile, gradients.x);
    }
  });

  for_each_task(call.pool, outputs, [&](int, int64_t o) {
    T* sum = partials + o * padded;
    for (int64_t split = 1; split < walk.splits; ++split) {
      for (int64_t c = 0; c < C; ++c) sum[c] += sum[split * outputs * padded + c];
    }
    T* to = o < p.O ? gradients.weight_in + o * C : gradients.weight_residual + (o - p.O) * C;
    std::memcpy(to, sum, C * sizeof(T));
  });
}

template void leave(const Walk<float>&, const float*, const Gradients<float>&);
template void leave(const Walk<double>&, const double*, const Gradients<double>&);

}  // namespace msg3d::mstcn
