// The doors of the plain path as the emulator's Python calls them: sizes are int64_t, dense arrays in the order of
// problem.h.
#include "../../csrc/kernels/ms_g3d/cuda/plain/plain.h"

using namespace msg3d::ms_g3d;

namespace {

plain::Pointers pointers(const Problem& p, const void* x, const void* A, const void* weight, const void* bias,
                         const void* gy) {
  const int64_t R = p.nodes();
  return {x, A, weight, bias, gy, {R * R, R, 1}, {p.K * p.C, p.C, 1}};
}

}  // namespace

extern "C" {

// type: 0 float32, 1 float64, 2 float16, 3 bfloat16.
int plain_forward(const void* x, const void* A, const void* weight, const void* bias, void* y, int64_t N, int64_t C,
                  int64_t T, int64_t V, int64_t K, int64_t O, int64_t window, int64_t stride, int64_t dilation,
                  int64_t type, int64_t relu) {
  const Problem p{N, C, T, V, K, O, window, stride, dilation};
  const auto in = pointers(p, x, A, weight, bias, nullptr);
  return plain::forward(p, static_cast<plain::Type>(type), in, relu != 0, y, nullptr);
}

int plain_backward_input(const void* A, const void* weight, const void* gy, void* grad_x, int64_t N, int64_t C,
                         int64_t T, int64_t V, int64_t K, int64_t O, int64_t window, int64_t stride, int64_t dilation,
                         int64_t type) {
  const Problem p{N, C, T, V, K, O, window, stride, dilation};
  const auto in = pointers(p, nullptr, A, weight, nullptr, gy);
  return plain::backward_input(p, static_cast<plain::Type>(type), in, grad_x, nullptr);
}

int plain_workspace(int64_t* bytes, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                    int64_t stride, int64_t dilation, int64_t type) {
  const Problem p{N, C, T, V, K, O, window, stride, dilation};
  *bytes = plain::plan_parameters(p, static_cast<plain::Type>(type), true, true, true).workspace_bytes;
  return 0;
}

int plain_backward_parameters(const void* x, const void* A, const void* weight, const void* gy, void* grad_A,
                              void* grad_weight, void* grad_bias, void* workspace, int64_t N, int64_t C, int64_t T,
                              int64_t V, int64_t K, int64_t O, int64_t window, int64_t stride, int64_t dilation,
                              int64_t type) {
  const Problem p{N, C, T, V, K, O, window, stride, dilation};
  const auto kind = static_cast<plain::Type>(type);
  const auto in = pointers(p, x, A, weight, nullptr, gy);
  return plain::backward_parameters(p, kind, in, plain::plan_parameters(p, kind, true, true, true), workspace, grad_A,
                                    grad_weight, grad_bias, nullptr);
}
}
