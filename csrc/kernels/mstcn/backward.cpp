// Three walks back: the sums over gy that the last normalisation needs; branch by branch the gradient g_p of the
// normalised p, with the sums that the first normalisation needs; the entry products. Weight gradients are partial sums
// of a split, a fixed run of pieces, added in the order of the splits.
#include "walk.h"

namespace msg3d::mstcn {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return (a - (a % b + b) % b) / b; }

// What one worker needs to walk back through a branch.
template <typename T>
struct BranchBuffers {
  Buffer<T> h, grad_z;
  BranchBuffers(const Problem& p, int64_t step, int width)
      : h(branch_frames(p, ceil_div(step, p.stride) + 2) * p.V * p.branch() + width),
        grad_z((step + branch_frames(p, 2) + 2) * p.V * p.branch() + width) {}
};

// g of relu(bn(p)) for one dilated branch and one piece of its input frames, into g_p; weight gradients into `partial`,
// (taps, b in, columns padded to panels).
template <typename T>
void unconvolve(const Walk<T>& walk, const batch_norm::Affine<T>& affine_p, const T* weight, int64_t branch,
                const Chunks::Piece& piece, const BranchBuffers<T>& local, T* g_p, T* partial) {
  const Call<T>& call = walk.call;
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, b = p.branch(), E = p.entry(), s = p.stride, d = p.dilations[branch];
  const int64_t halo = p.taps / 2 * d, padded = ceil_div(b, width) * width, frame = p.V * b;
  const int64_t first_out = floor_div(piece.first - halo, s), last_out = floor_div(piece.last - 1 + halo, s) + 1;
  T *h = local.h.get(), *grad_z = local.grad_z.get();
  normalized_branch(call, walk.saved.p, affine_p, branch, piece.sample, piece.first - halo, piece.last + halo, h);
  walk.grad_rows(walk.saved.z, walk.norm_z, piece.sample, first_out, last_out, branch * b, b, grad_z, b);

  // Frame f was tap j of output (f - (j - taps/2) * d) / s where that is whole: every `every`-th tap from the first.
  int64_t common = s, remainder = d % s;
  while (remainder) std::swap(common, remainder), remainder %= common;
  const int64_t every = s / common;
  PanelProduct<T> product{};
  product.rows = p.V, product.depth = b;
  product.a_row = b, product.a_depth = 1, product.a_segment = -every * d / s * frame;
  product.b_segment = every * b * width, product.b_depth = width, product.c_row = E;
  const int64_t together = s == 1 ? piece.frames() : 1;
  for (int64_t f = piece.first; f < piece.last; f += together) {
    int64_t tap = 0;
    while (tap < every && (f + halo - tap * d) % s != 0) ++tap;
    product.segments = tap < std::min(every, p.taps) ? ceil_div(p.taps - tap, every) : 0;
    product.rows = together * p.V;
    if (product.segments) product.a = grad_z + ((f + halo - tap * d) / s - first_out) * frame;
    for (int64_t column = 0; column < b; column += width) {
      product.columns = std::min(width, b - column);
      product.b = weight + column * p.taps * b + tap * b * width;
      product.c = g_p + ((piece.sample * p.T + f) * p.V) * E + branch * b + column;
      call.gemm.product(product);
    }
  }

  PanelProduct<T> outer{};
  const int64_t begin = piece.first / s, frames = ceil_div(piece.frames(), s);
  outer.rows = b, outer.columns = width;
  outer.segments = s == 1 ? 1 : frames, outer.depth = s == 1 ? frames * p.V : p.V;
  outer.a_row = 1, outer.a_depth = b, outer.a_segment = s * frame;
  outer.b_depth = b, outer.b_segment = frame, outer.c_row = padded;
  for (int64_t tap = 0; tap < p.taps; ++tap) {
    for (int64_t column = 0; column < b; column += width) {
      outer.columns = std::min(width, b - column);
      outer.a = h + tap * d * frame, outer.b = grad_z + (begin - first_out) * frame + column;
      outer.c = partial + tap * b * padded + column;
      accumulate(call.gemm, outer);
    }
  }
}

// The same for the pooling branch: each output's gradient goes to the first of its frames that holds the maximum.
template <typename T>
void unpool(const Walk<T>& walk, const batch_norm::Affine<T>& affine_p, const Chunks::Piece& piece,
            const BranchBuffers<T>& local, T* g_p) {
  const Call<T>& call = walk.call;
  const Problem& p = call.problem;
  const int64_t b = p.branch(), E = p.entry(), s = p.stride, branch = p.convolutions(), frame = p.V * b;
  const int64_t first_out = floor_div(piece.first - 1 + s - 1, s), last_out = floor_div(piece.last, s) + 1;
  const int64_t first_h = std::min(first_out * s, piece.first) - 1;
  T *h = local.h.get(), *grad_z = local.grad_z.get();
  normalized_branch(call, walk.saved.p, affine_p, branch, piece.sample, first_h, piece.last + 2, h);
  walk.grad_rows(walk.saved.z, walk.norm_z, piece.sample, first_out, last_out, branch * b, b, grad_z, b);
  MaximumGradient<T> pass{};
  pass.rows = p.V, pass.columns = pass.row = b, pass.out_row = E;
  for (int64_t f = piece.first; f < piece.last; ++f) {
    pass.out = g_p + (piece.sample * p.T + f) * p.V * E + branch * b;
    for (int64_t v = 0; v < p.V; ++v) std::memset(pass.out + v * E, 0, b * sizeof(T));
    for (int64_t slot = 0; slot < 3; ++slot) {  // this frame is `slot` of output t
      const int64_t start = f + 1 - slot, t = floor_div(start, s);
      if (t * s != start || t < first_out || t >= last_out) continue;
      const T* window = h + (start - 1 - first_h) * frame;
      const int64_t one = (slot + 1) % 3, two = (slot + 2) % 3;
      pass.here = window + slot * frame, pass.one = window + one * frame, pass.two = window + two * frame;
      pass.one_first = one < slot, pass.two_first = two < slot;
      pass.g = grad_z + (t - first_out) * frame;
      call.gemm.passes.maximum(pass);
    }
  }
}

