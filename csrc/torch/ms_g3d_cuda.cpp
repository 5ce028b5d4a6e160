#include "ms_g3d_cuda.h"

#include <algorithm>

#include "../kernels/ms_g3d/cuda/backward/backward.h"
#include "../kernels/ms_g3d/cuda/ms_g3d.h"
#include "../kernels/ms_g3d/cuda/plain/plain.h"
#include "../kernels/ms_g3d/cuda/statistics.h"
#include "gpu_call.h"
#include "ms_g3d_arguments.h"
#include "ms_g3d_cuda_plan.h"

namespace msg3d::binding::gpu {
namespace {

using ms_g3d::Problem;
using ms_g3d::cuda::Type;

constexpr int64_t kAlignment = 256;  // of the workspace, bytes

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return Type::kFloat64;
    case ScalarType::Half:
      return Type::kFloat16;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      return Type::kFloat32;
  }
}

// What the tensor cores may compute in: float32 in tf32 where the caller allows it.
Type product_type(const Tensor& x, bool tf32) {
  const Type type = type_of(x);
  return type == Type::kFloat32 && tf32 ? Type::kTf32 : type;
}

void launched(int status, const char* what) { gpu::launched(status, "ms_g3d", what); }

ms_g3d::cuda::Device limits_of(const OnDevice& device) {
  const DeviceLimits limits = gpu::limits_of(device, "ms_g3d");
  return {limits.arch, limits.multiprocessors, limits.shared_bytes};
}

Problem checked(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                int64_t window_size, int64_t window_stride, int64_t window_dilation) {
  const Problem p = check_inputs(x, A, weight, bias, window_size, window_stride, window_dilation, true);
  const int64_t rows = std::max(p.N * p.T * (p.V + 4), p.N * p.windows() * (p.nodes() + 4));
  check(std::max({rows, p.K * p.nodes() * p.nodes(), p.O * p.K * p.C}) < (int64_t{1} << 31), "x has shape ",
        shape_of(x), ", which makes ", rows, " rows; a GPU takes less than 2^31 at once: cut the batch");
  return p;
}

Tensor activation(const Tensor& tensor) { return aligned(counted_channels_last(tensor)); }

// Scratch memory from torch's caching allocator: later work of this stream gets it again in order.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes)
      : tensor_(torch::stable::empty({bytes + kAlignment}, ScalarType::Byte, std::nullopt, like.device())) {}
  void* get() const {
    const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  Tensor tensor_;
};

ms_g3d::cuda::Pointers pointers(const Tensor& x, const Tensor& A, const Tensor& weight, const void* bias) {
  return {x.const_data_ptr(),
          A.const_data_ptr(),
          nullptr,
          weight.const_data_ptr(),
          bias,
          {A.stride(0), A.stride(1), A.stride(2)},
          {weight.stride(0), weight.stride(1), weight.stride(2)}};
}

ms_g3d::plain::Pointers plain_pointers(const Tensor& x, const Tensor& A, const Tensor& weight, const void* bias,
                                       const void* gy) {
  return {x.const_data_ptr(),
          A.const_data_ptr(),
          weight.const_data_ptr(),
          bias,
          gy,
          {A.stride(0), A.stride(1), A.stride(2)},
          {weight.stride(0), weight.stride(1), weight.stride(2)}};
}

// What weights are packed into for a plan: the bytes that the caller kept, or new ones.
class PackedWeights {
 public:
  PackedWeights(const Tensor& x, const ms_g3d::cuda::ForwardPlan& plan, const std::optional<Tensor>& kept,
                int64_t layout)
      : kept_(kept && layout == plan.layout()), own_(x, kept_ ? 0 : plan.workspace_bytes) {
    if (!kept_) return;
    check(kept->scalar_type() == ScalarType::Byte && kept->dim() == 1 && kept->is_contiguous() &&
              kept->numel() == plan.workspace_bytes && kept->device() == x.device() && is_aligned(*kept),
          "packed has shape ", shape_of(*kept), "; expected (", plan.workspace_bytes,
          ",) bytes on the device of x, as ms_g3d_pack returns them");
    bytes_ = kept->const_data_ptr();
  }

