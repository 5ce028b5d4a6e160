// Aggregate-first, for few input channels: windows are aggregated, then projected. A block is `width` windows of any
// clips, side by side as the columns of a panel, so that vectors are full however few the channels.
//
//     a[t,(w,v),(k,c)]    = sum_{w',u} A[k,(w,v),(w',u)] x[n, t*s + w'*d - p, u, c]      held for a step of nodes:
//     (w,v) k c t y[t,(w,v),o]        = bias[o] + sum_{k,c} a[t,(w,v),(k,c)] weight[o,k,c] da[t,(w,v),(k,c)]   = sum_o
//     gy[t,(w,v),o] weight[o,k,c] grad_x              = sum over windows of sum_{k,(w,v)} A[k,(w,v),(w',u)]
//     da[t,(w,v),(k,c)] grad_A              = sum_{t,c} da[t,(w,v),(k,c)] x[n, t*s + w'*d - p, u, c] grad_weight =
//     sum_{t,(w,v)} gy[t,(w,v),o] a[t,(w,v),(k,c)]
#include "pack.h"

namespace msg3d::ms_g3d::aggregate_first {
namespace {

// Windows [first, first + count) of all clips' windows in a row (n*T_out + t), count <= width.
struct Block {
  int64_t first, count;
};

// Calls visit(t, w', frame of slot w' of window t: V * C values, or null in the padding).
template <typename T, typename Visit>
void for_each_slot(const Call<T>& call, Block block, const Visit& visit) {
  const Problem& p = call.problem;
  for (int64_t t = 0; t < block.count; ++t) {
    const int64_t n = (block.first + t) / p.windows(), first_frame = p.first_frame((block.first + t) % p.windows());
    for (int64_t w = 0; w < p.window; ++w) {
      const int64_t f = first_frame + w * p.dilation;
      visit(t, w, f >= 0 && f < p.T ? call.in.x + (n * p.T + f) * p.V * p.C : nullptr);
    }
  }
}

// A -> (R, K, R): the scales of a destination node side by side.
template <typename T>
void pack_adjacency(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  for_each_task(call.pool, p.nodes(), [&](int, int64_t node) {
    T* row = to + node * p.K * p.nodes();
    for (int64_t k = 0; k < p.K; ++k) {
      for (int64_t source = 0; source < p.nodes(); ++source) *row++ = call.in.A.at(k, node, source);
    }
  });
}

// weight -> (panels of (k,c), O, width): the projection's transpose.
template <typename T>
void pack_weight_by_input(const Call<T>& call, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, KC = p.K * p.C;
  for (int64_t first = 0; first < KC; first += width) {
    for (int64_t o = 0; o < p.O; ++o) {
      for (int64_t kc = first; kc < first + width; ++kc) {
        *to++ = kc < KC ? call.in.weight.at(o, kc / p.C, kc % p.C) : T(0);
      }
    }
  }
}

// x of a block -> (C, (w',u), width of t).
template <typename T>
void unfold(const Call<T>& call, Block block, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes();
  if (block.count < width) zero(to, p.C * R * width);
  for_each_slot(call, block, [&](int64_t t, int64_t w, const T* frame) {
    for (int64_t u = 0; u < p.V; ++u) {
      for (int64_t c = 0; c < p.C; ++c) to[(c * R + w * p.V + u) * width + t] = frame ? frame[u * p.C + c] : T(0);
    }
  });
}

// x of a block -> (panels of (w',u), C, t, width): its transpose.
template <typename T>
void unfold_by_node(const Call<T>& call, Block block, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width;
  zero(to, ceil_div(p.nodes(), width) * p.C * width * width);
  for_each_slot(call, block, [&](int64_t t, int64_t w, const T* frame) {
    if (!frame) return;
    for (int64_t u = 0; u < p.V; ++u) {
      const int64_t source = w * p.V + u;
      T* column = to + source / width * p.C * width * width + t * width + source % width;
      for (int64_t c = 0; c < p.C; ++c) column[c * width * width] = frame[u * p.C + c];
    }
  });
}

// a of nodes [first, last) -> ((w,v), k, c, t).
template <typename T>
void aggregate(const Call<T>& call, const T* adjacency, const T* unfolded, int64_t first, int64_t last, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes();
  for (int64_t c = 0; c < p.C; ++c) {
    PanelProduct<T> product{};
    product.rows = (last - first) * p.K, product.columns = width;
    product.segments = 1, product.depth = R;
    product.a = adjacency + first * p.K * R, product.a_row = R, product.a_depth = 1;
    product.b = unfolded + c * R * width, product.b_depth = width;
    product.c = to + c * width, product.c_row = p.C * width;
    call.gemm.product(product);
  }
}

// da of nodes [first, last) -> ((w,v), k, c, t), zeros for t >= count. scratch: (t, panels of (k,c)).
template <typename T>
void grad_aggregate(const Call<T>& call, const T* weight, Block block, int64_t first, int64_t last, T* scratch, T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes(), KC = p.K * p.C, channel_panels = ceil_div(KC, width);
  for (int64_t node = first; node < last; ++node, to += KC * width) {
    for (int64_t q = 0; q < channel_panels; ++q) {
      PanelProduct<T> product{};
      product.rows = block.count, product.columns = width;
      product.segments = 1, product.depth = p.O;
      product.a = call.in.gy + (block.first * R + node) * p.O, product.a_row = R * p.O, product.a_depth = 1;
      product.b = weight + q * p.O * width, product.b_depth = width;
      product.c = scratch + q * width, product.c_row = channel_panels * width;
      call.gemm.product(product);
    }
    if (block.count < width) zero(to, KC * width);
    call.gemm.passes.transpose(block.count, KC, scratch, channel_panels * width, to, width);
  }
}

// The gradient of a block's unfolded x, (C, (w',u), width of t): what nodes [first, last) give to it, in turn from 0
// on.
template <typename T>
void grad_unfold(const Call<T>& call, const T* adjacency, const T* grad_aggregated, int64_t first, int64_t last,
                 T* to) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes();
  for (int64_t c = 0; c < p.C; ++c) {
    PanelProduct<T> product{};
    product.rows = R, product.columns = width;
    product.segments = 1, product.depth = (last - first) * p.K;
    product.a = adjacency + first * p.K * R, product.a_row = 1, product.a_depth = R;
    product.b = grad_aggregated + c * width, product.b_depth = p.C * width;
    product.c = to + c * R * width, product.c_row = width;
    product.start = first ? product.c : nullptr, product.start_row = width;
    call.gemm.product(product);
  }
}

// grad_x of some clips: adds up the windows that show a frame. grad_unfolded: (windows of these clips, C, (w',u)).
template <typename T>
void fold(const Call<T>& call, int64_t first_clip, int64_t clips, const T* grad_unfolded, T* grad_x) {
  const Problem& p = call.problem;
  const int64_t R = p.nodes(), frame = p.V * p.C;
  for_each_task(call.pool, clips * p.T, [&](int, int64_t task) {
    const int64_t n = task / p.T, f = task % p.T;
    T* const to = grad_x + (first_clip * p.T + task) * frame;
    zero(to, frame);
    for (int64_t w = 0; w < p.window; ++w) {
      const int64_t start = f + p.padding() - w * p.dilation, t = n * p.windows() + start / p.stride;
      if (start < 0 || start % p.stride != 0 || start / p.stride >= p.windows()) continue;
      const T* from = grad_unfolded + t * p.C * R + w * p.V;
      for (int64_t u = 0; u < p.V; ++u) {
        for (int64_t c = 0; c < p.C; ++c) to[u * p.C + c] += from[c * R + u];
      }
    }
  });
}

// partial (panels of (w',u), (w,v), k, width) += da x^T, for nodes [first, last).
template <typename T>
void add_grad_A(const Call<T>& call, const T* grad_aggregated, const T* unfolded, int64_t first, int64_t last,
                T* partial) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes();
  for (int64_t q = 0; q < ceil_div(R, width); ++q) {
    PanelProduct<T> product{};
    product.rows = (last - first) * p.K, product.columns = width;
    product.segments = 1, product.depth = p.C * width;
    product.a = grad_aggregated, product.a_row = p.C * width, product.a_depth = 1;
    product.b = unfolded + q * p.C * width * width, product.b_depth = width;
    product.c = partial + (q * R + first) * p.K * width, product.c_row = width;
    product.start = product.c, product.start_row = width;
    call.gemm.product(product);
  }
}

