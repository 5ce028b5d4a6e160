// The backward passes of MS-G3D on the tensor cores: the doors that a binding calls, beside those of ms_g3d.h.
#pragma once

#include "../ms_g3d.h"
#include "plan.h"

namespace msg3d::ms_g3d::cuda {

// Where the gradients of the parameters go, dense; null where nothing is wanted.
struct Gradients {
  void* A;       // (K, tau*V, tau*V)
  void* weight;  // (O, K, C)
  Type type;     // of both: the inputs' or float32
};

// Both take plan_backward's plan of the problem, unless it refuses, and its workspace: any content, 256-byte aligned.
// gy is (N, T_out, tau*V, O), 16-byte aligned. They return CUDA's error code of their launches, 0 if there is none;
// nothing waits for the device. The gradient of the bias, a sum over rows, is the plain path's for every type.
int grad_input(const Problem& p, Type type, const BackwardPlan& plan, const Pointers& in, const void* gy, void* grad_x,
               void* workspace, void* stream);
int grad_parameters(const Problem& p, Type type, const BackwardPlan& plan, const Pointers& in, const void* gy,
                    const Gradients& out, void* workspace, void* stream);

}  // namespace msg3d::ms_g3d::cuda
