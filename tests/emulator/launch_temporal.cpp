// The door of MSTCN's temporal branches as the emulator's Python calls it: sizes are int64_t, dense arrays as
// temporal.h says; dilations are 1, 2, 3, ...
#include "../../csrc/kernels/mstcn/cuda/temporal.h"

using namespace msg3d::mstcn::cuda;

// type: 0 float32, 1 float64, 2 float16, 3 bfloat16.
extern "C" int temporal_run(const void* h, const void* weight, const void* scale, void* out, int64_t N, int64_t T,
                            int64_t V, int64_t width, int64_t O, int64_t branches, int64_t taps, int64_t stride,
                            int64_t arch, int64_t type, int64_t relu) {
  TemporalProblem p{
      N, T, V, width, O, static_cast<int>(branches), static_cast<int>(taps), static_cast<int>(stride), {}, relu != 0};
  for (int b = 0; b < p.branches; ++b) p.dilations[b] = b + 1;
  return temporal(p, static_cast<Type>(type), static_cast<int>(arch), h, weight, scale, out, nullptr);
}
