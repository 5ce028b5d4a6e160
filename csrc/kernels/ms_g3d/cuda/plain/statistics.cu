// The merging of the moments that a forward pass has left of y's channels (statistics.h) into means and variances. A
// block has four channels, eight of whose values are one sector; thread (i, channel) merges parts i, i + 64, ... in
// turn, and then the threads of a channel are merged pairwise.
#include "../moments.h"
#include "../statistics.h"
#include "tile.h"

namespace msg3d::ms_g3d::plain {

using namespace simt;

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
