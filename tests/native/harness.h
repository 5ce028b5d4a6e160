// What the programs in this folder share: workers, random numbers, and every instruction set that the build holds,
// whatever this machine supports: AVX-512's tiles run anywhere when their file is compiled for less, since the vectors
// are then made of smaller ones.
#pragma once

#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "kernels/parallel.h"

inline const msg3d::Isa* const kIsas[] = {
    &msg3d::kPortable,
#if defined(__x86_64__)
    &msg3d::kAvx2,
    &msg3d::kAvx512,
#endif
};

inline void run_on_threads(int workers, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  for (std::thread& thread : threads) thread.join();
}

inline msg3d::Pool pool_of(int workers) { return {workers, &run_on_threads}; }

inline std::mt19937 generator(7);

inline int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <typename T>
std::vector<T> random_values(int64_t count) {
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(std::uniform_real_distribution<double>(-1, 1)(generator));
  return values;
}