  int forward(const Problem& p, Type type, const ms_g3d::cuda::ForwardPlan& plan, const ms_g3d::cuda::Pointers& in,
              bool relu, void* y, void* stream, const ms_g3d::cuda::Collapse* collapse = nullptr,
              void* moments = nullptr) const {
    if (kept_) return ms_g3d::cuda::run(p, type, plan, in, relu, y, bytes_, stream, collapse, moments);
    return ms_g3d::cuda::forward(p, type, plan, in, relu, y, own_.get(), stream, collapse, moments);
  }

 private:
  bool kept_;
  Workspace own_;
  const void* bytes_ = nullptr;
};

ms_g3d::cuda::Collapse collapse_pointers(const Tensor& fold, const std::optional<Tensor>& bias, bool accumulate) {
  return {fold.const_data_ptr(),
          bias ? bias->const_data_ptr() : nullptr,
          {fold.stride(0), fold.stride(1), fold.stride(2)},
          accumulate};
}

void check_fold(const Tensor& fold, const Tensor& x, const Problem& p) {
  check(fold.dim() == 3 && fold.size(1) == p.O && fold.size(2) == p.window, "fold has shape ", shape_of(fold),
        "; expected (channels, ", p.O, ", ", p.window, "), the weight that folds the slots of a window into one");
  check(fold.scalar_type() == x.scalar_type() && fold.device() == x.device(),
        "fold must have the type and the device of x");
}

// What a forward pass leaves of y's statistics, and their merging.
class Moments {
 public:
  Moments(const Tensor& x, const ms_g3d::PartRows& rows, int64_t O)
      : rows_(rows), O_(O), type_(type_of(x)), parts_(x, ms_g3d::plain::moments_bytes(rows, O, type_)) {}
  void* get() const { return parts_.get(); }
  Tensor merged(const Tensor& x, void* stream) const {
    const ScalarType type = type_ == Type::kFloat64 ? ScalarType::Double : ScalarType::Float;
    const Tensor statistics = torch::stable::empty({2, O_}, type, std::nullopt, x.device());
    launched(ms_g3d::plain::merge_statistics(rows_, O_, type_, parts_.get(), statistics.mutable_data_ptr(), stream),
             "the merging of statistics");
    return statistics;
  }

 private:
  ms_g3d::PartRows rows_;
  int64_t O_;
  Type type_;
  Workspace parts_;
};

// y, and where `statistics` are wanted those of its channels.
Tensor forward(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
               int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32, bool relu,
               const std::optional<Tensor>& packed = std::nullopt, int64_t layout = 0,
               std::optional<Tensor>* statistics = nullptr) {
  const Problem p = checked(x, A, weight, bias, window_size, window_stride, window_dilation);
  check(!statistics || p.N > 0, "x has shape ", shape_of(x), "; statistics need at least one clip");
  const OnDevice device(x);
  const Tensor y = empty_channels_last(x, {p.N, p.O, p.windows(), p.nodes()});
  if (p.N == 0) return y;
  const Type type = product_type(x, tf32);
  const Tensor dense_x = activation(x);
  const std::optional<Tensor> dense_bias = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const void* const bias_data = dense_bias ? dense_bias->const_data_ptr() : nullptr;
  const auto plan = planned_forward(p, type, limits_of(device), 0);
  const bool plain = plan.kernel == ms_g3d::cuda::Kernel::kPlain;
  std::optional<Moments> moments;
  if (statistics) moments.emplace(x, plain ? ms_g3d::plain::part_rows(p) : ms_g3d::cuda::part_rows(p, plan), p.O);
  void* const parts = moments ? moments->get() : nullptr;
  if (plain) {
    const auto in = plain_pointers(dense_x, A, weight, bias_data, nullptr);
    launched(ms_g3d::plain::forward(p, type_of(x), in, relu, y.mutable_data_ptr(), device.stream(), parts),
             "the forward pass");
  } else {
    const auto in = pointers(dense_x, A, weight, bias_data);
    const PackedWeights weights(x, plan, packed, layout);
    launched(weights.forward(p, type, plan, in, relu, y.mutable_data_ptr(), device.stream(), nullptr, parts),
             "the forward pass");
  }
  if (moments) *statistics = moments->merged(x, device.stream());
  return y;
}

}  // namespace

