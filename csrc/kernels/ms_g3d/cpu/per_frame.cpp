// All gradients of the graph convolution per frame (tau = s = 1), one panel of input channels at a time:
//
//     G[f,(v,k),c]   = sum_o gy[f,v,o] weight[o,k,c]              a frame is (V*K) x width, contiguous
//     XA[f,(v,k),c]  = sum_u A[k,v,u] x[f,u,c]
//     grad_x[f,u,c]      = sum_{(v,k)} A[k,v,u] G[f,(v,k),c]
//     grad_A[k,v,u]      = sum_{f,c} G[f,(v,k),c] x[f,u,c]
//     grad_weight[o,k,c] = sum_{f,v} gy[f,v,o] XA[f,(v,k),c]
//
// Two products as large as the projection instead of project-first's three: aggregating x again is cheaper than
// projecting it again. G and XA exist for the frames of one step only. Partial sums are added in the order of the
// tasks.
#include <vector>

#include "../../chunks.h"
#include "../../gemm/panels.h"
#include "pack.h"

namespace msg3d::ms_g3d::per_frame {
namespace {

template <typename T>
struct Sizes {
  int64_t width, J, input_panels, node_panels, frames, step, steps, splits;
  int64_t partial_A, partial_weight;

  explicit Sizes(const Call<T>& call) {
    const Problem& p = call.problem;
    width = call.plan.width, J = p.V * p.K, frames = p.N * p.T;
    input_panels = ceil_div(p.C, width), node_panels = ceil_div(p.V, width);
    step = std::max<int64_t>(1, kTileBytes / (J * width * static_cast<int64_t>(sizeof(T))));
    steps = ceil_div(frames, step);
    splits = std::clamp<int64_t>(ceil_div(kEnoughTasks, input_panels), 1, std::max<int64_t>(1, steps));
    partial_A = node_panels * J * width, partial_weight = p.K * p.O * width;
  }
};

// What the tasks read, packed once.
template <typename T>
struct Packed {
  Buffer<T> weight;     // (input panels, K, O, width)
  Buffer<T> by_source;  // A as (u, (v,k))
  Buffer<T> by_node;    // A as ((v,k), u)

  Packed(const Call<T>& call, const Sizes<T>& sizes)
      : weight(sizes.input_panels * sizes.partial_weight),
        by_source(call.problem.V * sizes.J),
        by_node(call.problem.V * sizes.J) {
    const Problem& p = call.problem;
    for_each_task(call.pool, sizes.input_panels * p.K, [&](int, int64_t task) {
      const int64_t first = task / p.K * sizes.width, k = task % p.K;
      T* to = weight + task * p.O * sizes.width;
      for (int64_t o = 0; o < p.O; ++o) {
        for (int64_t j = 0; j < sizes.width; ++j) {
          *to++ = first + j < p.C ? call.in.weight.at(o, k, first + j) : T(0);
        }
      }
    });
    for (int64_t v = 0; v < p.V; ++v) {
      for (int64_t k = 0; k < p.K; ++k) {
        for (int64_t u = 0; u < p.V; ++u) {
          by_source.get()[u * sizes.J + v * p.K + k] = by_node.get()[(v * p.K + k) * p.V + u] = call.in.A.at(k, v, u);
        }
      }
    }
  }
};

// One worker's buffers for the frames of a step.
template <typename T>
struct Local {
  Buffer<T> grad_aggregated, aggregated;  // G, XA: (frames, (v,k), width)
  Buffer<T> x, x_by_node;                 // (frames, u, width), (node panels, frames, c, width of u)