// partial (panels, (k,c), width of o) += a^T gy, for nodes [first, last). gy: room for (nodes, width of t, width of o).
template <typename T>
void add_grad_weight(const Call<T>& call, const T* aggregated, Block block, int64_t first, int64_t last, T* gy,
                     T* partial) {
  const Problem& p = call.problem;
  const int64_t width = call.plan.width, R = p.nodes(), KC = p.K * p.C;
  for (int64_t panel = 0; panel < call.plan.panels; ++panel) {
    for (int64_t node = first; node < last; ++node) {
      const T* from = call.in.gy + (block.first * R + node) * p.O + panel * width;
      pack_rows(from, R * p.O, block.count, std::min(width, p.O - panel * width), width,
                gy + (node - first) * width * width);
    }
    PanelProduct<T> product{};
    product.rows = KC, product.columns = width;
    product.segments = last - first, product.depth = block.count;
    product.a = aggregated, product.a_row = width, product.a_segment = KC * width, product.a_depth = 1;
    product.b = gy, product.b_segment = width * width, product.b_depth = width;
    product.c = partial + panel * KC * width, product.c_row = width;
    product.start = product.c, product.start_row = width;
    call.gemm.product(product);
  }
}

}  // namespace

template <typename T>
void forward(const Call<T>& call, T* y) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t width = plan.width, R = p.nodes(), KC = p.K * p.C, windows = p.N * p.windows();
  Arena shared(call.workspace.shared);
  T* weight = shared.take<T>(plan.shared.weight);
  T* adjacency = shared.take<T>(plan.shared.adjacency);
  T* bias = shared.take<T>(plan.shared.bias);
  pack_weight(call, weight);
  pack_adjacency(call, adjacency);
  pack_bias(call, bias);

  for_each_task(call.pool, plan.tasks, [&](int worker, int64_t task) {
    const Block block{task * width, std::min(width, windows - task * width)};
    Arena arena = worker_arena(call, worker);
    T* unfolded = arena.take<T>(plan.worker.unfolded);
    T* aggregated = arena.take<T>(plan.worker.aggregated);
    unfold(call, block, unfolded);
    for (int64_t first = 0; first < R; first += plan.node_step) {
      const int64_t last = std::min(first + plan.node_step, R);
      aggregate(call, adjacency, unfolded, first, last, aggregated);
      for (int64_t panel = 0; panel < plan.panels; ++panel) {
        for (int64_t node = first; node < last; ++node) {
          PanelProduct<T> product{};
          product.rows = block.count, product.columns = std::min(width, p.O - panel * width);
          product.segments = 1, product.depth = KC;
          product.a = aggregated + (node - first) * KC * width, product.a_row = 1, product.a_depth = width;
          product.b = weight + panel * KC * width, product.b_depth = width;
          product.start = bias + panel * width;
          product.c = y + (block.first * R + node) * p.O + panel * width, product.c_row = R * p.O;
          call.gemm.product(product);
        }
      }
    }
  });
}

