// Times every matrix product that a folded network makes, one thread, operands in the caches as in the network.
//
//     tiles CASE ISA    CASE: the sizes and weights of `fuse(model)` and the frames of a clip, as test_tiles.py writes
//                       ISA: an instruction set, or `auto`: of each product that which the network takes here
//
// The network runs once with a product that records its sizes; then each distinct one is timed alone. Prints a line for
// each: rows, groups, segments, depth of all segments together, row stride of a, panels, how often the network makes
// it, GFLOP/s.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/folded/forward.h"
#include "kernels/gemm/gemm.h"

namespace {

using namespace msg3d;

// rows of one group, groups, segments, depth, row stride, panels.
using Size = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
std::map<Size, int64_t> recorded;

void record(const FusedProduct<float>& p) {
  int64_t depth = 0;
  for (int64_t s = 0; s < p.num_segments; ++s) depth += p.segments[s].depth;
  if (p.rows && p.groups) ++recorded[{p.rows, p.groups, p.num_segments, depth, p.segments[0].a_row, p.panels}];
  fused_product<float>(p);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best of several runs of some milliseconds each.
double gigaflops(const Size& size) {
  const auto [rows, groups, num_segments, depth, a_row, panels] = size;
  const int64_t each = std::max<int64_t>(1, depth / num_segments);
  std::vector<float> a(groups * rows * a_row + num_segments * each + 64, 0.5f),
      b((depth + each) * kPanel * panels, 0.25f);
  std::vector<float> c(groups * rows * kPanel * panels);
  std::vector<Segment<float>> segments;
  for (int64_t s = 0; s < num_segments; ++s) {
    const int64_t own = s + 1 < num_segments ? each : depth - each * (num_segments - 1);
    segments.push_back({a.data() + (a_row > depth ? s * each : 0), rows * a_row, a_row, b.data() + s * each * kPanel, 0,
                        kPanel, own, depth * kPanel});
  }
  const int64_t c_row = panels * kPanel;
  FusedProduct<float> product{segments.data(), num_segments, groups, rows, c.data(), rows * c_row, c_row};
  product.panels = panels;
  const double flops = 2.0 * rows * groups * depth * c_row;
  const int64_t calls = std::max<int64_t>(1, static_cast<int64_t>(2e8 / flops));
  double best = 1e30;
  for (int run = 0; run < 5; ++run) {
    const double start = seconds();
    for (int64_t i = 0; i < calls; ++i) fused_product(product);
    best = std::min(best, (seconds() - start) / calls);
  }
  return flops / best / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  FILE* file = argc == 3 && set_isa(argv[2]) ? std::fopen(argv[1], "rb") : nullptr;
  if (!file) return std::fputs("usage: tiles CASE ISA\n", stderr), 2;
  const auto read = [&](auto* to, std::size_t count) {
    if (std::fread(to, sizeof(*to), count, file) != count) std::fputs("the case ends early\n", stderr), std::exit(2);
  };
  int64_t header[3];  // sizes, weights, frames
  read(header, 3);
  std::vector<int64_t> sizes(header[0]);
  std::vector<float> weights(header[1]);
  read(sizes.data(), sizes.size());
  read(weights.data(), weights.size());
  folded::Network<float> network;
  if (!network.read(sizes.data(), header[0], weights.data(), header[1])) return std::fputs("no network\n", stderr), 2;
  const int64_t frames = header[2], persons = network.persons;
  const std::vector<float> clip(persons * frames * network.joints * network.channels, 0.5f);
  std::vector<double> features(persons * network.features());
  std::vector<folded::Person<float>> people;
  for (int64_t m = 0; m < persons; ++m) {
    people.push_back({&clip[m * frames * network.joints * network.channels], m, &features[m * network.features()]});
  }
  // Two workers, one after the other: the cut into tasks is that of two threads.
  const Pool pool{2, [](int workers, void (*body)(void*, int), void* context) {
                    for (int worker = 0; worker < workers; ++worker) body(context, worker);
                  }};
  const folded::Machine<float> machine{pool, record, gemm<float>(current_wide_isa()).panels, gemm<float>(current_isa()).passes};
  std::vector<float> arena(folded::arena_size(network, persons, frames, machine));
  folded::features<float>(network, people.data(), persons, frames, arena.data(), machine);
  for (const auto& [size, times] : recorded) {
    const auto [rows, groups, segments, depth, a_row, panels] = size;
    std::printf("%lld %lld %lld %lld %lld %lld %lld %.2f\n", (long long)rows, (long long)groups, (long long)segments,
                (long long)depth, (long long)a_row, (long long)panels, (long long)times, gigaflops(size));
  }
}
