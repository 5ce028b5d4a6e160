// Runs the training kernels of mstcn, collapse and batch_norm over random problems without torch, to be built with
// sanitizers: outputs begin as NaN and must all be written, and must not depend on the number of workers by one bit.
// Prints "ok" and the number of problems. What the numbers mean is tests/test_blocks.py's.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "harness.h"
#include "kernels/batch_norm/batch_norm.h"
#include "kernels/collapse/collapse.h"
#include "kernels/mstcn/mstcn.h"

namespace {

using namespace msg3d;

template <typename T>
std::vector<T> empty(int64_t count) {
  return std::vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

template <typename T>
struct Outputs {
  std::vector<std::vector<T>> values;
  std::vector<std::vector<double>> statistics;

  bool finite() const {
    for (const auto& all : values) {
      for (const T value : all) {
        if (!std::isfinite(value)) return false;
      }
    }
    return true;
  }
  bool same(const Outputs& other) const { return values == other.values && statistics == other.statistics; }
};

template <typename T, typename Run>
void check(const char* what, const Run& run) {
  const Outputs<T> one = run(1);
  if (one.finite() && one.same(run(3))) return;
  std::printf("%s: %s\n", what, one.finite() ? "differs with the number of workers" : "left something unwritten");
  std::exit(1);
}

template <typename T>
void check_mstcn(const Gemm<T>& gemm) {
  mstcn::Problem p{draw(1, 3),         draw(1, 40), draw(1, 7), draw(1, 40),     draw(4, 70), draw(1, 3),
                   2 * draw(0, 2) + 1, {},          false,      draw(0, 1) == 1, 1e-5};
  for (int64_t i = draw(1, 2); i > 0; --i) p.dilations.push_back(draw(1, 3));
  const bool residual = draw(0, 1) == 1;
  if (!residual && draw(0, 1)) p.identity = true, p.stride = 1, p.O = p.C = std::max<int64_t>(p.C, 4);
  const int64_t b = p.branch(), E = p.entry(), rows = p.N * p.T * p.V, rows_out = p.N * p.frames_out() * p.V;
  const auto x = random_values<T>(rows * p.C), in = random_values<T>(p.O * p.C), norm_p = random_values<T>(2 * E);
  const auto time = random_values<T>(p.convolutions() * b * b * p.taps), norm_z = random_values<T>(2 * p.O);
  const auto from_x = random_values<T>(p.O * p.C), norm_r = random_values<T>(2 * p.O),
             gy = random_values<T>(rows_out * p.O);
  const std::vector<T> copies(p.N, T(2));
  const mstcn::Inputs<T> inputs{x.data(),      in.data(),     time.data(),   residual ? from_x.data() : nullptr,
                                norm_p.data(), norm_z.data(), norm_r.data(), draw(0, 1) ? copies.data() : nullptr};
  check<T>("mstcn", [&](int workers) {
    const Pool pool = pool_of(workers);
    const mstcn::Call<T> call{p, inputs, gemm, pool};
    auto of_p = empty<T>(rows * E), z = empty<T>(rows_out * p.O), r = empty<T>(residual ? rows_out * p.O : 0);
    auto y = empty<T>(rows_out * p.O), gx = empty<T>(x.size()), g_in = empty<T>(in.size()),
         g_time = empty<T>(time.size());
    auto g_from_x = empty<T>(residual ? p.O * p.C : 0), g_p = empty<T>(2 * E), g_z = empty<T>(2 * p.O);
    auto g_r = empty<T>(residual ? 2 * p.O : 0);
    std::vector<double> of_entry(2 * E), of_z(2 * p.O), of_r(residual ? 2 * p.O : 0);
    const mstcn::Saved<T> saved{of_p.data(),     z.data(),    residual ? r.data() : nullptr,
                                of_entry.data(), of_z.data(), of_r.data()};
    mstcn::forward(call, saved, y.data());
    mstcn::backward(call, saved, y.data(), gy.data(),
                    {gx.data(), g_in.data(), g_time.data(), g_from_x.data(), g_p.data(), g_z.data(), g_r.data()});
    return Outputs<T>{{y, of_p, z, r, gx, g_in, g_time, g_from_x, g_p, g_z, g_r}, {of_entry, of_z, of_r}};
  });
}

template <typename T>
void check_collapse(const Gemm<T>& gemm) {
  const collapse::Problem p{draw(1, 3), draw(1, 30), draw(1, 7), draw(1, 5), draw(1, 40), draw(1, 40), 1e-5};
  const int64_t rows = p.N * p.T * p.nodes(), rows_out = p.N * p.T * p.V;
  const auto x = random_values<T>(rows * p.E), weight = random_values<T>(p.O * p.E * p.window);
  const auto norm_x = random_values<T>(2 * p.E), norm_c = random_values<T>(2 * p.O);
  const auto other = random_values<T>(rows_out * p.O), gy = random_values<T>(rows_out * p.O);
  const std::vector<T> copies(p.N, T(2));
  const collapse::Inputs<T> inputs{x.data(), weight.data(), norm_x.data(), norm_c.data(),
                                   draw(0, 1) ? copies.data() : nullptr};
  check<T>("collapse", [&](int workers) {
    const Pool pool = pool_of(workers);
    const collapse::Call<T> call{p, inputs, gemm, pool};
    auto c = empty<T>(rows_out * p.O), y = empty<T>(rows_out * p.O), gx = empty<T>(x.size());
    auto g_weight = empty<T>(weight.size()), g_x = empty<T>(2 * p.E), g_c = empty<T>(2 * p.O);
    std::vector<double> of_x(2 * p.E), of_c(2 * p.O);
    collapse::forward(call, other.data(), c.data(), y.data(), of_x.data(), of_c.data());
    collapse::backward(call, c.data(), of_x.data(), of_c.data(), gy.data(),
                       {gx.data(), g_weight.data(), g_x.data(), g_c.data()});
    return Outputs<T>{{c, y, gx, g_weight, g_x, g_c}, {of_x, of_c}};
  });
}

template <typename T>
void check_batch_norm(const Gemm<T>& gemm) {
  const batch_norm::Problem p{draw(1, 3), draw(1, 600), draw(1, 40), draw(0, 1) == 1, 1e-5};
  const int64_t size = p.N * p.rows * p.C;
  const auto x = random_values<T>(size), norm = random_values<T>(2 * p.C), gy = random_values<T>(size);
  check<T>("batch_norm", [&](int workers) {
    auto y = empty<T>(size), gx = empty<T>(size), g = empty<T>(2 * p.C);
    std::vector<double> statistics(2 * p.C);
    const Pool pool = pool_of(workers);
    const T* alone = nullptr;
    batch_norm::forward(p, x.data(), norm.data(), alone, gemm, pool, statistics.data(), y.data());
    batch_norm::backward(p, x.data(), norm.data(), alone, statistics.data(), y.data(), gy.data(), gemm, pool, gx.data(),
                         g.data());
    return Outputs<T>{{y, gx, g}, {statistics}};
  });
}

}  // namespace

int main(int, char** arguments) {
  const int problems = std::atoi(arguments[1]);
  for (int i = 0; i < problems; ++i) {
    for (const Isa* isa : kIsas) {
      check_mstcn(isa->f32), check_collapse(isa->f32), check_batch_norm(isa->f32);
      check_mstcn(isa->f64), check_collapse(isa->f64), check_batch_norm(isa->f64);
    }
  }
  std::printf("ok %d\n", problems);
}
