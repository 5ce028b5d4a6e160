// The doors of the backward pass as the emulator's Python calls them: sizes are int64_t, plans come back as numbers.
#include "../../csrc/kernels/ms_g3d/cuda/backward/backward.h"

using namespace msg3d::ms_g3d;

namespace {

struct Sizes {
  int64_t N, C, T, V, K, O, window, stride, dilation;
  Problem problem() const { return {N, C, T, V, K, O, window, stride, dilation}; }
};

cuda::Device device(int64_t shared_kb, int64_t multiprocessors) {
  return {80, static_cast<int>(multiprocessors), static_cast<int>(shared_kb * 1024)};
}

cuda::Type type_of(int64_t tf32, int64_t half) {
  return tf32 ? cuda::Type::kTf32 : half ? cuda::Type::kFloat16 : cuda::Type::kBFloat16;
}

cuda::Pointers pointers(const Sizes& s, const void* x, const void* A, const void* A_res, const void* weight,
                        bool transposed) {
  const int64_t R = s.window * s.V;
  cuda::Pointers in{x, A, A_res, weight, nullptr, {R * R, R, 1}, {s.K * s.C, s.C, 1}};
  if (transposed) {  // A as (K, source, destination), weight as (C, K, O)
    std::swap(in.A_stride[1], in.A_stride[2]);
    in.weight_stride[0] = 1, in.weight_stride[1] = s.O, in.weight_stride[2] = s.K * s.O;
  }
  return in;
}

}  // namespace

extern "C" {

// out: refused (1 input, 2 parameters), workspace bytes of both, then tile, warps and shared bytes of grad_x, of
// grad_weight, of grad_A; grad_x's team, slices and buffers of weights; grad_weight's slices, whether it loads gy and x
// ahead; grad_A's window groups, slices of nodes and pieces per tile;
// whether grad_x is a forward pass.
int backward_plan(int64_t* out, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                  int64_t stride, int64_t dilation, int64_t shared_kb, int64_t multiprocessors, int64_t tf32) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const auto plan = cuda::plan_backward(s.problem(), type_of(tf32, 0), device(shared_kb, multiprocessors));
  const auto &x = plan.grad_x, &w = plan.grad_weight;
  const auto& a = plan.grad_A;
  const int64_t values[] = {!plan.input_refused.empty() + 2 * !plan.parameters_refused.empty(),
                            plan.input_workspace_bytes,
                            plan.parameters_workspace_bytes,
                            x.tile,
                            x.warps,
                            x.shared_bytes,
                            w.tile,
                            w.warps,
                            w.shared_bytes,
                            a.tile,
                            a.warps,
                            a.shared_bytes,
                            x.team,
                            x.slices,
                            x.weight_buffers,
                            w.slices,
                            w.gy_bytes > 0,
                            w.x_bytes > 0,
                            w.x_offset > w.A_offset,
                            a.window_groups,
                            a.node_slices,
                            a.piece ? (a.slots + a.piece - 1) / a.piece : 0,
                            plan.as_forward.kernel != cuda::Kernel::kPlain};
  for (const int64_t value : values) *out++ = value;
  return 0;
}

int backward_input(const void* x, const void* A, const void* A_res, const void* weight, const void* gy, void* grad_x,
                   void* workspace, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                   int64_t stride, int64_t dilation, int64_t shared_kb, int64_t multiprocessors, int64_t tf32, int64_t half,
                   int64_t transposed) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const auto plan = cuda::plan_backward(s.problem(), type_of(tf32, half), device(shared_kb, multiprocessors));
  return cuda::grad_input(s.problem(), type_of(tf32, half), plan, pointers(s, x, A, A_res, weight, transposed), gy, grad_x,
                          workspace, nullptr);
}

int backward_parameters(const void* x, const void* A, const void* A_res, const void* weight, const void* gy,
                        void* grad_A, void* grad_weight, void* workspace, int64_t N, int64_t C, int64_t T, int64_t V,
                        int64_t K, int64_t O, int64_t window, int64_t stride, int64_t dilation, int64_t shared_kb,
                        int64_t multiprocessors, int64_t tf32, int64_t half, int64_t transposed, int64_t in_float) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const auto plan = cuda::plan_backward(s.problem(), type_of(tf32, half), device(shared_kb, multiprocessors));
  const cuda::Gradients out{grad_A, grad_weight, in_float ? cuda::Type::kFloat32 : type_of(tf32, half)};
  return cuda::grad_parameters(s.problem(), type_of(tf32, half), plan, pointers(s, x, A, A_res, weight, transposed), gy, out,
                               workspace, nullptr);
}
}
