// Three walks over memory: the entry products, the temporal branches, the sum. Each gathers the statistics of what it
// writes while that is still in a cache; the next normalises what it reads.
#include "pieces.h"

namespace msg3d::mstcn {
namespace {

// p, the last branch's columns of z, and r, of one piece of frames.
template <typename T>
void enter(const Call<T>& call, const Entry<T>& entry, const Saved<T>& saved, const Chunks::Piece& piece) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, E = p.entry(), s = p.stride;
  const int64_t first_out = piece.sample * p.frames_out() + piece.first / s, frames_out = ceil_div(piece.frames(), s);
  PanelProduct<T> product{};
  product.rows = p.V, product.segments = 1, product.depth = p.C;
  product.a_row = p.C, product.a_depth = 1, product.b_depth = width;
  const T* x = call.in.x + (piece.sample * p.T + piece.first) * p.V * p.C;
  const auto run = [&](const T* panels, int64_t columns, T* c, int64_t c_row, int64_t stride, int64_t frames) {
    product.c_row = c_row;
    for (int64_t first = 0; first < columns; first += width) {
      product.columns = std::min(width, columns - first);
      product.a = x, product.b = panels + first * p.C, product.c = c + first;
      product_of_frames(call.gemm, product, frames, stride * p.V * p.C, p.V * c_row);
    }
  };
  run(entry.p + 0, E, saved.p + (piece.sample * p.T + piece.first) * p.V * E, E, 1, piece.frames());
  run(entry.last + 0, p.last(), saved.z + first_out * p.V * p.O + E, p.O, s, frames_out);
  if (saved.r) run(entry.residual + 0, p.O, saved.r + first_out * p.V * p.O, p.O, s, frames_out);
}

// One temporal branch's columns of z, of one piece of output frames. `h` has room for the frames that it reads.
template <typename T>
void convolve(const Call<T>& call, const T* weight, int64_t branch, const batch_norm::Affine<T>& norm_p,
              const Saved<T>& saved, const Chunks::Piece& piece, T* h) {
  const Problem& p = call.problem;
  const int64_t width = call.gemm.width, b = p.branch(), d = p.dilations[branch], s = p.stride;
  const int64_t first = piece.first * s - p.taps / 2 * d, last = (piece.last - 1) * s + p.taps / 2 * d + 1;
  normalized_branch(call, saved.p, norm_p, branch, piece.sample, first, last, h);
  PanelProduct<T> product{};
  product.rows = p.V, product.segments = p.taps, product.depth = b;
  product.a = h, product.a_row = b, product.a_segment = d * p.V * b, product.a_depth = 1;
  product.b_segment = b * width, product.b_depth = width;
  product.c_row = p.O;
  T* z = saved.z + (piece.sample * p.frames_out() + piece.first) * p.V * p.O + branch * b;
  for (int64_t column = 0; column < b; column += width) {
    product.columns = std::min(width, b - column);
    product.b = weight + column * p.taps * b, product.c = z + column;
    product_of_frames(call.gemm, product, piece.frames(), s * p.V * b, p.V * p.O);
  }
}

// The maximum of three frames; h is nowhere negative, so that the zeros outside the clip never win.
template <typename T>
void pool(const Call<T>& call, const batch_norm::Affine<T>& norm_p, const Saved<T>& saved, const Chunks::Piece& piece,
          T* h) {
  const Problem& p = call.problem;
  const int64_t b = p.branch(), branch = p.convolutions(), frame = p.V * b;
  normalized_branch(call, saved.p, norm_p, branch, piece.sample, piece.first * p.stride - 1,
                    (piece.last - 1) * p.stride + 2, h);
  T* z = saved.z + (piece.sample * p.frames_out() + piece.first) * p.V * p.O + branch * b;
  for (int64_t t = 0; t < piece.frames(); ++t) {
    for (int64_t v = 0; v < p.V; ++v, z += p.O) {
      const T* row = h + t * p.stride * frame + v * b;
      for (int64_t c = 0; c < b; ++c) {
        const T later = row[frame + c] > row[2 * frame + c] ? row[frame + c] : row[2 * frame + c];
        z[c] = row[c] > later ? row[c] : later;
      }
    }
  }
}

template <typename T>
void finish(const Call<T>& call, const batch_norm::Affine<T>& norm_z, const batch_norm::Affine<T>* norm_r,
            const Saved<T>& saved, const Chunks::Piece& piece, T* y) {
  const Problem& p = call.problem;
  const int64_t offset = (piece.sample * p.frames_out() + piece.first) * p.V * p.O;
  Combine<T> pass{};
  pass.rows = piece.frames() * p.V, pass.columns = p.O;
  pass.x = saved.z + offset, pass.x_row = p.O, pass.scale = norm_z.scale.data(), pass.shift = norm_z.shift.data();
  if (norm_r) pass.other = saved.r + offset, pass.other_scale = norm_r->scale.data();
  if (p.identity) pass.other = call.in.x + offset;
  pass.other_row = p.O;
  pass.relu = p.act, pass.out = y + offset, pass.out_row = p.O;
  call.gemm.passes.combine(pass);
}

}  // namespace

