#include "mstcn.h"

#include "../kernels/mstcn/mstcn.h"
#include "tensors.h"

namespace msg3d::binding {
namespace {

constexpr char kName[] = "mstcn";

// Contiguous tensors that live as long as the pointers into them.
struct Arguments {
  Tensor x, weight_in, weight_time, norm_p, norm_z;
  std::optional<Tensor> weight_residual, norm_r, multiplicity;
  mstcn::Problem problem;

  Arguments(const Tensor& x_any, const Tensor& in, const Tensor& time, const std::optional<Tensor>& residual,
            const Tensor& p, const Tensor& z, const std::optional<Tensor>& r, const std::optional<Tensor>& copies,
            std::vector<int64_t> dilations, int64_t stride, bool identity, bool act, double eps)
      : x(x_any),
        weight_in(torch::stable::contiguous(in)),
        weight_time(torch::stable::contiguous(time)),
        norm_p(torch::stable::contiguous(p)),
        norm_z(torch::stable::contiguous(z)) {
    const ScalarType type = x.scalar_type();
    require(x.is_cpu() && (type == ScalarType::Float || type == ScalarType::Double), kName,
            ": x must be float32 or float64 on the CPU");
    require(x.dim() == 4 && x.numel() > 0, kName, ": x has shape ", shape_of(x), "; expected (N, C, T, V), not empty");
    require(stride >= 1 && !dilations.empty(), kName, ": expected a stride of at least 1 and at least one dilation");
    for (const int64_t dilation : dilations) require(dilation >= 1, kName, ": dilations must be at least 1");
    x = channels_last(x);
    const int64_t O = weight_in.size(0), branches = static_cast<int64_t>(dilations.size()) + 2;
    require(weight_time.dim() == 4 && O >= branches, kName, ": weight_time has shape ", shape_of(weight_time),
            "; expected (dilations, b, b, taps), and at least one output channel a branch");
    problem = {x.size(0),           x.size(2), x.size(3), x.size(1), O,  stride,
               weight_time.size(3), dilations, identity,  act,       eps};
    require(problem.taps % 2 == 1, kName, ": ", problem.taps, " taps; expected an odd number");
    require(!identity || (!residual && problem.C == O && stride == 1), kName,
            ": x is its own residual only with stride 1, as many output channels and no weight_residual");
    require_shape(kName, "weight_in", weight_in, {O, problem.C}, type);
    require_shape(kName, "weight_time", weight_time, {branches - 2, problem.branch(), problem.branch(), problem.taps},
                  type);
    require_shape(kName, "norm_p", norm_p, {2, problem.entry()}, type);
    require_shape(kName, "norm_z", norm_z, {2, O}, type);
    require(residual.has_value() == r.has_value(), kName, ": weight_residual and norm_r belong together");
    if (residual) {
      weight_residual = torch::stable::contiguous(*residual), norm_r = torch::stable::contiguous(*r);
      require_shape(kName, "weight_residual", *weight_residual, {O, problem.C}, type);
      require_shape(kName, "norm_r", *norm_r, {2, O}, type);
    }
    if (copies) {
      multiplicity = torch::stable::contiguous(*copies);
      require_shape(kName, "multiplicity", *multiplicity, {problem.N}, type);
    }
  }