std::string device_limits_of(int64_t index) {
  DeviceLimits limits;
  gpu::launched(device_limits(static_cast<int>(index), limits), "device_limits", "a query of the device");
  std::ostringstream json;
  json << "{\"arch\": " << limits.arch << ", \"multiprocessors\": " << limits.multiprocessors
       << ", \"shared_bytes\": " << limits.shared_bytes << "}";
  return json.str();
}

Tensor ms_g3d(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
              int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32) {
  return forward(x, A, weight, bias, window_size, window_stride, window_dilation, tf32, false);
}

std::tuple<Tensor, Tensor> ms_g3d_statistics(const Tensor& x, const Tensor& A, const Tensor& weight,
                                             const std::optional<Tensor>& bias, int64_t window_size,
                                             int64_t window_stride, int64_t window_dilation, bool tf32) {
  std::optional<Tensor> statistics;
  const Tensor y = forward(x, A, weight, bias, window_size, window_stride, window_dilation, tf32, false, std::nullopt,
                           0, &statistics);
  return {y, *statistics};
}

int64_t ms_g3d_layout(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& fold,
                      int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32) {
  const Problem p = checked(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  if (fold) check_fold(*fold, x, p);
  if (p.N == 0) return 0;
  return planned_forward(p, product_type(x, tf32), limits_of(OnDevice(x)), fold ? fold->size(0) : 0).layout();
}

Tensor ms_g3d_pack(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& fold,
                   int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32) {
  const Problem p = checked(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  if (fold) check_fold(*fold, x, p);
  const OnDevice device(x);
  const Type type = product_type(x, tf32);
  const auto plan = planned_forward(p, type, limits_of(device), fold ? fold->size(0) : 0);
  check(plan.layout() != 0, "nothing to pack, no kernel of the tensor cores runs: ", plan.refused);
  const Tensor packed = torch::stable::empty({plan.workspace_bytes}, ScalarType::Byte, std::nullopt, x.device());
  const auto collapse = fold ? collapse_pointers(*fold, std::nullopt, false) : ms_g3d::cuda::Collapse{};
  launched(ms_g3d::cuda::pack(p, type, plan, pointers(x, A, weight, nullptr), packed.mutable_data_ptr(),
                              device.stream(), fold ? &collapse : nullptr),
           "the packing of the weights");
  return packed;
}

Tensor ms_g3d_relu(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                   int64_t window_size, int64_t window_stride, int64_t window_dilation,
                   const std::optional<Tensor>& packed, int64_t layout, bool tf32) {
  return forward(x, A, weight, bias, window_size, window_stride, window_dilation, tf32, true, packed, layout);
}

void ms_g3d_collapse(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& fold, const std::optional<Tensor>& fold_bias, Tensor& out, bool accumulate,
                     bool relu, int64_t window_size, int64_t window_stride, int64_t window_dilation,
                     const std::optional<Tensor>& packed, int64_t layout, bool tf32) {
  const Problem p = checked(x, A, weight, bias, window_size, window_stride, window_dilation);
  check_fold(fold, x, p);
  check(out.dim() == 4 && out.size(0) == p.N && out.size(1) == fold.size(0) && out.size(2) == p.windows() &&
            out.size(3) == p.V && is_channels_last(out),
        "out has shape ", shape_of(out), "; expected (", p.N, ", ", fold.size(0), ", ", p.windows(), ", ", p.V,
        "), channels_last");
  check(out.scalar_type() == x.scalar_type() &&
            (!fold_bias || (fold_bias->scalar_type() == x.scalar_type() && fold_bias->is_contiguous())),
        "the bias of fold and out must have the type of x");
  const OnDevice device(x);
  const Type type = product_type(x, tf32);
  const auto plan = planned_forward(p, type, limits_of(device), fold.size(0));
  check(plan.kernel != ms_g3d::cuda::Kernel::kPlain, "no kernel does the collapse too: ", plan.refused,
        "; ms_g3d_relu and a convolution do");
  if (p.N == 0) return;
  const Tensor dense_x = activation(x);
  const std::optional<Tensor> dense_bias = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const auto in = pointers(dense_x, A, weight, dense_bias ? dense_bias->const_data_ptr() : nullptr);
  const auto collapse = collapse_pointers(fold, fold_bias, accumulate);
  const PackedWeights weights(x, plan, packed, layout);
  launched(weights.forward(p, type, plan, in, relu, out.mutable_data_ptr(), device.stream(), &collapse),
           "the forward pass with the collapse");
}

Tensor ms_g3d_backward_input(const Tensor& gy, const Tensor& x, const Tensor& A, const Tensor& weight,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32) {
  const Problem p = checked(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  check_gy(gy, x, p);
  const OnDevice device(x);
  const Tensor grad_x = empty_channels_last(x, {p.N, p.C, p.T, p.V});
  if (p.N == 0) return grad_x;
  const Tensor dense_gy = activation(gy);
  const Type type = product_type(x, tf32);
  const auto plan = planned_backward(p, type, limits_of(device));
  int status;
  if (plan.input_refused.empty()) {
    const Workspace workspace(x, plan.input_workspace_bytes);
    status = ms_g3d::cuda::grad_input(p, type, plan, pointers(x, A, weight, nullptr), dense_gy.const_data_ptr(),
                                      grad_x.mutable_data_ptr(), workspace.get(), device.stream());
  } else {
    const auto in = plain_pointers(x, A, weight, nullptr, dense_gy.const_data_ptr());
    status = ms_g3d::plain::backward_input(p, type_of(x), in, grad_x.mutable_data_ptr(), device.stream());
  }
  launched(status, "the backward pass for x");
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward_parameters(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                              const Tensor& weight, int64_t window_size,
                                                              int64_t window_stride, int64_t window_dilation,
                                                              bool need_A, bool need_weight, bool need_bias,
                                                              bool tf32) {
  const Problem p = checked(x, A, weight, std::nullopt, window_size, window_stride, window_dilation);
  check_gy(gy, x, p);
  const OnDevice device(x);
  const auto output = [&](bool needed, std::vector<int64_t> sizes) {
    return empty_like_type(x, needed ? sizes : std::vector<int64_t>{0});
  };
  const Tensor grad_A = output(need_A, {p.K, p.nodes(), p.nodes()});
  const Tensor grad_weight = output(need_weight, {p.O, p.K, p.C}), grad_bias = output(need_bias, {p.O});
  const auto data = [](bool needed, const Tensor& tensor) { return needed ? tensor.mutable_data_ptr() : nullptr; };
  const Tensor dense_x = activation(x), dense_gy = activation(gy);
  const Type type = type_of(x);
  const auto tensor_cores = planned_backward(p, product_type(x, tf32), limits_of(device));
  const bool by_tensor_cores = tensor_cores.parameters_refused.empty() && p.N > 0 && (need_A || need_weight);
  const auto plain =
      ms_g3d::plain::plan_parameters(p, type, need_A && !by_tensor_cores, need_weight && !by_tensor_cores, need_bias);
  const Workspace workspace(x, std::max(plain.workspace_bytes, tensor_cores.parameters_workspace_bytes));
  int status = 0;
  if (by_tensor_cores) {
    const ms_g3d::cuda::Gradients out{data(need_A, grad_A), data(need_weight, grad_weight), type};
    status =
        ms_g3d::cuda::grad_parameters(p, product_type(x, tf32), tensor_cores, pointers(dense_x, A, weight, nullptr),
                                      dense_gy.const_data_ptr(), out, workspace.get(), device.stream());
  }
  if (!status) {
    status = ms_g3d::plain::backward_parameters(
        p, type, plain_pointers(dense_x, A, weight, nullptr, dense_gy.const_data_ptr()), plain, workspace.get(),
        data(need_A && !by_tensor_cores, grad_A), data(need_weight && !by_tensor_cores, grad_weight),
        data(need_bias, grad_bias), device.stream());
  }
  launched(status, "the backward pass for the parameters");
  return {grad_A, grad_weight, grad_bias};
}

}  // namespace msg3d::binding::gpu
