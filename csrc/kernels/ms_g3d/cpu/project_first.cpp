// Project-first: each frame is projected once, each window is one matrix product. One panel of output channels at a
// time.
//
//     Z[f,(u,k),o]    = sum_c x[f,u,c] weight[o,k,c]                                  a frame is (V*K) x width,
//     contiguous y[t,(w,v),o]    = bias[o] + sum_{w',(u,k)} A[k,(w,v),(w',u)] Z[t*s + w'*d - p,(u,k),o] dZ[f,(u,k),o]
//     = sum_{t,w': t*s + w'*d - p = f} sum_{(w,v)} A[k,(w,v),(w',u)] gy[t,(w,v),o] grad_x[f,u,c]   = sum_{k,o}
//     dZ[f,(u,k),o] weight[o,k,c] grad_weight     = sum_{f,u} dZ[f,(u,k),o] x[f,u,c] grad_A          = sum_{t,o}
//     gy[t,(w,v),o] Z[t*s + w'*d - p,(u,k),o]
//
// Z and dZ exist for the frames of one step only. Parameter gradients are partial sums per task, added in the order of
// the tasks. Frames in the padding are zeros in Z, so every window has tau equal segments.
#include "../../chunks.h"
#include "../../gemm/panels.h"
#include "grad_adjacency.h"
#include "pack.h"
#include "paired_windows.h"

namespace msg3d::ms_g3d::project_first {
namespace {

constexpr int64_t kPanelBytes = 24 * 1024;

// Z of a run of frames of one clip, for one panel. Moving forward keeps the frames that overlap.
template <typename T>
class ProjectedFrames {
 public:
  ProjectedFrames(const Call<T>& call, const T* weight_panel, T* buffer)
      : call_(call), weight_(weight_panel), buffer_(buffer) {}

  // Frames [first, last) of clip n; outside [0, T) zeros.
  const T* move_to(int64_t n, int64_t first, int64_t last) {
    const int64_t frame = call_.problem.V * call_.problem.K * call_.plan.width;
    int64_t kept = 0;
    if (n == clip_ && first >= first_ && first < last_) {
      kept = std::min(last_, last) - first;
      std::memmove(buffer_, buffer_ + (first - first_) * frame, kept * frame * sizeof(T));
    }
    const int64_t missing = first + kept;
    const int64_t inside = std::clamp<int64_t>(0, missing, last), end = std::clamp(call_.problem.T, inside, last);
    zero(buffer_ + kept * frame, (inside - missing) * frame);
    if (end > inside) project(n, inside, end, buffer_ + (inside - first) * frame);
    zero(buffer_ + (end - first) * frame, (last - end) * frame);
    clip_ = n, first_ = first, last_ = last;
    return buffer_;
  }

 private:
  void project(int64_t n, int64_t first, int64_t last, T* z) const {
    const Problem& p = call_.problem;
    const int64_t width = call_.plan.width;
    for (int64_t k = 0; k < p.K; ++k) {
      PanelProduct<T> product{};
      product.rows = (last - first) * p.V, product.columns = width;
      product.segments = 1, product.depth = p.C;
      product.a = call_.in.x + (n * p.T + first) * p.V * p.C, product.a_row = p.C, product.a_depth = 1;
      product.b = weight_ + k * p.C * width, product.b_depth = width;
      product.c = z + k * width, product.c_row = p.K * width;
      call_.gemm.product(product);
    }
  }

