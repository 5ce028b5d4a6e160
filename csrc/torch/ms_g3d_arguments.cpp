#include "ms_g3d_arguments.h"

#include <atomic>

namespace msg3d::binding {
namespace {

std::atomic<int64_t> conversions{0};

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

std::string place(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

}  // namespace

ms_g3d::Problem check_inputs(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool half_too) {
  const auto check_count = [](const char* argument, int64_t value) {
    check(value >= 1, argument, " is ", value, "; expected at least 1");
  };
  check_count("window_size", window_size);
  check_count("window_stride", window_stride);
  check_count("window_dilation", window_dilation);

  const ScalarType type = x.scalar_type();
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  check(type == ScalarType::Float || type == ScalarType::Double || (half && half_too), "x is ", name(type),
        half_too ? "; expected float32, float64, float16 or bfloat16: convert it with .float()"
                 : "; expected float32 or float64: convert it with .float(), or run under torch.autocast");
  check(x.dim() == 4, "x has shape ", shape_of(x), "; expected (N, C, T, V): fold persons into N, one row per clip");
  check(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, "x has shape ", shape_of(x),
        "; expected (N, C, T, V) with at least one channel, frame and joint");

  ms_g3d::Problem p{};
  p.N = x.size(0), p.C = x.size(1), p.T = x.size(2), p.V = x.size(3);
  p.window = window_size, p.stride = window_stride, p.dilation = window_dilation;
  check(A.dim() == 3 && A.size(0) > 0 && A.size(1) == p.nodes() && A.size(2) == p.nodes(), "A has shape ", shape_of(A),
        "; expected (K, ", p.nodes(), ", ", p.nodes(), "), destination before source, for window_size ", window_size,
        " and the ", p.V, " joints of x: build it for this window and layout");
  p.K = A.size(0);
  check(weight.dim() == 3 && weight.size(0) > 0 && weight.size(1) == p.K && weight.size(2) == p.C, "weight has shape ",
        shape_of(weight), "; expected (O, ", p.K, ", ", p.C, ") for the ", p.K, " scales of A and the ", p.C,
        " channels of x: view the 1x1 convolution's weight as (O, K, C)");
  p.O = weight.size(0);
  check(p.windows() > 0, "x has ", p.T, " frames; expected at least 2 for window_size ", window_size,
        " and window_dilation ", window_dilation, ": pad x or use an odd window_size");

  const auto check_like_x = [&](const char* argument, const Tensor& tensor) {
    check(tensor.scalar_type() == type, argument, " is ", name(tensor.scalar_type()), "; expected ", name(type),
          " like x: convert it with .to(x.dtype)");
    check(tensor.device() == x.device(), argument, " is on ", place(tensor), "; expected ", place(x),
          " like x: move it with .to(x.device)");
  };
  check_like_x("A", A);
  check_like_x("weight", weight);
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == p.O, "bias has shape ", shape_of(*bias), "; expected (", p.O,
          ",) for the output channels of weight, or None");
    check_like_x("bias", *bias);
  }
  return p;
}

void check_gy(const Tensor& gy, const Tensor& x, const ms_g3d::Problem& p) {
  check(gy.dim() == 4 && gy.size(0) == p.N && gy.size(1) == p.O && gy.size(2) == p.windows() && gy.size(3) == p.nodes(),
        "gy has shape ", shape_of(gy), "; expected the output's (", p.N, ", ", p.O, ", ", p.windows(), ", ", p.nodes(),
        ")");
  check(gy.scalar_type() == x.scalar_type(), "gy is ", name(gy.scalar_type()), "; expected ", name(x.scalar_type()),
        " like x: convert it with .to(x.dtype)");
}

Tensor counted_channels_last(const Tensor& tensor) {
  if (is_channels_last(tensor) || tensor.numel() == 0) return tensor;
  ++conversions;
  return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

int64_t format_conversions() { return conversions.load(); }

}  // namespace msg3d::binding
