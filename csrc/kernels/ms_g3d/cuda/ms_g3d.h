// MS-G3D on the tensor cores of a GPU, in bfloat16, float16 and tf32, with sums in float: the doors that a binding
// calls. Everything is a raw pointer into device memory; nothing here needs a CUDA header.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "plan.h"

namespace msg3d::ms_g3d::cuda {

// Everything in T but the sums. A, weight and collapse_weight with their strides in elements, the others dense in
// memory as problem.h says.
struct Pointers {
  const void* x;       // 16-byte aligned
  const void* A;       // (K, tau*V, tau*V)
  const void* A_res;   // the learned residual, dense; null: A has it already
  const void* weight;  // (O, K, C)
  const void* bias;    // (O,); null: none
  int64_t A_stride[3];
  int64_t weight_stride[3];
};

// Behind y = relu(ms_g3d(x)), out (N, T_out, V, out_channels) = sum_w collapse_weight[:, :, w] y[w] + bias.
struct Collapse {
  const void* weight;  // (out_channels, O, tau)
  const void* bias;    // (out_channels,); null: none
  int64_t weight_stride[3];
  bool accumulate;  // add to what stands in out
};

// y = relu?(ms_g3d(x)), or, with a plan for `collapse`, out = relu?(collapse of it) in y's place. `plan` is
// plan_forward's and not kPlain; `workspace` holds plan.workspace_bytes of any content, 256-byte aligned. All return
// CUDA's error code of the launches, 0 if there is none; nothing waits for the device. `moments`: parts of y's
// statistics (statistics.h), without relu and collapse; null: not wanted.
int forward(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, bool relu, void* y,
            void* workspace, void* stream, const Collapse* collapse = nullptr, void* moments = nullptr);

// The two halves of it, for weights that stay: pack W, A and the collapse's weight into the workspace once, then run on
// it as often as wanted, also with another N, T, stride or dilation if the plan's layout() stays the same.
int pack(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, void* workspace, void* stream,
         const Collapse* collapse = nullptr);
int run(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, bool relu, void* y,
        const void* workspace, void* stream, const Collapse* collapse = nullptr, void* moments = nullptr);

}  // namespace msg3d::ms_g3d::cuda