// Back through one branch of one piece: product or pooling, then the ReLU and the sums of the first normalisation.
template <typename T>
void branch_backward(const Walk<T>& walk, const batch_norm::Affine<T>& affine_p, const T* weight, int64_t branch,
                     const Chunks::Piece& piece, const BranchBuffers<T>& local, T* g_p, T* partial,
                     batch_norm::GradientSums& sums) {
  const Problem& p = walk.call.problem;
  const int64_t b = p.branch(), E = p.entry(), offset = row_of(p, piece, p.T) * E + branch * b;
  int64_t first_h;
  if (branch < p.convolutions()) {
    unconvolve(walk, affine_p, weight, branch, piece, local, g_p, partial);
    first_h = piece.first - p.taps / 2 * p.dilations[branch];
  } else {
    unpool(walk, affine_p, piece, local, g_p);
    first_h = std::min(floor_div(piece.first - 1 + p.stride - 1, p.stride) * p.stride, piece.first) - 1;
  }
  const T* h = local.h + (piece.first - first_h) * p.V * b;
  NormGradient<T> pass{};
  pass.rows = piece.frames() * p.V, pass.columns = b;
  pass.mask = h, pass.mask_row = b;
  pass.g = g_p + offset, pass.out = g_p + offset, pass.x = walk.saved.p + offset,
  pass.g_row = pass.out_row = pass.x_row = E;
  pass.mean = &walk.norm_p.mean[branch * b];
  sums.add(walk.call.gemm.passes, piece.index, branch * b, pass);
}

}  // namespace

template <typename T>
void backward(const Call<T>& call, const Saved<T>& saved, const T* y, const T* gy, const Gradients<T>& gradients) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, b = p.branch(), E = p.entry(), s = p.stride, D = p.convolutions();
  const ColumnPasses<T>& passes = call.gemm.passes;
  Walk<T> walk(call, saved, y, gy);
  const Chunks &chunks = walk.chunks, &out_chunks = walk.out_chunks;
  double weight_in_frames = 0;
  for (int64_t n = 0; n < p.N; ++n) weight_in_frames += batch_norm::multiplicity_of(call.in.multiplicity, n) * p.V;

  batch_norm::GradientSums sums_z(out_chunks.count(), p.O), sums_r(saved.r ? out_chunks.count() : 0, p.O);
  for_each_task(call.pool, out_chunks.count(), [&](int, int64_t task) {
    const Chunks::Piece out = out_chunks[task];
    sums_z.add(passes, task, 0, walk.gradient(out.sample, out.first, out.frames(), 0, p.O, saved.z, walk.norm_z));
    if (!saved.r) return;
    sums_r.add(passes, task, 0, walk.gradient(out.sample, out.first, out.frames(), 0, p.O, saved.r, walk.norm_r));
  });
  walk.norm_z.finish(sums_z.merge(), weight_in_frames * p.frames_out(), gradients.norm_z);
  if (saved.r) walk.norm_r.finish(sums_r.merge(), weight_in_frames * p.frames_out(), gradients.norm_r);

  const batch_norm::Affine<T> affine_p(E, saved.statistics_p, call.in.norm_p, p.eps);
  const Buffer<T> weight_time = pack_time(call, true), g_p(p.N * p.T * p.V * E);
  const int64_t padded = ceil_div(b, width) * width, time_size = p.taps * b * padded;
  const Buffer<T> partial_time(walk.splits * D * time_size);
  batch_norm::GradientSums sums_p(chunks.count(), E);
  std::vector<BranchBuffers<T>> locals;
  for (int worker = 0; worker < call.pool.workers; ++worker) locals.emplace_back(p, chunks.step, width);
  for_each_task(call.pool, walk.splits * (D + 1), [&](int worker, int64_t task) {
    const int64_t branch = task % (D + 1), split = task / (D + 1);
    T* partial = partial_time + (split * D + branch) * time_size;
    if (branch < D) std::memset(partial, 0, time_size * sizeof(T));
    const T* weight = weight_time + branch * packed_size(p.taps * b, b, width);
    for (int64_t i = chunks.count() * split / walk.splits; i < chunks.count() * (split + 1) / walk.splits; ++i) {
      branch_backward(walk, affine_p, weight, branch, chunks[i], locals[worker], g_p.get(), partial, sums_p);
    }
  });
  for (int64_t split = 1; split < walk.splits; ++split) {
    for (int64_t i = 0; i < D * time_size; ++i) partial_time.get()[i] += partial_time.get()[split * D * time_size + i];
  }
  for (int64_t branch = 0; branch < D; ++branch) {
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      for (int64_t i = 0; i < b; ++i) {
        const T* sum = partial_time + branch * time_size + (tap * b + i) * padded;
        for (int64_t o = 0; o < b; ++o) gradients.weight_time[((branch * b + o) * b + i) * p.taps + tap] = sum[o];
      }
    }
  }
  walk.norm_p.finish(sums_p.merge(), weight_in_frames * p.T, gradients.norm_p);
  leave(walk, static_cast<const T*>(g_p.get()), gradients);
}

template void backward(const Call<float>&, const Saved<float>&, const float*, const float*, const Gradients<float>&);
template void backward(const Call<double>&, const Saved<double>&, const double*, const double*,
                       const Gradients<double>&);

}  // namespace msg3d::mstcn