  const Call<T>& call_;
  const T* weight_;
  T* buffer_;
  int64_t clip_ = -1, first_ = 0, last_ = 0;
};

// A -> (R, tau, (u,k)): one row per destination node.
template <typename T>
void pack_adjacency(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  for_each_task(call.pool, p.nodes(), [&](int, int64_t node) {
    T* row = to + node * p.nodes() * p.K;
    for (int64_t source = 0; source < p.nodes(); ++source) {
      for (int64_t k = 0; k < p.K; ++k) *row++ = call.in.A.at(k, node, source);
    }
  });
}

// A -> (tau, (u,k), R): its transpose, one row per source.
template <typename T>
void pack_adjacency_by_source(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  for_each_task(call.pool, p.nodes(), [&](int, int64_t source) {
    T* row = to + source * p.K * p.nodes();
    for (int64_t k = 0; k < p.K; ++k) {
      for (int64_t node = 0; node < p.nodes(); ++node) *row++ = call.in.A.at(k, node, source);
    }
  });
}

// weight -> (panels, input panels, (k,o), width of c): the projection's transpose.
template <typename T>
void pack_weight_by_input(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, input_panels = ceil_div(p.C, width);
  for_each_task(call.pool, call.plan.panels * input_panels, [&](int, int64_t task) {
    const int64_t first_o = task / input_panels * width, first_c = task % input_panels * width;
    T* row = to + task * p.K * width * width;
    for (int64_t k = 0; k < p.K; ++k) {
      for (int64_t o = first_o; o < first_o + width; ++o, row += width) {
        for (int64_t j = 0; j < width; ++j) {
          row[j] = o < p.O && first_c + j < p.C ? call.in.weight.at(o, k, first_c + j) : T(0);
        }
      }
    }
  });
}

// gy of windows [first, last) of clip n -> (windows, R, width) of one panel.
template <typename T>
void pack_gy(const Call<T>& call, int64_t n, int64_t first, int64_t last, int64_t panel, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes();
  const T* from = call.in.gy + (n * p.windows() + first) * R * p.O + panel * width;
  pack_rows(from, p.O, (last - first) * R, std::min(width, p.O - panel * width), width, to);
}

// A packed by pack_adjacency or pack_adjacency_by_source, and its sums for windows that pair.
template <typename T>
struct Adjacency {
  const T *of_slots, *paired;
};

template <typename T>
Adjacency<T> packed_adjacency(const Call<T>& call, bool by_source, Arena& shared) {
  T* of_slots = shared.take<T>(call.plan.shared.adjacency);
  T* paired = shared.take<T>(call.plan.shared.paired);
  by_source ? pack_adjacency_by_source(call, of_slots) : pack_adjacency(call, of_slots);
  if (call.problem.pairs()) pack_paired(call, of_slots, by_source, paired);
  return {of_slots, paired};
}

// dZ of frames [first, last) of clip n, for one panel; `gy` holds that panel of the windows from `first_window` on.
template <typename T>
void adjoint_frames(const Call<T>& call, const Adjacency<T>& adjacency, const T* gy, int64_t first_window,
                    int64_t first, int64_t last, T* scratch, T* grad_z) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes(), J = p.V * p.K;
  if (p.pairs()) {
    T* const none = scratch;
    zero(none, R * width);
    const auto panel_of = [&](int64_t t) {
      return t >= 0 && t < p.windows() ? gy + (t - first_window) * R * width : none;
    };
    for (; first + 4 <= last && first % 2 == 0; first += 4, grad_z += 4 * J * width) {
      four_frames(call, adjacency.of_slots, adjacency.paired, panel_of, first, scratch + R * width, grad_z);
    }
  }
  for (int64_t f = first; f < last; ++f) {
    // The slots w' in which a window shows this frame are evenly spaced, and so are their windows.
    int64_t slot[2] = {0, 0}, window[2] = {0, 0}, count = 0;
    for (int64_t w = 0; w < p.window; ++w) {
      const int64_t start = f + p.padding() - w * p.dilation;
      if (start < 0 || start % p.stride != 0 || start / p.stride >= p.windows()) continue;
      if (count < 2) slot[count] = w, window[count] = start / p.stride;
      ++count;
    }
    PanelProduct<T> product{};
    product.rows = J, product.columns = width;
    product.segments = count, product.depth = R;
    product.a = adjacency.of_slots + slot[0] * J * R, product.a_row = R, product.a_depth = 1;
    product.a_segment = (slot[1] - slot[0]) * J * R;
    product.b = gy + (count ? window[0] - first_window : 0) * R * width, product.b_depth = width;
    product.b_segment = (window[1] - window[0]) * R * width;
    product.c = grad_z + (f - first) * J * width, product.c_row = width;
    call.gemm.product(product);
  }
}

// grad_weight of one step of frames: partial (K, C, width of o) += x^T dZ.
template <typename T>
void add_grad_weight(const Call<T>& call, int64_t n, int64_t first, int64_t last, const T* grad_z, T* partial) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width;
  for (int64_t k = 0; k < p.K; ++k) {
    PanelProduct<T> product{};
    product.rows = p.C, product.columns = width;
    product.segments = 1, product.depth = (last - first) * p.V;
    product.a = call.in.x + (n * p.T + first) * p.V * p.C, product.a_row = 1, product.a_depth = p.C;
    product.b = grad_z + k * width, product.b_depth = p.K * width;
    product.c = partial + k * p.C * width, product.c_row = width;
    accumulate(call.gemm, product);
  }
}

}  // namespace

