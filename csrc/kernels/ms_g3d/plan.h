// Which order of evaluation, how large its steps and its workspace: a pure function from sizes. Nothing else decides.
//
// Project-first computes Z[f,u,k,o] = sum_c weight[o,k,c] x[f,u,c] once per frame, then each window is one product of A
// with the Z of its frames. Aggregate-first computes A x per window (cheap where C is small), then the projection. Both
// are exact; the count of multiply-adds decides. Tasks and steps depend on the problem alone, so results do not depend
// on the number of threads; buffers hold a bounded number of frames, so the workspace depends neither on N nor on T
// once a clip is longer than a step.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../chunks.h"
#include "problem.h"

namespace msg3d::ms_g3d {

enum class Order { kProjectFirst, kAggregateFirst };
enum class Pass { kForward, kBackwardInput, kBackwardParameters };
enum class OrderChoice { kAuto, kProjectFirst, kAggregateFirst };

constexpr int64_t kTileBytes = 128 * 1024;  // the frames of one step: half of a small second-level cache
constexpr int64_t kNodeBytes = 32 * 1024;   // the nodes of one step: a first-level cache
constexpr int64_t kEnoughTasks = 16;        // keeps that many threads busy
constexpr int64_t kAlignment = 64;          // bytes

// Elements of every buffer; 0 where the pass needs none.
struct SharedBuffers {
  int64_t weight, weight_by_input, adjacency, paired, bias;  // packed once a call
  int64_t partial_A, partial_weight, partial_bias;           // per split or task, added up in a fixed order
};
struct WorkerBuffers {
  int64_t z, grad_z, gy, gy_by_node, grad_x, paired;                                        // project-first
  int64_t unfolded, unfolded_by_node, grad_unfolded, aggregated, grad_aggregated, scratch;  // aggregate-first
};

struct Plan {
  Order order;
  int64_t project_macs, aggregate_macs;  // of a forward pass
  int64_t width;                         // columns of a panel
  int64_t panels;                        // of output channels
  int64_t window_step, frame_step;       // windows, frames that one step covers
  int64_t node_step;                     // nodes that one step of aggregate-first covers
  int64_t chunks;                        // parts of a clip's time that are tasks of their own
  int64_t splits;                        // parts of all steps that sum parameter gradients on their own
  int64_t tasks;
  SharedBuffers shared;
  WorkerBuffers worker;
  int64_t shared_bytes, worker_bytes;
};

namespace detail {

inline int64_t padded(int64_t elements, int64_t element_size) {
  return ceil_div(elements * element_size, kAlignment) * kAlignment;
}

inline void plan_project_first(const Problem& p, Pass pass, int64_t element_size, Plan& plan) {
  const int64_t width = plan.width, J = p.K * p.V, R = p.nodes();
  const int64_t frame_bytes = J * width * element_size;
  const int64_t input_panels = ceil_div(p.C, width), node_panels = ceil_div(R, width);
  const int64_t frames = std::max<int64_t>(1, kTileBytes / frame_bytes);
  plan.window_step =
      std::clamp<int64_t>((frames - p.frames_of(1)) / p.stride + 1, 1, std::max<int64_t>(1, p.windows()));
  plan.frame_step = std::clamp<int64_t>(frames, 1, p.T);
  if (p.pairs()) {  // steps that leave no window over, and no frame
    plan.window_step = std::min(ceil_div(plan.window_step, 2) * 2, std::max<int64_t>(1, p.windows()));
    plan.frame_step = std::min(std::max<int64_t>(1, frames / 4) * 4, p.T);
  }

  SharedBuffers& shared = plan.shared;
  WorkerBuffers& worker = plan.worker;
  shared.adjacency = R * p.window * J;
  if (p.pairs()) {
    shared.paired = R * 3 * J;
    worker.paired = (pass == Pass::kForward ? 7 * J + 2 * R : 7 * R) * width;
  }
  if (pass == Pass::kForward) {
    const int64_t clips = std::max<int64_t>(1, p.N * plan.panels);
    plan.chunks = std::clamp<int64_t>(ceil_div(kEnoughTasks, clips), 1, ceil_div(p.windows(), plan.window_step));
    plan.tasks = p.N * plan.panels * plan.chunks;
    shared.weight = plan.panels * p.K * p.C * width;
    shared.bias = plan.panels * width;
    worker.z = p.frames_of(plan.window_step) * J * width;
    return;
  }
  const int64_t gy_windows = std::min(p.windows_of(plan.frame_step), p.windows());
  worker.grad_z = plan.frame_step * J * width;
  worker.gy = gy_windows * R * width;
  if (pass == Pass::kBackwardInput) {
    plan.chunks = ceil_div(p.T, plan.frame_step);
    plan.tasks = p.N * plan.chunks;
    shared.weight_by_input = plan.panels * input_panels * p.K * width * width;
    worker.grad_x = input_panels * plan.frame_step * p.V * width;
  } else {
    const int64_t steps = p.N * std::min(ceil_div(p.windows(), plan.window_step), ceil_div(p.T, plan.frame_step));
    plan.splits = std::clamp<int64_t>(ceil_div(kEnoughTasks, plan.panels), 1, std::max<int64_t>(1, steps));
    plan.tasks = plan.panels * plan.splits;
    shared.weight = plan.panels * p.K * p.C * width;
    shared.partial_A = plan.tasks * p.slot_sums() * node_panels * J * width;
    shared.partial_weight = plan.tasks * p.K * p.C * width;
    shared.partial_bias = plan.tasks * width;
    worker.z = p.frames_of(plan.window_step) * J * width;
    worker.gy_by_node = (p.pairs() ? 2 : 1) * node_panels * plan.window_step * width * width;
    if (p.pairs()) worker.paired = std::max(worker.paired, plan.window_step / 2 * 7 * J * width);
  }
}

inline void plan_aggregate_first(const Problem& p, Pass pass, int64_t element_size, Plan& plan) {
  const int64_t width = plan.width, R = p.nodes(), KC = p.K * p.C;
  const int64_t node_panels = ceil_div(R, width), channel_panels = ceil_div(KC, width);
  plan.window_step = width;
  plan.node_step = std::clamp<int64_t>(kNodeBytes / (KC * width * element_size), 1, R);

  SharedBuffers& shared = plan.shared;
  WorkerBuffers& worker = plan.worker;
  shared.adjacency = R * p.K * R;
  if (pass == Pass::kForward) {
    plan.tasks = ceil_div(p.N * p.windows(), width);
    shared.weight = plan.panels * KC * width;
    shared.bias = plan.panels * width;
    worker.unfolded = p.C * R * width;
    worker.aggregated = plan.node_step * KC * width;
    return;
  }
  const int64_t steps = ceil_div(p.N * p.windows(), width);
  plan.splits = std::clamp<int64_t>(kEnoughTasks, 1, std::max<int64_t>(1, steps));
  plan.tasks = plan.splits;
  shared.weight_by_input = channel_panels * p.O * width;
  worker.grad_unfolded = p.C * R * width;
  worker.grad_aggregated = plan.node_step * KC * width;
  worker.scratch = width * channel_panels * width;
  if (pass == Pass::kBackwardParameters) {
    shared.partial_A = plan.splits * node_panels * R * p.K * width;
    shared.partial_weight = plan.splits * plan.panels * KC * width;
    shared.partial_bias = plan.splits * plan.panels * width;
    worker.unfolded = p.C * R * width;
    worker.unfolded_by_node = node_panels * p.C * width * width;
    worker.aggregated = plan.node_step * KC * width;
    worker.gy = plan.node_step * width * width;
  }
}

}  // namespace detail

inline Plan make_plan(const Problem& p, Pass pass, int64_t width, int64_t element_size, OrderChoice choice) {
  Plan plan{};
  plan.width = width;
  plan.panels = ceil_div(p.O, width);
  const int64_t outputs = plan.panels * width, R = p.nodes();
  plan.project_macs = p.N * (p.T * p.V * p.K * p.C + p.windows() * p.K * R * R) * outputs;
  plan.aggregate_macs = p.N * p.windows() * R * p.K * p.C * (R + outputs);
  plan.order = choice == OrderChoice::kAuto
                   ? (plan.project_macs <= plan.aggregate_macs ? Order::kProjectFirst : Order::kAggregateFirst)
               : choice == OrderChoice::kProjectFirst ? Order::kProjectFirst
                                                      : Order::kAggregateFirst;
  if (plan.order == Order::kProjectFirst) {
    detail::plan_project_first(p, pass, element_size, plan);
  } else {
    detail::plan_aggregate_first(p, pass, element_size, plan);
  }
  const SharedBuffers& s = plan.shared;
  for (int64_t elements :
       {s.weight, s.weight_by_input, s.adjacency, s.paired, s.bias, s.partial_A, s.partial_weight, s.partial_bias}) {
    plan.shared_bytes += detail::padded(elements, element_size);
  }
  const WorkerBuffers& w = plan.worker;
  for (int64_t elements : {w.z, w.grad_z, w.gy, w.gy_by_node, w.grad_x, w.paired, w.unfolded, w.unfolded_by_node,
                           w.grad_unfolded, w.aggregated, w.grad_aggregated, w.scratch}) {
    plan.worker_bytes += detail::padded(elements, element_size);
  }
  return plan;
}

}  // namespace msg3d::ms_g3d