  template <typename T>
  mstcn::Inputs<T> inputs() const {
    return {data_of<T>(x),      data_of<T>(weight_in), data_of<T>(weight_time), data_of<T>(weight_residual),
            data_of<T>(norm_p), data_of<T>(norm_z),    data_of<T>(norm_r),      data_of<T>(multiplicity)};
  }
};

template <typename T>
mstcn::Saved<T> saved_in(const mstcn::Problem& problem, const Tensor& p, const Tensor& z, const Tensor& r,
                         const Tensor& statistics) {
  double* numbers = mutable_data_of<double>(statistics);
  return {mutable_data_of<T>(p),         mutable_data_of<T>(z),
          mutable_data_of<T>(r),         numbers,
          numbers + 2 * problem.entry(), numbers + 2 * (problem.entry() + problem.O)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mstcn(
    const Tensor& x, const Tensor& weight_in, const Tensor& weight_time, const std::optional<Tensor>& weight_residual,
    const Tensor& norm_p, const Tensor& norm_z, const std::optional<Tensor>& norm_r,
    const std::optional<Tensor>& multiplicity, std::vector<int64_t> dilations, int64_t stride, bool identity, bool act,
    double eps) {
  const Arguments arguments(x, weight_in, weight_time, weight_residual, norm_p, norm_z, norm_r, multiplicity, dilations,
                            stride, identity, act, eps);
  const mstcn::Problem& problem = arguments.problem;
  const int64_t N = problem.N, T_out = problem.frames_out(), V = problem.V, O = problem.O;
  const Tensor y = empty_channels_last(x, {N, O, T_out, V}), z = empty_channels_last(x, {N, O, T_out, V});
  const Tensor p = empty_channels_last(x, {N, problem.entry(), problem.T, V});
  const Tensor r = weight_residual ? empty_channels_last(x, {N, O, T_out, V}) : empty_like_type(x, {0});
  const Tensor statistics = empty_statistics(x, problem.entry() + O + (weight_residual ? O : 0));
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Pool pool = torch_pool();
    const mstcn::Inputs<T> inputs = arguments.template inputs<T>();
    mstcn::forward<T>({problem, inputs, gemm<T>(current_isa()), pool}, saved_in<T>(problem, p, z, r, statistics),
                      mutable_data_of<T>(y));
  });
  return {y, p, z, r, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mstcn_backward(
    const Tensor& gy, const Tensor& y, const Tensor& p, const Tensor& z, const Tensor& r, const Tensor& statistics,
    const Tensor& x, const Tensor& weight_in, const Tensor& weight_time, const std::optional<Tensor>& weight_residual,
    const Tensor& norm_p, const Tensor& norm_z, const std::optional<Tensor>& norm_r,
    const std::optional<Tensor>& multiplicity, std::vector<int64_t> dilations, int64_t stride, bool identity, bool act,
    double eps) {
  const Arguments arguments(x, weight_in, weight_time, weight_residual, norm_p, norm_z, norm_r, multiplicity, dilations,
                            stride, identity, act, eps);
  const mstcn::Problem& problem = arguments.problem;
  const int64_t N = problem.N, T_out = problem.frames_out(), V = problem.V, O = problem.O;
  const ScalarType type = x.scalar_type();
  require_shape(kName, "gy", gy, {N, O, T_out, V}, type);
  require_shape(kName, "y", y, {N, O, T_out, V}, type);
  require_shape(kName, "z", z, {N, O, T_out, V}, type);
  require_shape(kName, "p", p, {N, problem.entry(), problem.T, V}, type);
  require(is_channels_last(y) && is_channels_last(z) && is_channels_last(p), kName,
          ": y, p and z must be as the forward pass left them");
  const Tensor dense_gy = channels_last(gy);

  const auto like = [&](const std::optional<Tensor>& tensor) {
    std::vector<int64_t> sizes;
    for (int64_t i = 0; tensor && i < tensor->dim(); ++i) sizes.push_back(tensor->size(i));
    return empty_like_type(x, tensor ? sizes : std::vector<int64_t>{0});
  };
  const Tensor grad_x = empty_channels_last(x, {N, problem.C, problem.T, V});
  const Tensor grad_in = like(weight_in), grad_time = like(weight_time), grad_residual = like(weight_residual);
  const Tensor grad_p = like(norm_p), grad_z = like(norm_z), grad_r = like(norm_r);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Pool pool = torch_pool();
    const mstcn::Inputs<T> inputs = arguments.template inputs<T>();
    const mstcn::Gradients<T> gradients{mutable_data_of<T>(grad_x),    mutable_data_of<T>(grad_in),
                                        mutable_data_of<T>(grad_time), mutable_data_of<T>(grad_residual),
                                        mutable_data_of<T>(grad_p),    mutable_data_of<T>(grad_z),
                                        mutable_data_of<T>(grad_r)};
    mstcn::backward<T>({problem, inputs, gemm<T>(current_isa()), pool}, saved_in<T>(problem, p, z, r, statistics),
                       data_of<T>(y), data_of<T>(dense_gy), gradients);
  });
  return {grad_x, grad_in, grad_time, grad_residual, grad_p, grad_z, grad_r};
}

}  // namespace msg3d::binding