template <typename T>
void forward(const Call<T>& call, T* y) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t width = plan.width, R = p.nodes(), J = p.V * p.K;
  Arena shared(call.workspace.shared);
  T* weight = shared.take<T>(plan.shared.weight);
  const Adjacency<T> adjacency = packed_adjacency(call, false, shared);
  T* bias = shared.take<T>(plan.shared.bias);
  pack_weight(call, weight);
  pack_bias(call, bias);

  for_each_task(call.pool, plan.tasks, [&](int worker, int64_t task) {
    const int64_t panel = task % plan.panels, chunk = task / plan.panels % plan.chunks;
    const int64_t n = task / plan.panels / plan.chunks;
    const int64_t end = p.windows() * (chunk + 1) / plan.chunks;
    const int64_t columns = std::min(width, p.O - panel * width);
    Arena arena = worker_arena(call, worker);
    ProjectedFrames<T> frames(call, weight + panel * p.K * p.C * width, arena.take<T>(plan.worker.z));
    T* scratch = arena.take<T>(plan.worker.paired);
    for (int64_t first = p.windows() * chunk / plan.chunks; first < end; first += plan.window_step) {
      const int64_t windows = std::min(plan.window_step, end - first);
      const T* z = frames.move_to(n, p.first_frame(first), p.first_frame(first) + p.frames_of(windows));
      T* to = y + (n * p.windows() + first) * R * p.O + panel * width;
      int64_t t = 0;
      for (; p.pairs() && t + 2 <= windows; t += 2) {
        two_windows(call, adjacency.of_slots, adjacency.paired, z + t * p.stride * J * width, bias + panel * width,
                    columns, scratch, to + t * R * p.O);
      }
      for (; t < windows; ++t) {
        PanelProduct<T> product{};
        product.rows = R, product.columns = columns;
        product.segments = p.window, product.depth = J;
        product.a = adjacency.of_slots, product.a_row = p.window * J, product.a_segment = J, product.a_depth = 1;
        product.b = z + t * p.stride * J * width, product.b_segment = p.dilation * J * width, product.b_depth = width;
        product.start = bias + panel * width;
        product.c = to + t * R * p.O, product.c_row = p.O;
        call.gemm.product(product);
      }
    }
  });
}

