#include "collapse.h"

#include "../kernels/batch_norm/batch_norm.h"
#include "../kernels/collapse/collapse.h"
#include "tensors.h"

namespace msg3d::binding {
namespace {

void require_activation(const char* op, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  require(x.is_cpu() && (type == ScalarType::Float || type == ScalarType::Double), op,
          ": x must be float32 or float64 on the CPU");
  require(x.dim() == 4 && x.numel() > 0, op, ": x has shape ", shape_of(x), "; expected (N, C, T, V), not empty");
}

void require_multiplicity(const char* op, const std::optional<Tensor>& multiplicity, const Tensor& x) {
  if (!multiplicity) return;
  require_shape(op, "multiplicity", *multiplicity, {x.size(0)}, x.scalar_type());
  require(multiplicity->is_contiguous(), op, ": multiplicity must be contiguous");
}

collapse::Problem collapse_problem(const Tensor& x, const Tensor& weight, const Tensor& norm_x, const Tensor& norm_c,
                                   const std::optional<Tensor>& multiplicity, double eps) {
  require_activation("collapse", x);
  require_multiplicity("collapse", multiplicity, x);
  require(weight.dim() == 3 && weight.is_contiguous() && weight.size(2) > 0 && x.size(3) % weight.size(2) == 0,
          "collapse: weight has shape ", shape_of(weight), "; expected (O, E, tau), contiguous, tau dividing the ",
          x.size(3), " nodes of x");
  const collapse::Problem problem{x.size(0),      x.size(2), x.size(3) / weight.size(2), weight.size(2), x.size(1),
                                  weight.size(0), eps};
  require_shape("collapse", "weight", weight, {problem.O, problem.E, problem.window}, x.scalar_type());
  require_shape("collapse", "norm_x", norm_x, {2, problem.E}, x.scalar_type());
  require_shape("collapse", "norm_c", norm_c, {2, problem.O}, x.scalar_type());
  require(norm_x.is_contiguous() && norm_c.is_contiguous(), "collapse: norms must be contiguous");
  return problem;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> collapse(const Tensor& x, const Tensor& weight, const Tensor& norm_x,
                                            const Tensor& norm_c, const std::optional<Tensor>& other,
                                            const std::optional<Tensor>& multiplicity, double eps) {
  const collapse::Problem problem = collapse_problem(x, weight, norm_x, norm_c, multiplicity, eps);
  const Tensor dense_x = channels_last(x);
  const std::vector<int64_t> shape{problem.N, problem.O, problem.T, problem.V};
  std::optional<Tensor> dense_other;
  if (other) {
    require_shape("collapse", "other", *other, shape, x.scalar_type());
    dense_other = channels_last(*other);
  }
  const Tensor y = empty_channels_last(x, shape), c = empty_channels_last(x, shape);
  const Tensor statistics = empty_statistics(x, problem.E + problem.O);
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Pool pool = torch_pool();
    const collapse::Inputs<T> inputs{data_of<T>(dense_x), data_of<T>(weight), data_of<T>(norm_x), data_of<T>(norm_c),
                                     data_of<T>(multiplicity)};
    double* numbers = mutable_data_of<double>(statistics);
    collapse::forward<T>({problem, inputs, gemm<T>(current_wide_isa()), pool}, data_of<T>(dense_other),
                         mutable_data_of<T>(c), mutable_data_of<T>(y), numbers, numbers + 2 * problem.E);
  });
  return {y, c, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> collapse_backward(const Tensor& gy, const Tensor& c,
                                                             const Tensor& statistics, const Tensor& x,
                                                             const Tensor& weight, const Tensor& norm_x,
                                                             const Tensor& norm_c,
                                                             const std::optional<Tensor>& multiplicity, double eps) {
  const collapse::Problem problem = collapse_problem(x, weight, norm_x, norm_c, multiplicity, eps);
  const std::vector<int64_t> shape{problem.N, problem.O, problem.T, problem.V};
  require_shape("collapse", "gy", gy, shape, x.scalar_type());
  require_shape("collapse", "c", c, shape, x.scalar_type());
  require(is_channels_last(c), "collapse: c must be as the forward pass left it");
  const Tensor dense_x = channels_last(x), dense_gy = channels_last(gy);
  const Tensor grad_x = empty_channels_last(x, {problem.N, problem.E, problem.T, problem.nodes()});
  const Tensor grad_weight = empty_like_type(x, {problem.O, problem.E, problem.window});
  const Tensor grad_norm_x = empty_like_type(x, {2, problem.E}), grad_norm_c = empty_like_type(x, {2, problem.O});
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Pool pool = torch_pool();
    const collapse::Inputs<T> inputs{data_of<T>(dense_x), data_of<T>(weight), data_of<T>(norm_x), data_of<T>(norm_c),
                                     data_of<T>(multiplicity)};
    const double* numbers = data_of<double>(statistics);
    collapse::backward<T>({problem, inputs, gemm<T>(current_wide_isa()), pool}, data_of<T>(c), numbers,
                          numbers + 2 * problem.E, data_of<T>(dense_gy),
                          {mutable_data_of<T>(grad_x), mutable_data_of<T>(grad_weight), mutable_data_of<T>(grad_norm_x),
                           mutable_data_of<T>(grad_norm_c)});
  });
  return {grad_x, grad_weight, grad_norm_x, grad_norm_c};
}

std::tuple<Tensor, Tensor> batch_norm(const Tensor& x, const Tensor& norm, const std::optional<Tensor>& multiplicity,
                                      bool act, double eps) {
  require_activation("batch_norm", x);
  require_multiplicity("batch_norm", multiplicity, x);
  require_shape("batch_norm", "norm", norm, {2, x.size(1)}, x.scalar_type());
  const msg3d::batch_norm::Problem problem{x.size(0), x.size(2) * x.size(3), x.size(1), act, eps};
  const Tensor dense_x = channels_last(x), dense_norm = torch::stable::contiguous(norm);
  const Tensor y = empty_channels_last(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  const Tensor statistics = empty_statistics(x, problem.C);
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    msg3d::batch_norm::forward<T>(problem, data_of<T>(dense_x), data_of<T>(dense_norm), data_of<T>(multiplicity),
                                  gemm<T>(current_wide_isa()), torch_pool(), mutable_data_of<double>(statistics),
                                  mutable_data_of<T>(y));
  });
  return {y, statistics};
}