  Local(const Problem& p, const Sizes<T>& s)
      : grad_aggregated(s.step * s.J * s.width),
        aggregated(s.step * s.J * s.width),
        x(s.step * p.V * s.width),
        x_by_node(s.node_panels * s.step * s.width * s.width) {}
};

// One panel of x in both of the forms that the products read.
template <typename T>
void pack_x(const Call<T>& call, const Sizes<T>& s, int64_t first, int64_t frames, int64_t panel,
            const Local<T>& local) {
  const Problem& p = call.problem;
  const int64_t columns = std::min(s.width, p.C - panel * s.width);
  const T* from = call.in.x + first * p.V * p.C + panel * s.width;
  pack_rows(from, p.C, frames * p.V, columns, s.width, local.x.get());
  for (int64_t q = 0; q < s.node_panels; ++q) {
    const int64_t nodes = std::min(s.width, p.V - q * s.width);
    for (int64_t f = 0; f < frames; ++f) {
      const T* row = local.x + (f * p.V + q * s.width) * s.width;
      T* to = local.x_by_node + (q * frames + f) * s.width * s.width;
      if (nodes < s.width) zero(to, s.width * s.width);
      call.gemm.passes.transpose(nodes, s.width, row, s.width, to, s.width);
    }
  }
}

template <typename T>
void run_step(const Call<T>& call, const Sizes<T>& s, const Packed<T>& packed, int64_t first, int64_t frames,
              int64_t panel, const Local<T>& local, T* grad_x, T* partial_A, T* partial_weight) {
  const Problem& p = call.problem;
  const int64_t width = s.width, J = s.J, rows = frames * p.V;
  const T* gy = call.in.gy + first * p.V * p.O;
  pack_x(call, s, first, frames, panel, local);
  for (int64_t k = 0; k < p.K; ++k) {
    PanelProduct<T> project{};
    project.rows = rows, project.columns = width, project.segments = 1, project.depth = p.O;
    project.a = gy, project.a_row = p.O, project.a_depth = 1;
    project.b = packed.weight + (panel * p.K + k) * p.O * width, project.b_depth = width;
    project.c = local.grad_aggregated + k * width, project.c_row = p.K * width;
    call.gemm.product(project);
  }
  for (int64_t f = 0; f < frames; ++f) {
    PanelProduct<T> aggregate{};
    aggregate.rows = J, aggregate.columns = width, aggregate.segments = 1, aggregate.depth = p.V;
    aggregate.a = packed.by_node.get(), aggregate.a_row = p.V, aggregate.a_depth = 1;
    aggregate.b = local.x + f * p.V * width, aggregate.b_depth = width;
    aggregate.c = local.aggregated + f * J * width, aggregate.c_row = width;
    call.gemm.product(aggregate);

    PanelProduct<T> adjoint{};
    adjoint.rows = p.V, adjoint.columns = std::min(width, p.C - panel * width), adjoint.segments = 1, adjoint.depth = J;
    adjoint.a = packed.by_source.get(), adjoint.a_row = J, adjoint.a_depth = 1;
    adjoint.b = local.grad_aggregated + f * J * width, adjoint.b_depth = width;
    adjoint.c = grad_x + (first + f) * p.V * p.C + panel * width, adjoint.c_row = p.C;
    call.gemm.product(adjoint);
  }
  for (int64_t q = 0; q < s.node_panels; ++q) {
    PanelProduct<T> outer{};
    outer.rows = J, outer.columns = width, outer.segments = frames, outer.depth = width;
    outer.a = local.grad_aggregated.get(), outer.a_row = width, outer.a_depth = 1, outer.a_segment = J * width;
    outer.b = local.x_by_node + q * frames * width * width, outer.b_depth = width, outer.b_segment = width * width;
    outer.start = outer.c = partial_A + q * J * width, outer.start_row = outer.c_row = width;
    call.gemm.product(outer);
  }
  for (int64_t k = 0; k < p.K; ++k) {
    PanelProduct<T> outer{};
    outer.rows = p.O, outer.columns = width, outer.segments = 1, outer.depth = rows;
    outer.a = gy, outer.a_row = 1, outer.a_depth = p.O;
    outer.b = local.aggregated + k * width, outer.b_depth = p.K * width;
    outer.c = partial_weight + k * p.O * width, outer.c_row = width;
    accumulate(call.gemm, outer);
  }
}

}  // namespace

template <typename T>
void backward(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x) {
  const Problem& p = call.problem;
  const Sizes<T> s(call);
  const Packed<T> packed(call, s);
  const int64_t tasks = s.input_panels * s.splits;
  const Buffer<T> partial_A(tasks * s.partial_A), partial_weight(tasks * s.partial_weight);
  std::vector<Local<T>> locals;
  for (int worker = 0; worker < call.pool.workers; ++worker) locals.emplace_back(p, s);
  for_each_task(call.pool, tasks, [&](int worker, int64_t task) {
    const int64_t panel = task % s.input_panels, split = task / s.input_panels;
    T *const to_A = partial_A + task * s.partial_A, *const to_weight = partial_weight + task * s.partial_weight;
    zero(to_A, s.partial_A);
    zero(to_weight, s.partial_weight);
    for (int64_t step = s.steps * split / s.splits; step < s.steps * (split + 1) / s.splits; ++step) {
      const int64_t first = step * s.step, frames = std::min(s.step, s.frames - first);
      run_step(call, s, packed, first, frames, panel, locals[worker], grad_x, to_A, to_weight);
    }
  });

  for_each_task(call.pool, s.node_panels, [&](int, int64_t q) {
    T* sum = partial_A + q * s.J * s.width;
    for (int64_t task = 1; task < tasks; ++task) add(sum, sum + task * s.partial_A, s.J * s.width);
    for (int64_t v = 0; v < p.V; ++v) {
      for (int64_t k = 0; k < p.K; ++k) {
        for (int64_t u = q * s.width; u < std::min(p.V, (q + 1) * s.width); ++u) {
          gradients.A[(k * p.V + v) * p.V + u] = sum[(v * p.K + k) * s.width + u - q * s.width];
        }
      }
    }
  });
  for_each_task(call.pool, s.input_panels * p.K, [&](int, int64_t task) {
    const int64_t first = task / p.K * s.width, k = task % p.K, columns = std::min(s.width, p.C - first);
    T* sum = partial_weight + task * p.O * s.width;
    for (int64_t split = 1; split < s.splits; ++split) {
      add(sum, sum + split * s.input_panels * s.partial_weight, p.O * s.width);
    }
    for (int64_t o = 0; o < p.O; ++o) {
      std::memcpy(gradients.weight + (o * p.K + k) * p.C + first, sum + o * s.width, columns * sizeof(T));
    }
  });
}

template void backward(const Call<float>&, const ParameterGradients<float>&, float*);
template void backward(const Call<double>&, const ParameterGradients<double>&, double*);

}  // namespace msg3d::ms_g3d::per_frame