template <typename T>
void backward_input(const Call<T>& call, T* grad_x) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t width = plan.width, input_panels = ceil_div(p.C, width);
  Arena shared(call.workspace.shared);
  T* weight = shared.take<T>(plan.shared.weight_by_input);
  const Adjacency<T> adjacency = packed_adjacency(call, true, shared);
  pack_weight_by_input(call, weight);

  for_each_task(call.pool, plan.tasks, [&](int worker, int64_t task) {
    const int64_t n = task / plan.chunks, first = task % plan.chunks * plan.frame_step;
    const int64_t last = std::min(first + plan.frame_step, p.T), rows = (last - first) * p.V;
    const WindowRange windows = p.windows_touching(first, last);
    Arena arena = worker_arena(call, worker);
    T* grad_z = arena.take<T>(plan.worker.grad_z);
    T* gy = arena.take<T>(plan.worker.gy);
    T* tile = arena.take<T>(plan.worker.grad_x);  // (input panels, (f,u), width)
    T* scratch = arena.take<T>(plan.worker.paired);
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      pack_gy(call, n, windows.first, windows.last, panel, gy);
      adjoint_frames(call, adjacency, gy, windows.first, first, last, scratch, grad_z);
      for (int64_t q = 0; q < input_panels; ++q) {
        PanelProduct<T> product{};
        product.rows = rows, product.columns = width;
        product.segments = 1, product.depth = p.K * width;
        product.a = grad_z, product.a_row = p.K * width, product.a_depth = 1;
        product.b = weight + (panel * input_panels + q) * p.K * width * width, product.b_depth = width;
        product.c = tile + q * rows * width, product.c_row = width;
        product.start = panel ? product.c : nullptr, product.start_row = width;
        call.gemm.product(product);
      }
    }
    T* to = grad_x + (n * p.T + first) * p.V * p.C;
    for (int64_t q = 0; q < input_panels; ++q) {
      const int64_t columns = std::min(width, p.C - q * width);
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(to + r * p.C + q * width, tile + (q * rows + r) * width, columns * sizeof(T));
      }
    }
  });
}

// grad_x of clips [0, clips) from their dZ (panels, clips, T, (u,k), width); grad_x begins with the first of them.
template <typename T>
void project_back(const Call<T>& call, const T* weight_by_input, const T* grad_z, int64_t clips, T* grad_x) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, J = p.V * p.K, input_panels = ceil_div(p.C, width);
  const int64_t frame_bytes = call.plan.panels * J * width * static_cast<int64_t>(sizeof(T));
  // Panels whose weights stay in a first-level cache while the rows go over them.
  const int64_t together = std::max<int64_t>(1, kPanelBytes / (p.K * width * width * static_cast<int64_t>(sizeof(T))));
  const Chunks pieces{clips, p.T, std::clamp<int64_t>(2 * kTileBytes / frame_bytes, 1, p.T)};
  for_each_task(call.pool, pieces.count(), [&](int, int64_t task) {
    const Chunks::Piece piece = pieces[task];
    const int64_t first = piece.sample * p.T + piece.first;
    for (int64_t q = 0; q < input_panels; ++q) {
      PanelProduct<T> product{};
      product.rows = piece.frames() * p.V, product.columns = std::min(width, p.C - q * width);
      product.depth = p.K * width;
      product.a_row = p.K * width, product.a_depth = 1, product.a_segment = clips * p.T * J * width;
      product.b_depth = width, product.b_segment = input_panels * p.K * width * width;
      product.c = grad_x + first * p.V * p.C + q * width, product.c_row = product.start_row = p.C;
      for (int64_t panel = 0; panel < call.plan.panels; panel += together) {
        product.segments = std::min(together, call.plan.panels - panel);
        product.a = grad_z + first * J * width + panel * product.a_segment;
        product.b = weight_by_input + q * p.K * width * width + panel * product.b_segment;
        product.start = panel ? product.c : nullptr;
        call.gemm.product(product);
      }
    }
  });
}

