#include "mstcn_cuda.h"

#include <algorithm>

#include "../kernels/mstcn/cuda/temporal.h"
#include "gpu_call.h"

namespace msg3d::binding::gpu {
namespace {

constexpr const char* kOp = "mstcn_folded";

mstcn::cuda::Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return mstcn::cuda::Type::kFloat64;
    case ScalarType::Half:
      return mstcn::cuda::Type::kFloat16;
    case ScalarType::BFloat16:
      return mstcn::cuda::Type::kBFloat16;
    default:
      return mstcn::cuda::Type::kFloat32;
  }
}

}  // namespace

void mstcn_folded(const Tensor& h, const Tensor& weight, const Tensor& scale, Tensor& out,
                  std::vector<int64_t> dilations, int64_t stride, bool relu, const std::optional<Tensor>& h_bias,
                  const std::optional<Tensor>& out_bias) {
  require(h.dim() == 4 && is_channels_last(h), kOp, ": h has shape ", shape_of(h),
          "; expected (N, channels, T, V), channels_last");
  const ScalarType type = h.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
              type == ScalarType::BFloat16,
          kOp, ": h is ", torch::headeronly::toString(type), "; expected float32, float64, float16 or bfloat16");
  for (const Tensor* tensor : {&weight, &scale, static_cast<const Tensor*>(&out)}) {
    require(tensor->scalar_type() == type && tensor->device() == h.device(), kOp,
            ": weight, scale and out must have the type and the device of h");
  }
  const int64_t branches = static_cast<int64_t>(dilations.size());
  require(branches >= 1 && branches <= mstcn::cuda::kMostBranches && stride >= 1 &&
              std::all_of(dilations.begin(), dilations.end(), [](int64_t d) { return d >= 1; }),
          kOp, ": expected 1 to ", mstcn::cuda::kMostBranches, " dilations and a stride, all positive");
  require(weight.dim() == 4 && weight.is_contiguous() && weight.size(0) == branches && weight.size(1) % 2 == 1 &&
              weight.size(2) == weight.size(3) && weight.size(2) * (branches + 1) == h.size(1),
          kOp, ": weight has shape ", shape_of(weight), "; expected (", branches, ", taps, w, w), contiguous, with ",
          branches + 1, " times w the channels of h, and an odd number of taps");
  const int64_t width = weight.size(2);
  require(scale.dim() == 1 && scale.is_contiguous() && scale.size(0) == width, kOp, ": scale has shape ",
          shape_of(scale), "; expected (", width, ",), contiguous");
  const auto fits = [&](const std::optional<Tensor>& bias, int64_t channels) {
    return !bias || (bias->dim() == 1 && bias->is_contiguous() && bias->size(0) == channels &&
                     bias->scalar_type() == type && bias->device() == h.device());
  };
  require(h_bias.has_value() == out_bias.has_value() && fits(h_bias, h.size(1)) && fits(out_bias, out.size(1)), kOp,
          ": expected h_bias (", h.size(1), ",) and out_bias (", out.size(1),
          ",), contiguous, with the type and the device of h, or neither");
  require(h.size(2) >= 1, kOp, ": h has no frames");
  mstcn::cuda::TemporalProblem p{h.size(0),
                                 h.size(2),
                                 h.size(3),
                                 width,
                                 0,
                                 static_cast<int>(branches),
                                 static_cast<int>(weight.size(1)),
                                 static_cast<int>(stride),
                                 {},
                                 relu};
  require(out.dim() == 4 && is_channels_last(out) && out.size(0) == p.N && out.size(1) >= h.size(1) &&
              out.size(2) == p.windows() && out.size(3) == p.V && is_aligned(out),
          kOp, ": out has shape ", shape_of(out), "; expected (", p.N, ", at least ", h.size(1), ", ", p.windows(),
          ", ", p.V, "), channels_last, at a multiple of 16 bytes");
  require(p.N * p.T * p.V < (int64_t{1} << 31), kOp, ": h has shape ", shape_of(h),
          "; a GPU takes less than 2^31 rows at once: cut the batch");
  p.O = out.size(1);
  for (int64_t b = 0; b < branches; ++b) p.dilations[b] = static_cast<int>(dilations[b]);
  const OnDevice device(h);
  if (p.rows() == 0) return;
  const Tensor dense_h = aligned(h), dense_weight = aligned(weight), dense_scale = aligned(scale);
  launched(mstcn::cuda::temporal(p, type_of(h), limits_of(device, kOp).arch, dense_h.const_data_ptr(),
                                 dense_weight.const_data_ptr(), dense_scale.const_data_ptr(), out.mutable_data_ptr(),
                                 device.stream(), h_bias ? h_bias->const_data_ptr() : nullptr,
                                 out_bias ? out_bias->const_data_ptr() : nullptr),
           kOp, "the temporal branches");
}

}  // namespace msg3d::binding::gpu
