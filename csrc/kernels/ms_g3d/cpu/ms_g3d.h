// The three passes on the CPU, in either order of evaluation. The caller checks, allocates and lends its threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../gemm/gemm.h"
#include "../../parallel.h"
#include "../plan.h"
#include "../problem.h"

namespace msg3d::ms_g3d {

// plan.shared_bytes once and plan.worker_bytes for each worker of the pool, both aligned to kAlignment; contents do not
// matter.
struct Workspace {
  std::byte* shared;
  std::byte* workers;
};

template <typename T>
struct Call {
  const Problem& problem;
  const Plan& plan;
  const Gemm<T>& gemm;
  const Inputs<T>& in;
  const Workspace& workspace;
  const Pool& pool;
};

namespace project_first {
template <typename T>
void forward(const Call<T>& call, T* y);
template <typename T>
void backward_input(const Call<T>& call, T* grad_x);
template <typename T>
void backward_parameters(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x = nullptr);
}  // namespace project_first

// All gradients at once where a window is one frame.
namespace per_frame {
template <typename T>
void backward(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x);
}  // namespace per_frame

namespace aggregate_first {
template <typename T>
void forward(const Call<T>& call, T* y);
template <typename T>
void backward_input(const Call<T>& call, T* grad_x);
template <typename T>
void backward_parameters(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x = nullptr);
}  // namespace aggregate_first

template <typename T>
void forward(const Call<T>& call, T* y) {
  call.plan.order == Order::kProjectFirst ? project_first::forward(call, y) : aggregate_first::forward(call, y);
}
template <typename T>
void backward_input(const Call<T>& call, T* grad_x) {
  call.plan.order == Order::kProjectFirst ? project_first::backward_input(call, grad_x)
                                          : aggregate_first::backward_input(call, grad_x);
}
template <typename T>
void backward_parameters(const Call<T>& call, const ParameterGradients<T>& gradients) {
  call.plan.order == Order::kProjectFirst ? project_first::backward_parameters(call, gradients)
                                          : aggregate_first::backward_parameters(call, gradients);
}

// Both with plan for Pass::kBackwardParameters: cheaper than one after the other, because what they share is computed
// once. gradients.A and gradients.weight are wanted, the bias's are not.
template <typename T>
void backward(const Call<T>& call, const ParameterGradients<T>& gradients, T* grad_x) {
  const Problem& p = call.problem;
  if (call.plan.order == Order::kAggregateFirst) return aggregate_first::backward_parameters(call, gradients, grad_x);
  p.window == 1 && p.stride == 1 ? per_frame::backward(call, gradients, grad_x)
                                 : project_first::backward_parameters(call, gradients, grad_x);
}

}  // namespace msg3d::ms_g3d
