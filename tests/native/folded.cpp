// Runs the folded network without torch, to be built with sanitizers or for another processor: reads the cases that
// tests/test_native.py wrote, keeps to an arena of exactly the size asked for and filled with NaN, and
// compares with the features that came with them, for every instruction set. Prints "ok" and the number of cases.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "harness.h"
#include "kernels/folded/forward.h"
#include "kernels/gemm/gemm.h"

namespace {

using namespace msg3d;

template <typename T>
std::vector<T> read(FILE* file, int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, file) != static_cast<std::size_t>(count)) {
    std::fprintf(stderr, "the file ends early\n");
    std::exit(2);
  }
  return values;
}

template <typename T>
double run(FILE* file, int64_t num_sizes, int64_t num_weights, int64_t num_clips, int64_t frames, int workers) {
  const std::vector<int64_t> sizes = read<int64_t>(file, num_sizes);
  const std::vector<T> weights = read<T>(file, num_weights);
  folded::Network<T> network;
  if (!network.read(sizes.data(), num_sizes, weights.data(), num_weights)) return INFINITY;
  const int64_t num_persons = num_clips * network.persons, width = network.features();
  const int64_t person_size = frames * network.joints * network.channels;
  const std::vector<T> clips = read<T>(file, num_persons * person_size);
  const std::vector<double> expected = read<double>(file, num_clips * width);  // means over persons
  std::vector<double> found(num_persons * width, NAN);
  std::vector<folded::Person<T>> persons;
  for (int64_t i = 0; i < num_persons; ++i) {
    persons.push_back({&clips[i * person_size], i % network.persons, &found[i * width]});
  }
  double error = 0, scale = 0;
  for (const double value : expected) scale = std::fmax(scale, std::abs(value));
  for (const Isa* isa : kIsas) {
    const folded::Machine<T> machine{pool_of(workers), gemm<T>(*isa).fused, gemm<T>(*isa).panels, gemm<T>(*isa).passes};
    const int64_t arena_size = folded::arena_size(network, num_persons, frames, machine);
    const std::unique_ptr<T[]> arena(new T[arena_size]);
    std::fill(arena.get(), arena.get() + arena_size, std::numeric_limits<T>::quiet_NaN());
    std::fill(found.begin(), found.end(), NAN);
    folded::features<T>(network, persons.data(), num_persons, frames, arena.get(), machine);
    for (int64_t i = 0; i < num_clips * width; ++i) {
      double mean = 0;
      for (int64_t person = 0; person < network.persons; ++person) {
        mean += found[(i / width * network.persons + person) * width + i % width] / network.persons;
      }
      const double deviation = std::abs(mean - expected[i]);
      error = deviation <= error ? error : deviation;  // NaN stays
    }
  }
  return error / scale / std::numeric_limits<T>::epsilon();
}

}  // namespace

int main(int argc, char** argv) {
  FILE* file = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
  if (!file) return 2;
  const int64_t cases = read<int64_t>(file, 1)[0];
  for (int64_t i = 0; i < cases; ++i) {
    const std::vector<int64_t> header = read<int64_t>(file, 5);  // bytes per value, sizes, weights, clips, frames
    const auto run_case = header[0] == 4 ? run<float> : run<double>;
    const double error = run_case(file, header[1], header[2], header[3], header[4], 1 + static_cast<int>(i % 3));
    if (!(error < 64)) {
      std::fprintf(stderr, "case %d: error of %g units of rounding\n", static_cast<int>(i), error);
      return 1;
    }
  }
  std::printf("ok %d\n", static_cast<int>(cases));
}