std::tuple<Tensor, Tensor> batch_norm_backward(const Tensor& gy, const Tensor& y, const Tensor& statistics,
                                               const Tensor& x, const Tensor& norm,
                                               const std::optional<Tensor>& multiplicity, bool act, double eps) {
  require_activation("batch_norm", x);
  require_multiplicity("batch_norm", multiplicity, x);
  const std::vector<int64_t> shape{x.size(0), x.size(1), x.size(2), x.size(3)};
  require_shape("batch_norm", "norm", norm, {2, x.size(1)}, x.scalar_type());
  require_shape("batch_norm", "gy", gy, shape, x.scalar_type());
  require_shape("batch_norm", "y", y, shape, x.scalar_type());
  const msg3d::batch_norm::Problem problem{x.size(0), x.size(2) * x.size(3), x.size(1), act, eps};
  const Tensor dense_x = channels_last(x), dense_y = channels_last(y), dense_gy = channels_last(gy);
  const Tensor dense_norm = torch::stable::contiguous(norm);
  const Tensor grad_x = empty_channels_last(x, shape), grad_norm = empty_like_type(x, {2, problem.C});
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    msg3d::batch_norm::backward<T>(problem, data_of<T>(dense_x), data_of<T>(dense_norm), data_of<T>(multiplicity),
                                   data_of<double>(statistics), data_of<T>(dense_y), data_of<T>(dense_gy),
                                   gemm<T>(current_wide_isa()), torch_pool(), mutable_data_of<T>(grad_x),
                                   mutable_data_of<T>(grad_norm));
  });
  return {grad_x, grad_norm};
}

}  // namespace msg3d::binding
