#include "ms_g3d.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../kernels/ms_g3d/cpu/ms_g3d.h"
#include "ms_g3d_arguments.h"

namespace msg3d::binding {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

std::atomic<ms_g3d::OrderChoice> order_choice{ms_g3d::OrderChoice::kAuto};

template <typename T>
ms_g3d::Strided<T> strided(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
}

// ---- Threads: torch's own pool. Each worker is one index of a parallel_for, so nested calls run one after the other.

void run_on_torch_threads(int workers, void (*body)(void*, int), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

// ---- One pass: plan, lend memory and threads, call run(call) with a ms_g3d::Call of x's type.

template <typename Run>
void with_call(const ms_g3d::Problem& problem, ms_g3d::Pass pass, const Tensor& x, const Tensor& A,
               const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& gy,
               const Run& run) {
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    const Gemm<T>& kernels = gemm<T>(current_wide_isa());
    const ms_g3d::Plan plan = ms_g3d::make_plan(problem, pass, kernels.width, sizeof(T), order_choice.load());
    const Pool pool{
        static_cast<int>(std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(plan.tasks, 1))),
        &run_on_torch_threads};
    const Tensor memory =
        torch::stable::empty({plan.shared_bytes + pool.workers * plan.worker_bytes + ms_g3d::kAlignment},
                             ScalarType::Byte, std::nullopt, x.device());
    auto address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
    address = (address + ms_g3d::kAlignment - 1) / ms_g3d::kAlignment * ms_g3d::kAlignment;
    std::byte* const base = reinterpret_cast<std::byte*>(address);
    const ms_g3d::Workspace workspace{base, base + plan.shared_bytes};

    const Tensor dense_x = counted_channels_last(x);
    const std::optional<Tensor> dense_gy = gy ? std::optional(counted_channels_last(*gy)) : std::nullopt;
    const std::optional<Tensor> dense_bias = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
    const ms_g3d::Inputs<T> in{static_cast<const T*>(dense_x.const_data_ptr()), strided<T>(A), strided<T>(weight),
                               dense_bias ? static_cast<const T*>(dense_bias->const_data_ptr()) : nullptr,
                               dense_gy ? static_cast<const T*>(dense_gy->const_data_ptr()) : nullptr};
    run(ms_g3d::Call<T>{problem, plan, kernels, in, workspace, pool});
  };
  x.scalar_type() == ScalarType::Float ? typed(float()) : typed(double());
}

template <typename T>
T* output(const Tensor& tensor, const ms_g3d::Call<T>&) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace

Tensor ms_g3d(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
              int64_t window_size, int64_t window_stride, int64_t window_dilation, bool) {
  const ms_g3d::Problem p = check_inputs(x, A, weight, bias, window_size, window_stride, window_dilation, false);
  const Tensor y = empty_channels_last(x, {p.N, p.O, p.windows(), p.nodes()});
  with_call(p, ms_g3d::Pass::kForward, x, A, weight, bias, std::nullopt,
            [&](const auto& call) { ms_g3d::forward(call, output(y, call)); });
  return y;
}

