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

namespace msg3d::binding {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

std::atomic<int64_t> conversions{0};
std::atomic<ms_g3d::OrderChoice> order_choice{ms_g3d::OrderChoice::kAuto};

// ---- Errors: the argument, what was given, what was expected, what to do. ops.py says the same in the same words.

template <typename... Words>
void check(bool condition, const Words&... words) {
  if (condition) return;
  std::ostringstream line;
  line << "ms_g3d: ";
  (line << ... << words);
  throw std::runtime_error(line.str());
}

std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

const char* name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return torch::headeronly::toString(type);
  }
}

ms_g3d::Problem check_inputs(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation) {
  const auto check_count = [](const char* argument, int64_t value) {
    check(value >= 1, argument, " is ", value, "; expected at least 1");
  };
  check_count("window_size", window_size);
  check_count("window_stride", window_stride);
  check_count("window_dilation", window_dilation);

  const ScalarType type = x.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "x is ", name(type),
        "; expected float32 or float64: convert it with .float(), or run under torch.autocast");
  check(x.dim() == 4, "x has shape ", shape(x), "; expected (N, C, T, V): fold persons into N, one row per clip");
  check(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, "x has shape ", shape(x),
        "; expected (N, C, T, V) with at least one channel, frame and joint");

  ms_g3d::Problem p{};
  p.N = x.size(0), p.C = x.size(1), p.T = x.size(2), p.V = x.size(3);
  p.window = window_size, p.stride = window_stride, p.dilation = window_dilation;
  check(A.dim() == 3 && A.size(0) > 0 && A.size(1) == p.nodes() && A.size(2) == p.nodes(), "A has shape ", shape(A),
        "; expected (K, ", p.nodes(), ", ", p.nodes(), "), destination before source, for window_size ", window_size,
        " and the ", p.V, " joints of x: build it for this window and layout");
  p.K = A.size(0);
  check(weight.dim() == 3 && weight.size(0) > 0 && weight.size(1) == p.K && weight.size(2) == p.C, "weight has shape ",
        shape(weight), "; expected (O, ", p.K, ", ", p.C, ") for the ", p.K, " scales of A and the ", p.C,
        " channels of x: view the 1x1 convolution's weight as (O, K, C)");
  p.O = weight.size(0);
  check(p.windows() > 0, "x has ", p.T, " frames; expected at least 2 for window_size ", window_size,
        " and window_dilation ", window_dilation, ": pad x or use an odd window_size");

  const auto check_like_x = [&](const char* argument, const Tensor& tensor) {
    check(tensor.scalar_type() == type, argument, " is ", name(tensor.scalar_type()), "; expected ", name(type),
          " like x: convert it with .to(x.dtype)");
  };
  check_like_x("A", A);
  check_like_x("weight", weight);
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == p.O, "bias has shape ", shape(*bias), "; expected (", p.O,
          ",) for the output channels of weight, or None");
    check_like_x("bias", *bias);
  }
  return p;
}

void check_gy(const Tensor& gy, const Tensor& x, const ms_g3d::Problem& p) {
  check(gy.dim() == 4 && gy.size(0) == p.N && gy.size(1) == p.O && gy.size(2) == p.windows() && gy.size(3) == p.nodes(),
        "gy has shape ", shape(gy), "; expected the output's (", p.N, ", ", p.O, ", ", p.windows(), ", ", p.nodes(),
        ")");
  check(gy.scalar_type() == x.scalar_type(), "gy is ", name(gy.scalar_type()), "; expected ", name(x.scalar_type()),
        " like x: convert it with .to(x.dtype)");
}

// ---- Memory

Tensor channels_last(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  const int64_t dense[4] = {height * width * channels, 1, width * channels, channels};
  bool as_it_is = true;
  for (int64_t i = 0; i < 4; ++i) as_it_is &= tensor.size(i) <= 1 || tensor.stride(i) == dense[i];
  if (as_it_is || tensor.numel() == 0) return tensor;
  ++conversions;
  return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

Tensor empty_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

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
    const Gemm<T>& kernels = gemm<T>(current_isa());
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

    const Tensor dense_x = channels_last(x);
    const std::optional<Tensor> dense_gy = gy ? std::optional(channels_last(*gy)) : std::nullopt;
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
              int64_t window_size, int64_t window_stride, int64_t window_dilation) {
  const ms_g3d::Problem p = check_inputs(x, A, weight, bias, window_size, window_stride, window_dilation);
  const Tensor y = empty_channels_last(x, {p.N, p.O, p.windows(), p.nodes()});
  with_call(p, ms_g3d::Pass::kForward, x, A, weight, bias, std::nullopt,
            [&](const auto& call) { ms_g3d::forward(call, output(y, call)); });
  return y;
}

Tensor ms_g3d_backward_input(const Tensor& gy, const Tensor& x, const Tensor& A, const Tensor& weight,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation) {
  const ms_g3d::Problem p = check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  check_gy(gy, x, p);
  const Tensor grad_x = empty_channels_last(x, {p.N, p.C, p.T, p.V});
  with_call(p, ms_g3d::Pass::kBackwardInput, x, A, weight, std::nullopt, gy,
            [&](const auto& call) { ms_g3d::backward_input(call, output(grad_x, call)); });
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward_parameters(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                              const Tensor& weight, int64_t window_size,
                                                              int64_t window_stride, int64_t window_dilation,
                                                              bool need_A, bool need_weight, bool need_bias) {
  const ms_g3d::Problem p = check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
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
  const ms_g3d::Problem p = check_inputs(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  const int64_t width = x.scalar_type() == ScalarType::Float ? current_isa().f32.width : current_isa().f64.width;
  const auto pass = ms_g3d::Pass::kBackwardParameters;
  if (ms_g3d::make_plan(p, pass, width, x.element_size(), order_choice.load()).order != ms_g3d::Order::kProjectFirst) {
    const auto [grad_A, grad_weight, _] =
        ms_g3d_backward_parameters(gy, x, A, weight, window_size, window_stride, window_dilation, true, true, false);
    return {ms_g3d_backward_input(gy, x, A, weight, window_size, window_stride, window_dilation), grad_A, grad_weight};
  }
  check_gy(gy, x, p);
  const Tensor grad_x = empty_channels_last(x, {p.N, p.C, p.T, p.V});
  const auto empty = [&](std::vector<int64_t> sizes) {
    return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device());
  };
  const Tensor grad_A = empty({p.K, p.nodes(), p.nodes()}), grad_weight = empty({p.O, p.K, p.C});
  with_call(p, pass, x, A, weight, std::nullopt, gy, [&](const auto& call) {
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
  const int64_t width = float64 ? current_isa().f64.width : current_isa().f32.width;
  const ms_g3d::Plan plan = ms_g3d::make_plan(p, kind, width, float64 ? 8 : 4, order_choice.load());
  std::ostringstream json;
  json << "{\"order\": \"" << (plan.order == ms_g3d::Order::kProjectFirst ? "project_first" : "aggregate_first")
       << "\", \"forced\": " << (order_choice.load() == ms_g3d::OrderChoice::kAuto ? "false" : "true")
       << ", \"project_first_macs\": " << plan.project_macs << ", \"aggregate_first_macs\": " << plan.aggregate_macs
       << ", \"isa\": \"" << current_isa().name << "\", \"panel_width\": " << plan.width
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

int64_t format_conversions() { return conversions.load(); }

}  // namespace msg3d::binding