template <typename T>
void forward(const Call<T>& call, const Saved<T>& saved, T* y) {
  const Problem& p = call.problem;
  const int64_t b = p.branch(), E = p.entry(), s = p.stride, branches = p.convolutions() + 1;
  const ColumnPasses<T>& passes = call.gemm.passes;
  const Chunks chunks{p.N, p.T, frames_per_piece(p)};
  const Chunks out_chunks{p.N, p.frames_out(), chunks.step / s};

  const Entry<T> entry(call);
  batch_norm::Moments moments_p(chunks.count(), E), moments_z(out_chunks.count(), p.O);
  batch_norm::Moments moments_r(saved.r ? out_chunks.count() : 0, p.O);
  for_each_task(call.pool, chunks.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = chunks[task], out = out_chunks[task];
    enter(call, entry, saved, piece);
    moments_p.add(passes, task, piece.frames() * p.V, 0, E, saved.p + row_of(p, piece, p.T) * E, E);
    const int64_t rows = out.frames() * p.V, offset = row_of(p, out, p.frames_out()) * p.O;
    moments_z.add(passes, task, rows, E, p.last(), saved.z + offset + E, p.O);
    if (saved.r) moments_r.add(passes, task, rows, 0, p.O, saved.r + offset, p.O);
  });
  moments_p.merge(chunks, call.in.multiplicity, saved.statistics_p);
  const batch_norm::Affine<T> norm_p(E, saved.statistics_p, call.in.norm_p, p.eps);

  const Buffer<T> weight_time = pack_time(call, false);
  const Buffer<T> frames(call.pool.workers * branch_frames(p, out_chunks.step) * p.V * b);
  for_each_task(call.pool, out_chunks.count() * branches, [&](int worker, int64_t task) {
    const int64_t branch = task % branches;
    const Chunks::Piece piece = out_chunks[task / branches];
    T* h = frames + worker * branch_frames(p, out_chunks.step) * p.V * b;
    if (branch < p.convolutions()) {
      convolve(call, weight_time + branch * packed_size(p.taps * b, b, call.gemm.width), branch, norm_p, saved, piece,
               h);
    } else {
      pool(call, norm_p, saved, piece, h);
    }
    const T* z = saved.z + row_of(p, piece, p.frames_out()) * p.O + branch * b;
    moments_z.add(passes, piece.index, piece.frames() * p.V, branch * b, b, z, p.O);
  });

  moments_z.merge(out_chunks, call.in.multiplicity, saved.statistics_z);
  batch_norm::Affine<T> norm_z(p.O, saved.statistics_z, call.in.norm_z, p.eps);
  std::unique_ptr<batch_norm::Affine<T>> norm_r;
  if (saved.r) {
    moments_r.merge(out_chunks, call.in.multiplicity, saved.statistics_r);
    norm_r = std::make_unique<batch_norm::Affine<T>>(p.O, saved.statistics_r, call.in.norm_r, p.eps);
    for (int64_t c = 0; c < p.O; ++c) norm_z.shift[c] += norm_r->shift[c];
  }
  for_each_task(call.pool, out_chunks.count(),
                [&](int, int64_t task) { finish(call, norm_z, norm_r.get(), saved, out_chunks[task], y); });
}

template void forward(const Call<float>&, const Saved<float>&, float*);
template void forward(const Call<double>&, const Saved<double>&, double*);

}  // namespace msg3d::mstcn
