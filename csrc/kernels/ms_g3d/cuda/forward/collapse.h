// The collapse of a window for inference, behind the windows kernel:
//
//     out^T[o2, v] (+)= sum_w sum_o collapse_weight[o2,o,w] relu(y[(w,v), o] + bias[o])
//
// y of the block's windows goes into shared memory in T, a row for every node; a warp makes 48 channels of 32 joints of
// one window. The weights of one slot w at a time are double-buffered by cp.async. Slices of o are added up in memory,
// by the thread that wrote the sum before.
#pragma once

#include "forward.h"

namespace msg3d::ms_g3d::cuda {

// What store_nodes stores, but into two neighbouring rows, the first of them even, of shared memory, as operands. In
// either of the two stores of 16-bit pairs half of the lanes write each row, such that the words of eight rows fall
// into different banks.
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

// Fetches the weights of step `item` of the loop below.
template <typename T>
SIMT_DEVICE void fetch_collapse(const ForwardCall& call, int slice, int item) {
  const int at_once = call.collapse_groups;
  const int out_groups = (call.out_channels + kGroup - 1) / kGroup, group_bytes = call.groups * kGroupSteps<T> * 1536;
  const int slot_count = call.nodes / call.V, first = item / slot_count * at_once;
  const int count = out_groups - first < at_once ? out_groups - first : at_once;
  const int64_t at = (static_cast<int64_t>(slice) * slot_count + item % slot_count) * out_groups + first;
  fetch(simt::shared_address(simt::shared_memory<unsigned char>(call.stage_at)) + item % 2 * at_once * group_bytes,
        static_cast<const char*>(call.collapse) + at * group_bytes, count * group_bytes, call.warps * 32);
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

// After the barrier that ends the staging of y, with item 0 fetched. `first_window` counts from the first clip on.
template <typename T>
SIMT_DEVICE void collapse(const ForwardCall& call, int slice, int64_t first_window, int windows) {
  using namespace simt;
  const Rows& y_rows = call.y_rows;
  const int y_at = call.y_at, stage_at = call.stage_at, at_once = call.collapse_groups;
  const int out_groups = (call.out_channels + kGroup - 1) / kGroup, steps = call.groups * kGroupSteps<T>;
  const int slots = call.nodes / call.V, items = (out_groups + at_once - 1) / at_once * slots;
  const int lane = opaque(lane_index()), warp = opaque(warp_index());
  const int sets = call.tile_windows * ((call.V + 31) / 32), set = warp % sets, my_group = warp / sets;
  const int window = set % call.tile_windows, first_joint = set / call.tile_windows * 32;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
  const int near = first_joint + lane % 8 + lane / 16 * 8, bit = lane / 8 % 2;
  const int v0 = near < call.V ? near : call.V - 1, v1 = near + 16 < call.V ? near + 16 : call.V - 1;

  float sum[3][4][4] = {};
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    cp_async_wait<0>();
    block_barrier();  // these weights, and y before the first, are there for everybody; the other buffer is free
    if (item + 1 < items) fetch_collapse<T>(call, slice, item + 1);
    const int group = item / slots * at_once + my_group, slot = item % slots;
    if (my_group >= at_once || group >= out_groups || window >= windows) continue;  // the same for the whole warp
    const int row = window * call.y_pitch + slot * call.V;
    const int r0 = row + v0, r1 = row + v1;
    const Bits128* weight = shared_memory<Bits128>(stage_at + (item % 2 * at_once + my_group) * steps * 1536) + lane;
#pragma unroll 1
    for (int step = 0; step < steps; ++step, weight += 96) {
      uint32_t b[2][4];
      ldmatrix_x4(b[0], shared + y_at + y_rows.offset(r0, 2 * step + bit));
      if (first_joint + 24 < call.V) {
        ldmatrix_x4(b[1], shared + y_at + y_rows.offset(r1, 2 * step + bit));
      } else {  // three tiles of joints at the most
        uint32_t third[2];
        ldmatrix_x2(third, shared + y_at + y_rows.offset(r1, 2 * step + bit));
        b[1][0] = third[0], b[1][1] = third[1], b[1][2] = b[1][3] = 0;
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Bits128 words = load_vector<Bits128>(weight + i * 32);
        const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (first_joint + n * 8 < call.V)
            multiply_step<T>(sum[i][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
    if (slot + 1 < slots) continue;
    const int v = first_joint + lane % 4 * 2, o = group * kGroup + lane / 4 * 2;
    const bool last = slice + 1 == call.slices;
    const T* const bias = static_cast<const T*>(call.collapse_bias);
    T* const to = static_cast<T*>(call.y) + ((first_window + window) * call.V + v) * call.out_channels + o;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const bool stored = o + 16 * i < call.out_channels, biased = bias && stored && slice == 0;
      const float bias0 = biased ? to_float(load_readonly(bias + o + 16 * i)) : 0.f;
      const float bias1 = biased ? to_float(load_readonly(bias + o + 16 * i + 1)) : 0.f;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        T* const at = to + n * 8 * call.out_channels + 16 * i;
        const bool first = stored && v + n * 8 < call.V, second = stored && v + n * 8 + 1 < call.V;
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
