// The collapse of a window for inference, behind the windows kernel:
//
//     out^T[o2, v] (+)= sum_w sum_o collapse_weight[o2,o,w] relu(y[(w,v), o] + bias[o])
//
// y of the block's windows f goes into shared memory in T, a row for every node. Rows (f,v) of a slot w are dense: a
// warp makes 48 channels of at most 64 of them. The weights pass double-buffered by cp.async, 48 channels o of one slot
// at a time. Slices of o that wait for the last one are summed up with it in registers; where shared memory has no room
// for them, every slice is added up in memory, by the thread that wrote the sum before.
#pragma once

#include "forward.h"

namespace msg3d::ms_g3d::cuda {

// What store_nodes stores, but into two neighbouring rows of shared memory, as operands. In either of the two stores of
// 16-bit pairs half of the lanes write each row, such that the words of eight rows fall into different banks.
template <typename T>
SIMT_DEVICE void stage_nodes(unsigned char* y, const Rows& rows, int row, int channel, const float (&d)[4], float bias0,
                             float bias1, bool first, bool second) {
  const auto relu = [](float value) { return value < 0 ? 0.f : value; };
  const float v00 = relu(d[0] + bias0), v01 = relu(d[2] + bias1), v10 = relu(d[1] + bias0), v11 = relu(d[3] + bias1);
  const auto place = [&](int r) {
    return y + rows.offset(r, channel / kPerChunk<T>) + channel % kPerChunk<T> * static_cast<int>(sizeof(T));
  };
  if constexpr (kIsTf32<T>) {
    if (first) simt::store_vector(place(row), simt::Bits64{simt::to_tf32(v00), simt::to_tf32(v01)});
    if (second) simt::store_vector(place(row + 1), simt::Bits64{simt::to_tf32(v10), simt::to_tf32(v11)});
  } else {
    const uint32_t word0 = simt::pack_pair<T>(v00, v01), word1 = simt::pack_pair<T>(v10, v11);
    const int turn = rows.mask == 7 ? 0 : rows.turn(row), lower = (simt::lane_index() / 4 + turn) % 2;
    const int row0 = row + lower, row1 = row + 1 - lower;
    if (lower ? second : first) *reinterpret_cast<uint32_t*>(place(row0)) = lower ? word1 : word0;
    if (lower ? first : second) *reinterpret_cast<uint32_t*>(place(row1)) = lower ? word0 : word1;
  }
}

template <typename T>
constexpr int kGroupSteps = kGroup * sizeof(T) / kStepBytes;  // of a sum over a group's channels
template <typename T>
constexpr int kPieceBytes = kGroupSteps<T> * 3 * 512;  // weights of 48 output channels and 48 channels o

// Where y of a slice goes.
SIMT_DEVICE int y_of_slice(const ForwardCall& call, int slice) {
  return (slice + 1) % call.slices_at_once == 0 ? call.y_at : call.kept_at + slice * call.kept_bytes;
}

// Fetches the weights of step `item` of the loop below: of slices from `slice` on.
template <typename T>
SIMT_DEVICE void fetch_collapse(const ForwardCall& call, int slice, int item) {
  const int at_once = call.collapse_groups, pieces = call.slices_at_once * call.groups, slots = call.nodes / call.V;
  const int out_groups = (call.out_channels + kGroup - 1) / kGroup, first = item / pieces / slots * at_once;
  const int count = out_groups - first < at_once ? out_groups - first : at_once;
  const int64_t piece = (item / pieces % slots * call.slices + slice) * call.groups + item % pieces;
  fetch(simt::shared_address(simt::shared_memory<unsigned char>(call.stage_at)) + item % 2 * at_once * kPieceBytes<T>,
        static_cast<const char*>(call.collapse) + (piece * out_groups + first) * kPieceBytes<T>, count * kPieceBytes<T>,
        call.warps * 32);
  simt::cp_async_commit();
}

// Adds two neighbours in memory to two sums.
template <typename T>
SIMT_DEVICE void add_pair(const T* from, float& sum0, float& sum1) {
  if constexpr (kIsTf32<T>) {
    const simt::Bits64 pair = simt::load_vector<simt::Bits64>(from);
    sum0 += simt::bits_float(pair.x), sum1 += simt::bits_float(pair.y);
  } else {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
    sum0 += simt::pair_low<T>(pair), sum1 += simt::pair_high<T>(pair);
  }
}

// Of `slices_at_once` slices from `slice` on, behind the staging of their y, with item 0 fetched. `first_window` counts
// from the first clip on.
template <typename T>
SIMT_DEVICE void collapse(const ForwardCall& call, int slice, int64_t first_window, int windows) {
  using namespace simt;
  const Rows& y_rows = call.y_rows;
  const int at_once = call.collapse_groups, tiles = call.collapse_tiles, pieces = call.slices_at_once * call.groups;
  const int out_groups = (call.out_channels + kGroup - 1) / kGroup, slots = call.nodes / call.V;
  const int items = (out_groups + at_once - 1) / at_once * slots * pieces;
  const int lane = opaque(lane_index()), warp = opaque(warp_index()), my_group = warp % at_once;
  const int rows = windows * call.V, first_row = warp / at_once * tiles * 8, bit = lane / 8 % 2;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
  int mine[kCollapseTiles / 2];  // rows of slot 0 whose addresses this lane gives ldmatrix
#pragma unroll
  for (int pair = 0; pair < kCollapseTiles / 2; ++pair) {
    const int near = first_row + pair * 16 + lane % 8 + lane / 16 * 8, row = near < rows ? near : rows - 1;
    mine[pair] = row / call.V * call.y_pitch + row % call.V;
  }

  float sum[3][kCollapseTiles][4] = {};
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    cp_async_wait<0>();
    block_barrier();  // these weights, and y before the first, are there for everybody; the other buffer is free
    if (item + 1 < items) fetch_collapse<T>(call, slice, item + 1);
    const int piece = item % pieces, slot = item / pieces % slots, group = item / pieces / slots * at_once + my_group;
    if (group >= out_groups || first_row >= rows) continue;  // the same for the whole warp
    const uint32_t y = shared + y_of_slice(call, slice + piece / call.groups);
    const int column = piece % call.groups * 2 * kGroupSteps<T> + bit;
    const Bits128* weight =
        shared_memory<Bits128>(call.stage_at + (item % 2 * at_once + my_group) * kPieceBytes<T>) + lane;
#pragma unroll 1
    for (int step = 0; step < kGroupSteps<T>; ++step, weight += 96) {
      uint32_t a[3][4];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Bits128 words = load_vector<Bits128>(weight + i * 32);
        a[i][0] = words.x, a[i][1] = words.y, a[i][2] = words.z, a[i][3] = words.w;
      }
#pragma unroll
      for (int pair = 0; pair < kCollapseTiles / 2; ++pair) {
        if (2 * pair >= tiles || first_row + pair * 16 >= rows) break;
        uint32_t b[4];
        ldmatrix_x4(b, y + y_rows.offset(mine[pair] + slot * call.V, column + 2 * step));
        const bool both = 2 * pair + 1 < tiles && first_row + pair * 16 + 8 < rows;
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          multiply_step<T>(sum[i][2 * pair], a[i], b[0], b[1]);
          if (both) multiply_step<T>(sum[i][2 * pair + 1], a[i], b[2], b[3]);
        }
      }
    }
    if (slot + 1 < slots || piece + 1 < pieces) continue;
    const int r = first_row + lane % 4 * 2, o = group * kGroup + lane / 4 * 2;
    const bool last = slice + call.slices_at_once == call.slices;
    const T* const bias = static_cast<const T*>(call.collapse_bias);
    T* const to = static_cast<T*>(call.y) + (first_window * call.V + r) * call.out_channels + o;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const bool stored = o + 16 * i < call.out_channels, biased = bias && stored && slice == 0;
      const float bias0 = biased ? to_float(load_readonly(bias + o + 16 * i)) : 0.f;
      const float bias1 = biased ? to_float(load_readonly(bias + o + 16 * i + 1)) : 0.f;
#pragma unroll
      for (int n = 0; n < kCollapseTiles; ++n) {
        if (n >= tiles) break;
        T* const at = to + n * 8 * call.out_channels + 16 * i;
        const bool first = stored && r + n * 8 < rows, second = stored && r + n * 8 + 1 < rows;
        if (call.accumulate || slice > 0) {
          if (first) add_pair(at, sum[i][n][0], sum[i][n][2]);
          if (second) add_pair(at + call.out_channels, sum[i][n][1], sum[i][n][3]);
        }
        store_nodes(at, call.out_channels, sum[i][n], bias0, bias1, last && call.relu, first, second);
        sum[i][n][0] = sum[i][n][1] = sum[i][n][2] = sum[i][n][3] = 0;
      }
    }
  }
}

}  // namespace msg3d::ms_g3d::cuda
