// The temporal branches by multiply-adds, for whatever tensor cores do not take. A block makes 64 rows of kWidth
// channels o: thread (ty, tx) rows 4*ty .. 4*ty + 3 and channels tx + 16*j, with 16 channels i at a time in shared
// memory.
#include "../rows.h"

namespace msg3d::mstcn::cuda {
namespace temporal_kernels {

constexpr int kPlainThreads = 256, kPlainRows = 64, kDepth = 16, kPitch = kPlainRows + 4;

template <typename T, int kWidth>
constexpr int plain_shared_bytes() {
  return kDepth * (kPitch + kWidth) * static_cast<int>(sizeof(Accumulator<T>));
}

template <typename T, int kWidth>
SIMT_KERNEL(kPlainThreads, 2)
void plain_kernel(TemporalCall call) {
  using Acc = Accumulator<T>;
  constexpr int kColumns = kWidth / 16;  // of a thread
  const int branch = block_y();
  if (branch == call.branches) {
    if (block_z() == 0) pool<T, kPlainThreads, kPlainRows, 1>(call);
  } else {
    Acc* const rows = shared_memory<Acc>();       // (i, row)
    Acc* const columns = rows + kDepth * kPitch;  // (i, o)
    const int tid = thread_index(), tx = tid % 16, ty = tid / 16;
    const int first_row = block_x() * kPlainRows, first_o = block_z() * kWidth;
    Source sources[4];  // of the rows that this thread loads
#pragma unroll
    for (int j = 0; j < 4; ++j) sources[j] = source_of(call, first_row + ty + 16 * j);
    Acc sum[4][kColumns] = {};
    const int dilation = dilation_of(call, branch);
    const T* const h = static_cast<const T*>(call.h) + branch * call.width;
#pragma unroll 1
    for (int tap = 0; tap < call.taps; ++tap) {
      const int shift = (tap - call.taps / 2) * dilation;
      const int64_t ahead = static_cast<int64_t>(shift) * call.V * (call.branches + 1) * call.width;
      const T* const weight = static_cast<const T*>(call.weight) +
                              (static_cast<int64_t>(branch) * call.taps + tap) * call.width * call.width;
#pragma unroll 1
      for (int first = 0; first < call.width; first += kDepth) {
        const int i = first + tx;
        const bool real = i < call.width;
        block_barrier();  // the step before has been read
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool reads = real && inside(call, sources[j], shift);
          rows[tx * kPitch + ty + 16 * j] =
              reads ? entry<T>(call, h[sources[j].at + ahead + i], branch * call.width + i) : Acc(0);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int o = first_o + ty + 16 * j;
          const bool reads = real && o < call.width;
          columns[tx * kWidth + ty + 16 * j] =
              reads ? widen<T>(load_readonly(weight + static_cast<int64_t>(o) * call.width + i)) : Acc(0);
        }
        block_barrier();
#pragma unroll 4
        for (int k = 0; k < kDepth; ++k) {
          Acc left[4];
#pragma unroll
          for (int q = 0; q < 4; ++q) left[q] = rows[k * kPitch + 4 * ty + q];
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            const Acc right = columns[k * kWidth + tx + 16 * j];
#pragma unroll
            for (int q = 0; q < 4; ++q) sum[q][j] += left[q] * right;
          }
        }
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int row = first_row + 4 * ty + q;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int o = first_o + tx + 16 * j;
        if (row >= call.rows || o >= call.width) continue;
        const int c = branch * call.width + o;
        T* const to = static_cast<T*>(call.out) + static_cast<int64_t>(row) * call.O + c;
        *to = narrow<T>(rectified(summand<T>(call, *to, c) + sum[q][j], call.relu));
      }
    }
  }
}

template <typename T, int kWidth>
int launch_plain(const TemporalCall& call, Stream stream) {
  const Grid grid{static_cast<unsigned>(ceil_div(call.rows, kPlainRows)), static_cast<unsigned>(call.branches + 1),
                  static_cast<unsigned>(ceil_div(call.width, kWidth))};
  return launch(plain_kernel<T, kWidth>, grid, kPlainThreads, plain_shared_bytes<T, kWidth>(), stream, call);
}

}  // namespace temporal_kernels

int temporal_by_multiply_adds(const temporal_kernels::TemporalCall& call, Type type, simt::Stream stream) {
  using namespace temporal_kernels;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    if (call.width > 32) return launch_plain<T, 64>(call, stream);
    return call.width > 16 ? launch_plain<T, 32>(call, stream) : launch_plain<T, 16>(call, stream);
  };
  switch (type) {
    case Type::kFloat32:
      return run(float());
    case Type::kFloat64:
      return run(double());
    case Type::kFloat16:
      return run(simt::half());
    default:
      return run(simt::bf16());
  }
}

}  // namespace msg3d::mstcn::cuda
