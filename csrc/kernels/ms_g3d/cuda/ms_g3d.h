// MS-G3D on the tensor cores of a GPU, in bfloat16 and float16 with sums in float: the doors that a binding calls.
// Everything is a raw pointer into device memory; nothing here needs a CUDA header.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "plan.h"

namespace msg3d::ms_g3d::cuda {

// A and weight with their strides in elements, the others dense in memory as problem.h says.
struct Pointers {
  const void* x;       // 16-byte aligned
  const void* A;       // (K, tau*V, tau*V)
  const void* A_res;   // the learned residual, dense; null: A has it already
  const void* weight;  // (O, K, C)
  const void* bias;    // (O,); null: none
  int64_t A_stride[3];
  int64_t weight_stride[3];
};

// y = relu?(ms_g3d(x)). `plan` is plan_forward's and no kPlain; `workspace` holds plan.workspace_bytes of any content,
// 256-byte aligned. Returns CUDA's error code of the launches, 0 if there is none; nothing waits for the device.
int forward(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, bool relu, void* y,
            void* workspace, void* stream);

}  // namespace msg3d::ms_g3d::cuda