Tensor ms_g3d_backward_input(const Tensor& gy, const Tensor& x, const Tensor& A, const Tensor& weight,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool) {
  const ms_g3d::Problem p =
      check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation, false);
  check_gy(gy, x, p);
  const Tensor grad_x = empty_channels_last(x, {p.N, p.C, p.T, p.V});
  with_call(p, ms_g3d::Pass::kBackwardInput, x, A, weight, std::nullopt, gy,
            [&](const auto& call) { ms_g3d::backward_input(call, output(grad_x, call)); });
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward_parameters(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                              const Tensor& weight, int64_t window_size,
                                                              int64_t window_stride, int64_t window_dilation,
                                                              bool need_A, bool need_weight, bool need_bias, bool) {
  const ms_g3d::Problem p =
      check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation, false);
  check_gy(gy, x, p);
  const auto empty = [&](bool needed, std::vector<int64_t> sizes) {
    return torch::stable::empty(needed ? sizes : std::vector<int64_t>{0}, x.scalar_type(), std::nullopt, x.device());
  };
  const Tensor grad_A = empty(need_A, {p.K, p.nodes(), p.nodes()}), grad_weight = empty(need_weight, {p.O, p.K, p.C});
  const Tensor grad_bias = empty(need_bias, {p.O});
  with_call(p, ms_g3d::Pass::kBackwardParameters, x, A, weight, std::nullopt, gy, [&](const auto& call) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.in.x)>>;
    const ms_g3d::ParameterGradients<T> gradients{need_A ? output(grad_A, call) : nullptr,
                                                  need_weight ? output(grad_weight, call) : nullptr,
                                                  need_bias ? output(grad_bias, call) : nullptr};
    ms_g3d::backward_parameters(call, gradients);
  });
  return {grad_A, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                   const Tensor& weight, int64_t window_size, int64_t window_stride,
                                                   int64_t window_dilation) {
  const ms_g3d::Problem p =
      check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation, false);
  check_gy(gy, x, p);
  const Tensor grad_x = empty_channels_last(x, {p.N, p.C, p.T, p.V});
  const auto empty = [&](std::vector<int64_t> sizes) {
    return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device());
  };
  const Tensor grad_A = empty({p.K, p.nodes(), p.nodes()}), grad_weight = empty({p.O, p.K, p.C});
  with_call(p, ms_g3d::Pass::kBackwardParameters, x, A, weight, std::nullopt, gy, [&](const auto& call) {
    ms_g3d::backward(call, {output(grad_A, call), output(grad_weight, call), nullptr}, output(grad_x, call));
  });
  return {grad_x, grad_A, grad_weight};
}

std::string ms_g3d_plan(std::string pass, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O,
                        int64_t window_size, int64_t window_stride, int64_t window_dilation, bool float64) {
  const ms_g3d::Problem p{N, C, T, V, K, O, window_size, window_stride, window_dilation};
  check(std::min({C, T, V, K, O, window_size, window_stride, window_dilation}) >= 1 && N >= 0 && p.windows() > 0,
        "plan: sizes of no valid problem; expected N >= 0, all others at least 1, and frames for one window");
  check(pass == "forward" || pass == "backward_input" || pass == "backward_parameters", "plan: pass is ", pass,
        "; expected forward, backward_input or backward_parameters");
  const auto kind = pass == "forward"          ? ms_g3d::Pass::kForward
                    : pass == "backward_input" ? ms_g3d::Pass::kBackwardInput
                                               : ms_g3d::Pass::kBackwardParameters;
  const int64_t width = float64 ? current_wide_isa().f64.width : current_wide_isa().f32.width;
  const ms_g3d::Plan plan = ms_g3d::make_plan(p, kind, width, float64 ? 8 : 4, order_choice.load());
  std::ostringstream json;
  json << "{\"order\": \"" << (plan.order == ms_g3d::Order::kProjectFirst ? "project_first" : "aggregate_first")
       << "\", \"forced\": " << (order_choice.load() == ms_g3d::OrderChoice::kAuto ? "false" : "true")
       << ", \"project_first_macs\": " << plan.project_macs << ", \"aggregate_first_macs\": " << plan.aggregate_macs
       << ", \"isa\": \"" << current_wide_isa().name << "\", \"panel_width\": " << plan.width
       << ", \"tasks\": " << plan.tasks << ", \"window_step\": " << plan.window_step
       << ", \"frame_step\": " << plan.frame_step << ", \"node_step\": " << plan.node_step
       << ", \"splits\": " << plan.splits << ", \"shared_bytes\": " << plan.shared_bytes
       << ", \"worker_bytes\": " << plan.worker_bytes << "}";
  return json.str();
}

bool ms_g3d_set_order(std::string name) {
  if (name == "auto") {
    order_choice = ms_g3d::OrderChoice::kAuto;
  } else if (name == "project_first") {
    order_choice = ms_g3d::OrderChoice::kProjectFirst;
  } else if (name == "aggregate_first") {
    order_choice = ms_g3d::OrderChoice::kAggregateFirst;
  } else {
    return false;
  }
  return true;
}

}  // namespace msg3d::binding