template <typename T>
void backward_parameters(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t width = plan.width, R = p.nodes(), J = p.V * p.K;
  const int64_t size_A = adjacency_sums(call), size_weight = p.K * p.C * width;
  // With grad_x, the dZ of a group of clips is kept until every panel of theirs is there.
  const int64_t clip_size = p.T * J * width;
  const int64_t group = grad_x ? stored_clips<T>(p, plan.panels * clip_size) : p.N;
  const Buffer<T> stored(grad_x ? plan.panels * group * clip_size : 0);
  const Buffer<T> weight_by_input(grad_x ? plan.panels * ceil_div(p.C, width) * p.K * width * width : 0);
  if (grad_x) pack_weight_by_input(call, weight_by_input.get());
  Arena shared(call.workspace.shared);
  T* weight = shared.take<T>(plan.shared.weight);
  const Adjacency<T> adjacency = packed_adjacency(call, true, shared);
  T* partial_A = shared.take<T>(plan.shared.partial_A);
  T* partial_weight = shared.take<T>(plan.shared.partial_weight);
  T* partial_bias = shared.take<T>(plan.shared.partial_bias);
  if (gradients.A) pack_weight(call, weight);

  const int64_t window_steps = ceil_div(p.windows(), plan.window_step), frame_steps = ceil_div(p.T, plan.frame_step);
  const auto walk = [&](int64_t first_clip, int64_t clips, int worker, int64_t task) {
    const int64_t panel = task % plan.panels, split = task / plan.panels;
    Arena arena = worker_arena(call, worker);
    T* z = arena.take<T>(plan.worker.z);
    T* grad_z = arena.take<T>(plan.worker.grad_z);
    T* gy = arena.take<T>(plan.worker.gy);
    T* gy_by_node = arena.take<T>(plan.worker.gy_by_node);
    T* scratch = arena.take<T>(plan.worker.paired);
    if (gradients.A) {
      T* partial = partial_A + task * size_A;
      if (first_clip == 0) zero(partial, size_A);
      ProjectedFrames<T> frames(call, weight + panel * size_weight, z);
      const int64_t steps = clips * window_steps;
      for (int64_t step = steps * split / plan.splits; step < steps * (split + 1) / plan.splits; ++step) {
        const int64_t n = first_clip + step / window_steps, first = step % window_steps * plan.window_step;
        const int64_t last = std::min(first + plan.window_step, p.windows());
        frames.move_to(n, p.first_frame(first), p.first_frame(first) + p.frames_of(last - first));
        add_grad_A(call, n, first, last, panel, z, gy_by_node, scratch, partial);
      }
    }
    if (gradients.weight) {
      T* partial = partial_weight + task * size_weight;
      if (first_clip == 0) zero(partial, size_weight);
      const int64_t steps = clips * frame_steps;
      for (int64_t step = steps * split / plan.splits; step < steps * (split + 1) / plan.splits; ++step) {
        const int64_t clip = step / frame_steps, n = first_clip + clip, first = step % frame_steps * plan.frame_step;
        const int64_t last = std::min(first + plan.frame_step, p.T);
        const WindowRange windows = p.windows_touching(first, last);
        pack_gy(call, n, windows.first, windows.last, panel, gy);
        if (grad_x) grad_z = stored + (panel * clips + clip) * clip_size + first * J * width;
        adjoint_frames(call, adjacency, gy, windows.first, first, last, scratch, grad_z);
        add_grad_weight(call, n, first, last, grad_z, partial);
      }
    }
    if (gradients.bias && first_clip == 0) {
      const int64_t rows = p.N * p.windows() * R, begin = rows * split / plan.splits;
      sum_rows(call, begin, rows * (split + 1) / plan.splits, panel, partial_bias + task * width);
    }
  };
  for_each_group(p, group, [&](int64_t first_clip, int64_t clips) {
    for_each_task(call.pool, plan.tasks, [&](int worker, int64_t task) { walk(first_clip, clips, worker, task); });
    if (grad_x) {
      project_back<T>(call, weight_by_input.get(), stored.get(), clips, grad_x + first_clip * p.T * p.V * p.C);
    }
  });

  if (gradients.A) reduce_adjacency(call, partial_A, gradients.A);
  if (gradients.weight) reduce_weight(call, partial_weight, gradients.weight);
  if (gradients.bias) reduce_bias(call, partial_bias, gradients.bias);
}

#define MSG3D_INSTANTIATE(T)                        \
  template void forward(const Call<T>&, T*);        \
  template void backward_input(const Call<T>&, T*); \
  template void backward_parameters(const Call<T>&, const ParameterGradients<T>&, T*);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)
#undef MSG3D_INSTANTIATE

}  // namespace msg3d::ms_g3d::project_first
