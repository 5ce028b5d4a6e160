// MS-GCN and MS-G3D of few input channels (C <= 8: the network's first stage) on tensor cores, operands of 16 bits or
// tf32, sums in float. Aggregate first: with K*C as short as it is, both products together take less time than writing
// y.
//
//     1  H[(f,r), (k,c)] = sum_j A[k,r,j] x_f[j,c]           few_channels.h
//     2  y^T[o, (f,r)] = sum_{k,c} weight[o,(k,c)] H[(f,r), (k,c)]
//
// A block owns kFewColumns / C windows f and a slice of output channels, no more 48s of them than it has warps.
#include "few_channels.h"
#include "moments.h"

namespace msg3d::ms_g3d::cuda {
namespace few_channels {

constexpr int kRowTiles = 4;  // of eight rows of H that a warp multiplies at once in phase 2

template <typename T>
SIMT_KERNEL(kMostWarps * 32, 2)
void few_channels_kernel(ForwardCall call) {
  const Rows& h_rows = call.z_rows;
  const int h_at = call.z_at, weight_at = call.weight_at;
  const uint32_t shared_at = shared_address(shared_memory<unsigned char>());
  const int tiles = (call.windows + call.tile_windows - 1) / call.tile_windows;
  const int clip = block_x() / tiles, first_window = block_x() % tiles * call.tile_windows;
  const int windows = call.windows - first_window < call.tile_windows ? call.windows - first_window : call.tile_windows;

  const int slice = block_y(), groups = call.groups, weight_bytes = call.channel_steps * groups * 3 * 512;
  fetch(shared_at + weight_at, static_cast<const char*>(call.weight) + static_cast<int64_t>(slice) * weight_bytes,
        weight_bytes, call.warps * 32);
  cp_async_commit();
  stage_x<T>(call, kFewColumns, clip, first_window, windows);
  block_barrier();
  aggregate<T, 1, kFewColumns / 8>(call, kFewColumns);
  cp_async_wait<0>();
  block_barrier();  // H is complete and W has landed

  const int rows = windows * call.nodes, row_units = (rows + 8 * kRowTiles - 1) / (8 * kRowTiles);
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  // For statistics a warp keeps to one group, and merges those of its units as it goes.
  const int sets = call.warps / groups, step = call.moments ? sets * groups : call.warps;
  PairOfMoments kept[3] = {};
  int kept_rows = 0;
#pragma unroll 1
  for (int unit = warp_index() < step ? warp_index() : row_units * groups; unit < row_units * groups; unit += step) {
    const int group = unit % groups, row = unit / groups * 8 * kRowTiles;
    float y[1][3][kRowTiles][4] = {};
    const int near = row + lane % 8 + lane / 16 * 8, bit = lane / 8 % 2;
    const int r0 = near < rows ? near : rows - 1, r1 = near + 16 < rows ? near + 16 : rows - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < h_rows.chunks; chunk += 2) {
      const Bits128* const weight = shared_memory<Bits128>(weight_at) + (chunk / 2 * groups + group) * 96 + lane;
      // An odd last chunk is a k8 step; whatever stands in its second half is not used.
      const int mine = chunk + bit < h_rows.chunks ? chunk + bit : chunk;
      uint32_t b[2][4];
      ldmatrix_x4(b[0], shared_at + h_at + h_rows.offset(r0, mine));
      ldmatrix_x4(b[1], shared_at + h_at + h_rows.offset(r1, mine));
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Bits128 words = load_vector<Bits128>(weight + i * 32);
        const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          const uint32_t b0 = b[n / 2][n % 2 * 2], b1 = b[n / 2][n % 2 * 2 + 1];
          if constexpr (kIsTf32<T>) {  // chunks are even
            multiply_step<T>(y[0][i][n], a, b0, b1);
          } else if (chunk + 1 < h_rows.chunks) {
            mma_m16n8k16<T>(y[0][i][n], a, b0, b1);
          } else {
            mma_m16n8k8<T>(y[0][i][n], a[0], a[1], b0);
          }
        }
      }
    }
    const int o = (slice * groups + group) * kGroup + 2 * g;
    if (call.moments) {
      const int left = rows - row, count = left < 8 * kRowTiles ? left : 8 * kRowTiles;
      const auto real = [&](int, int at) { return at < left; };
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        merge(kept[i], kept_rows, moments_of<T>(call, y, i, o + 16 * i, count, real), count);
      }
      kept_rows += count;
    }
    const T* const bias = static_cast<const T*>(call.moments ? nullptr : call.bias);
    const int64_t first_row = (static_cast<int64_t>(clip) * call.windows + first_window) * call.nodes + row + 2 * t;
    T* const to = static_cast<T*>(call.y) + first_row * call.O + o;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const bool biased = bias && o + 16 * i < call.O;
      const float bias0 = biased ? to_float(load_readonly(bias + o + 16 * i)) : 0.f;
      const float bias1 = biased ? to_float(load_readonly(bias + o + 16 * i + 1)) : 0.f;
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        const int at = row + n * 8 + 2 * t;
        const bool stored = o + 16 * i < call.O;
        store_nodes(to + n * 8 * call.O + 16 * i, call.O, y[0][i][n], bias0, bias1, call.relu, stored && at < rows,
                    stored && at + 1 < rows);
      }
    }
  }
  if (call.moments) {
    block_barrier();  // nobody reads H and W any more: moments go over all there is
#pragma unroll
    for (int i = 0; i < 3; ++i) keep_moments(0, i, kept[i]);
    leave_part(call, slice, 0, [&](int warp) {
      const int set = warp / groups, units = set < sets ? (row_units - set + sets - 1) / sets : 0;
      const bool has_last = units > 0 && (row_units - 1) % sets == set;
      return units * 8 * kRowTiles - (has_last ? row_units * 8 * kRowTiles - rows : 0);
    });
  }
}

}  // namespace few_channels

int launch_few_channels(const ForwardCall& call, Type type, int64_t blocks, int shared_bytes, simt::Stream stream) {
  const simt::Grid grid{static_cast<unsigned>(blocks), static_cast<unsigned>(call.slices)};
  const auto run = [&](auto kernel) { return simt::launch(kernel, grid, call.warps * 32, shared_bytes, stream, call); };
  return run(type == Type::kBFloat16  ? few_channels::few_channels_kernel<simt::bf16>
             : type == Type::kFloat16 ? few_channels::few_channels_kernel<simt::half>
                                      : few_channels::few_channels_kernel<simt::tf32>);
}

}  // namespace msg3d::ms_g3d::cuda
