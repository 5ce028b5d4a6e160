// Runs every pass of ms_g3d over random problems without torch, to be built with sanitizers: buffers are exactly as
// large as the plan says and filled with NaN, answers are compared with plain loops. Prints "ok" and the number of
// problems.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "harness.h"
#include "kernels/ms_g3d/cpu/ms_g3d.h"

namespace {

using namespace msg3d;
using namespace msg3d::ms_g3d;

struct Answer {
  std::vector<double> y, grad_x, grad_A, grad_weight, grad_bias;
};

template <typename T>
Answer plain_loops(const Problem& p, const Inputs<T>& in) {
  const int64_t R = p.nodes(), windows = p.windows();
  Answer answer{std::vector<double>(p.N * windows * R * p.O), std::vector<double>(p.N * p.T * p.V * p.C),
                std::vector<double>(p.K * R * R), std::vector<double>(p.O * p.K * p.C), std::vector<double>(p.O)};
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t t = 0; t < windows; ++t)
      for (int64_t node = 0; node < R; ++node)
        for (int64_t o = 0; o < p.O; ++o) {
          const int64_t at = ((n * windows + t) * R + node) * p.O + o;
          const double gy = in.gy[at];
          answer.y[at] += in.bias[o];
          answer.grad_bias[o] += gy;
          for (int64_t source = 0; source < R; ++source) {
            const int64_t f = p.first_frame(t) + source / p.V * p.dilation;
            if (f < 0 || f >= p.T) continue;
            const int64_t x_row = ((n * p.T + f) * p.V + source % p.V) * p.C;
            for (int64_t k = 0; k < p.K; ++k)
              for (int64_t c = 0; c < p.C; ++c) {
                const double x = in.x[x_row + c], A = in.A.at(k, node, source), weight = in.weight.at(o, k, c);
                answer.y[at] += A * weight * x;
                answer.grad_x[x_row + c] += A * weight * gy;
                answer.grad_A[(k * R + node) * R + source] += weight * x * gy;
                answer.grad_weight[(o * p.K + k) * p.C + c] += A * x * gy;
              }
          }
        }
  return answer;
}

template <typename T>
void compare(const std::vector<T>& found, const std::vector<double>& exact, const char* what) {
  double largest = 1;
  for (double value : exact) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::abs(found[i] - exact[i]) <= 100 * std::numeric_limits<T>::epsilon() * largest) continue;  // NaN fails
    std::printf("%s: element %zu is %g, expected %g\n", what, i, static_cast<double>(found[i]), exact[i]);
    std::exit(1);
  }
}

// Calls pass(call) with a workspace of exactly the planned size, full of NaN.
template <typename T, typename Run>
void with_workspace(const Problem& p, const Gemm<T>& gemm, const Inputs<T>& in, Pass pass, OrderChoice order,
                    const Run& run) {
  const Plan plan = make_plan(p, pass, gemm.width, sizeof(T), order);
  const int workers = static_cast<int>(draw(1, 3));
  const auto aligned = [](int64_t bytes) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, std::max(bytes, kAlignment)));
    std::memset(memory, 0xff, bytes);
    return std::unique_ptr<std::byte, void (*)(void*)>(memory, &std::free);
  };
  const auto shared = aligned(plan.shared_bytes), own = aligned(workers * plan.worker_bytes);
  const Workspace workspace{shared.get(), own.get()};
  const Pool pool = pool_of(workers);
  run(Call<T>{p, plan, gemm, in, workspace, pool});
}

template <typename T>
void check(const Problem& p, const Gemm<T>& gemm, OrderChoice order) {
  const int64_t R = p.nodes();
  const std::vector<T> x = random_values<T>(p.N * p.T * p.V * p.C), A = random_values<T>(p.K * R * R);
  const std::vector<T> weight = random_values<T>(p.O * p.K * p.C), bias = random_values<T>(p.O);
  const std::vector<T> gy = random_values<T>(p.N * p.windows() * R * p.O);
  const Inputs<T> in{x.data(), {A.data(), {R * R, R, 1}}, {weight.data(), {p.K * p.C, p.C, 1}}, bias.data(), gy.data()};
  const Answer exact = plain_loops(p, in);

  std::vector<T> y(exact.y.size()), grad_x(exact.grad_x.size()), grad_A(exact.grad_A.size());
  std::vector<T> grad_weight(exact.grad_weight.size()), grad_bias(exact.grad_bias.size());
  with_workspace(p, gemm, in, Pass::kForward, order, [&](const Call<T>& call) { forward(call, y.data()); });
  with_workspace(p, gemm, in, Pass::kBackwardInput, order,
                 [&](const Call<T>& call) { backward_input(call, grad_x.data()); });
  with_workspace(p, gemm, in, Pass::kBackwardParameters, order, [&](const Call<T>& call) {
    backward_parameters(call, ParameterGradients<T>{grad_A.data(), grad_weight.data(), grad_bias.data()});
  });
  if (order == OrderChoice::kProjectFirst) {
    std::vector<T> all_x(exact.grad_x.size()), all_A(exact.grad_A.size()), all_weight(exact.grad_weight.size());
    with_workspace(p, gemm, in, Pass::kBackwardParameters, order, [&](const Call<T>& call) {
      backward(call, ParameterGradients<T>{all_A.data(), all_weight.data(), nullptr}, all_x.data());
    });
    compare(all_x, exact.grad_x, "grad_x of all gradients");
    compare(all_A, exact.grad_A, "grad_A of all gradients");
    compare(all_weight, exact.grad_weight, "grad_weight of all gradients");
  }
  compare(y, exact.y, "y");
  compare(grad_x, exact.grad_x, "grad_x");
  compare(grad_A, exact.grad_A, "grad_A");
  compare(grad_weight, exact.grad_weight, "grad_weight");
  compare(grad_bias, exact.grad_bias, "grad_bias");
}

}  // namespace

int main(int, char** arguments) {
  const int problems = std::atoi(arguments[1]);
  for (int i = 0; i < problems; ++i) {
    Problem p{draw(0, 3), draw(1, 19), 0, draw(1, 9), draw(1, 4), draw(1, 35), draw(1, 5), draw(1, 3), draw(1, 3)};
    if (i % 5 == 0) p.window = p.stride = 1;  // frame by frame
    p.T = draw(1 + (p.window - 1) * p.dilation % 2, 24);
    const OrderChoice order = i % 2 ? OrderChoice::kProjectFirst : OrderChoice::kAggregateFirst;
    for (const Isa* isa : kIsas) {
      check(p, isa->f32, order);
      check(p, isa->f64, order);
    }
  }
  std::printf("ok %d\n", problems);
}