template <typename T>
void backward_parameters(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x) {
  const Problem& p = call.problem;
  const Plan& plan = call.plan;
  const int64_t width = plan.width, R = p.nodes(), KC = p.K * p.C, clip_windows = p.windows();
  const int64_t node_panels = ceil_div(R, width), size_A = node_panels * R * p.K * width;
  const int64_t size_weight = plan.panels * KC * width, size_x = p.C * R;
  // With grad_x, what the windows of a group of clips give to it is kept until all of them are there.
  const int64_t group = grad_x ? stored_clips<T>(p, clip_windows * size_x) : p.N;
  const Buffer<T> stored(grad_x ? group * clip_windows * size_x : 0);
  Arena shared(call.workspace.shared);
  T* weight = shared.take<T>(plan.shared.weight_by_input);
  T* adjacency = shared.take<T>(plan.shared.adjacency);
  T* partial_A = shared.take<T>(plan.shared.partial_A);
  T* partial_weight = shared.take<T>(plan.shared.partial_weight);
  T* partial_bias = shared.take<T>(plan.shared.partial_bias);
  const bool needs_grad_aggregated = gradients.A || grad_x;
  if (needs_grad_aggregated) pack_weight_by_input(call, weight);
  if (gradients.weight || grad_x) pack_adjacency(call, adjacency);

  const auto walk = [&](int64_t first_clip, int64_t clips, int worker, int64_t split) {
    Arena arena = worker_arena(call, worker);
    T* unfolded = arena.take<T>(plan.worker.unfolded);
    T* unfolded_by_node = arena.take<T>(plan.worker.unfolded_by_node);
    T* grad_unfolded = arena.take<T>(plan.worker.grad_unfolded);
    T* aggregated = arena.take<T>(plan.worker.aggregated);
    T* grad_aggregated = arena.take<T>(plan.worker.grad_aggregated);
    T* scratch = arena.take<T>(plan.worker.scratch);
    T* gy = arena.take<T>(plan.worker.gy);
    if (gradients.A && first_clip == 0) zero(partial_A + split * size_A, size_A);
    if (gradients.weight && first_clip == 0) zero(partial_weight + split * size_weight, size_weight);
    const int64_t windows = clips * clip_windows, steps = ceil_div(windows, width);
    for (int64_t step = steps * split / plan.splits; step < steps * (split + 1) / plan.splits; ++step) {
      const Block block{first_clip * clip_windows + step * width, std::min(width, windows - step * width)};
      if (gradients.A) unfold_by_node(call, block, unfolded_by_node);
      if (gradients.weight) unfold(call, block, unfolded);
      for (int64_t first = 0; first < R; first += plan.node_step) {
        const int64_t last = std::min(first + plan.node_step, R);
        if (needs_grad_aggregated) grad_aggregate(call, weight, block, first, last, scratch, grad_aggregated);
        if (gradients.A) {
          add_grad_A(call, grad_aggregated, unfolded_by_node, first, last, partial_A + split * size_A);
        }
        if (grad_x) grad_unfold(call, adjacency, grad_aggregated, first, last, grad_unfolded);
        if (gradients.weight) {
          aggregate(call, adjacency, unfolded, first, last, aggregated);
          add_grad_weight(call, aggregated, block, first, last, gy, partial_weight + split * size_weight);
        }
      }
      if (grad_x) {
        call.gemm.passes.transpose(size_x, block.count, grad_unfolded, width, stored + step * width * size_x, size_x);
      }
    }
    if (gradients.bias && first_clip == 0) {
      const int64_t rows = p.N * clip_windows * R, begin = rows * split / plan.splits;
      for (int64_t panel = 0; panel < plan.panels; ++panel) {
        sum_rows(call, begin, rows * (split + 1) / plan.splits, panel,
                 partial_bias + (split * plan.panels + panel) * width);
      }
    }
  };
  for_each_group(p, group, [&](int64_t first_clip, int64_t clips) {
    for_each_task(call.pool, plan.splits, [&](int worker, int64_t split) { walk(first_clip, clips, worker, split); });
    if (grad_x) fold<T>(call, first_clip, clips, stored.get(), grad_x);
  });

  if (gradients.A) {
    for_each_task(call.pool, node_panels, [&](int, int64_t q) {
      T* sum = partial_A + q * R * p.K * width;
      for (int64_t split = 1; split < plan.splits; ++split) add(sum, sum + split * size_A, R * p.K * width);
      const int64_t columns = std::min(width, R - q * width);
      for (int64_t node = 0; node < R; ++node) {
        for (int64_t k = 0; k < p.K; ++k) {
          std::memcpy(gradients.A + (k * R + node) * R + q * width, sum + (node * p.K + k) * width,
                      columns * sizeof(T));
        }
      }
    });
  }
  if (gradients.weight) reduce_weight(call, partial_weight, gradients.weight);
  if (gradients.bias) reduce_bias(call, partial_bias, gradients.bias);
}

template <typename T>
void backward_input(const Call<T>& call, T* grad_x) {
  backward_parameters(call, {}, grad_x);
}

#define MSG3D_INSTANTIATE(T)                        \
  template void forward(const Call<T>&, T*);        \
  template void backward_input(const Call<T>&, T*); \
  template void backward_parameters(const Call<T>&, const ParameterGradients<T>&, T*);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)
#undef MSG3D_INSTANTIATE

}  // namespace msg3d::ms_g3d::aggregate_first
