// Statistics of y's channels. The moments of parts, where a forward pass has not left them: a block has 32 channels of
// a part, a warp every eighth row of it. Their merging into means and variances: a block has four channels, eight of
// whose values are one sector; thread (i, channel) merges parts i, i + 64, ... in turn, and then the threads of a
// channel are merged pairwise.
#include "../moments.h"
#include "../statistics.h"
#include "tile.h"

namespace msg3d::ms_g3d::plain {

using namespace simt;

template <typename T>
struct MomentsCall {
  PartRows rows;
  const T* y;
  typename Accumulator<T>::type* moments;
  int O;
};

template <typename T>
SIMT_KERNEL(kThreads, 1)
void moments_kernel(MomentsCall<T> call) {
  using Acc = typename Accumulator<T>::type;
  constexpr int kWarps = kThreads / 32;
  const int o = block_y() * 32 + lane_index(), part = block_x(), rows = call.rows.count(part);
  const T* const y = call.y + static_cast<int64_t>(call.rows.before(part)) * call.O + o;
  const int mine = (rows - warp_index() + kWarps - 1) / kWarps;  // rows of the warp
  Moments<Acc> of{Acc(mine), Acc(0), Acc(0)};
  if (o < call.O && mine > 0) {
#pragma unroll 4
    for (int row = warp_index(); row < rows; row += kWarps) of.mean += widen<Acc>(y[int64_t{row} * call.O]);
    of.mean /= of.count;
#pragma unroll 4
    for (int row = warp_index(); row < rows; row += kWarps) {
      const Acc apart = widen<Acc>(y[int64_t{row} * call.O]) - of.mean;
      of.squares += apart * apart;
    }
  }
  Moments<Acc>* const of_warp = shared_memory<Moments<Acc>>();  // (warp, lane)
  of_warp[thread_index()] = of;
  block_barrier();
  if (warp_index() == 0 && o < call.O) {
#pragma unroll 1
    for (int warp = 1; warp < kWarps; ++warp) of.add(of_warp[warp * 32 + lane_index()]);
    Acc* const to = call.moments + ((static_cast<int64_t>(o / 4) * grid_x() + part) * 4 + o % 4) * 2;
    to[0] = of.mean, to[1] = of.squares;
  }
}

int moments_of_y(const Problem& p, Type type, const void* y, void* moments, void* stream) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename Accumulator<T>::type;
    const PartRows rows = rows_of_y(p);
    const MomentsCall<T> call{rows, static_cast<const T*>(y), static_cast<Acc*>(moments), static_cast<int>(p.O)};
    const Grid grid{static_cast<unsigned>(rows.parts()), static_cast<unsigned>(ceil_div(p.O, 32))};
    return launch(moments_kernel<T>, grid, kThreads, kThreads * static_cast<int>(sizeof(Moments<Acc>)), stream, call);
  });
}

template <typename Acc>
struct MergeCall {
  PartRows rows;
  const Acc* moments;
  Acc* statistics;
  int O;
};

template <typename Acc>
SIMT_KERNEL(kThreads, 1)
void merge_kernel(MergeCall<Acc> call) {
  constexpr int kWarps = kThreads / 32;
  const int tid = thread_index(), channel = tid % 4, o = block_x() * 4 + channel, parts = call.rows.parts();
  Moments<Acc>* const of_warp = shared_memory<Moments<Acc>>();  // (warp, channel)
  Moments<Acc> sum{Acc(0), Acc(0), Acc(0)};
  if (o < call.O) {
#pragma unroll 1
    for (int part = tid / 4; part < parts; part += kThreads / 4) {
      const Acc* const from = call.moments + ((static_cast<int64_t>(block_x()) * parts + part) * 4 + channel) * 2;
      sum.add({Acc(call.rows.count(part)), from[0], from[1]});
    }
  }
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) sum.add(sum.of_lane_xor(lanes));
  if (lane_index() < 4) of_warp[warp_index() * 4 + channel] = sum;
  block_barrier();
  if (tid < 4 && o < call.O) {
#pragma unroll 1
    for (int warp = 1; warp < kWarps; ++warp) sum.add(of_warp[warp * 4 + channel]);
    call.statistics[o] = sum.mean, call.statistics[call.O + o] = sum.squares / sum.count;
  }
}

template <typename Acc>
int merge(const PartRows& rows, int64_t O, const void* moments, void* statistics, Stream stream) {
  const MergeCall<Acc> call{rows, static_cast<const Acc*>(moments), static_cast<Acc*>(statistics), static_cast<int>(O)};
  const Grid grid{static_cast<unsigned>(ceil_div(O, 4))};
  return launch(merge_kernel<Acc>, grid, kThreads, kThreads / 8 * static_cast<int>(sizeof(Moments<Acc>)), stream, call);
}

int merge_statistics(const PartRows& rows, int64_t O, Type type, const void* moments, void* statistics, void* stream) {
  return type == Type::kFloat64 ? merge<double>(rows, O, moments, statistics, stream)
                                : merge<float>(rows, O, moments, statistics, stream);
}

}  // namespace msg3d::ms_g3d::plain
