// The whole G3D block of few input channels (C <= 8) for inference on tensor cores: behind the aggregation of
// few_channels.h, for every slot w of a window in turn,
//
//     y[(f,v), o] = relu(sum_{k,c} H[(f,w,v), (k,c)] weight[o,(k,c)] + bias[o])
//     out[(f,v), o2] (+)= sum_o y[(f,v), o] collapse_weight[o2,o,w]
//
// Rows (f,v) of the block's windows are dense. A warp owns at most two m16 tiles of them and keeps 96 channels of their
// output in registers over all slots; y never leaves registers: its accumulators, rounded to T, are the A fragments of
// the second product (in tf32 with columns 2t and 2t+1 as t and t+4). The collapse's weights of a slot are
// double-buffered by cp.async, one barrier a slot, and read once for all windows of the block.
#include "few_channels.h"

namespace msg3d::ms_g3d::cuda {
namespace few_channels {

constexpr int kRowTiles = 2;                // of sixteen rows (f,v), of a warp
constexpr int kOutTiles = kFewOutputs / 8;  // of eight output channels at once
constexpr int kColumnTiles = kCollapseColumns / 8;

template <typename T>
constexpr int kGroupSteps = kGroup * sizeof(T) / kStepBytes;  // of a sum over a group's channels

// 48 channels of y of a warp's rows, as A fragments. `weight` is W of the first step for this lane, `h` the row of H of
// each tile, `bias` that of columns 2t and 2t+1.
template <typename T>
SIMT_DEVICE void project(const ForwardCall& call, uint32_t (&y)[kGroupSteps<T>][kRowTiles][4], const Bits128* weight,
                         const int (&h)[kRowTiles], bool two, const T* bias) {
  float sum[kRowTiles][6][4] = {};
  const int lane = lane_index();
  const uint32_t shared = shared_address(shared_memory<unsigned char>(call.z_at));
#pragma unroll 1
  for (int chunk = 0; chunk < call.z_rows.chunks; chunk += 2, weight += call.groups * 96) {
    Bits128 w[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) w[i] = load_vector<Bits128>(weight + i * 32);
    const bool whole = kIsTf32<T> || chunk + 1 < call.z_rows.chunks;  // an odd last chunk is half a step
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if (m > 0 && !two) break;
      uint32_t a[4];
      ldmatrix_x4(a, shared + call.z_rows.offset(h[m], whole ? chunk + lane / 16 : chunk));
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (whole) {
          multiply_step<T>(sum[m][2 * i], a, w[i].x, w[i].y);
          multiply_step<T>(sum[m][2 * i + 1], a, w[i].z, w[i].w);
        } else if constexpr (!kIsTf32<T>) {
          mma_m16n8k8<T>(sum[m][2 * i], a[0], a[1], w[i].x);
          mma_m16n8k8<T>(sum[m][2 * i + 1], a[0], a[1], w[i].z);
        }
      }
    }
  }
  const auto relu = [](float value) { return value < 0 ? 0.f : value; };  // a NaN stays one
#pragma unroll
  for (int n = 0; n < 6; ++n) {
    const float bias0 = to_float(bias[n * 8]), bias1 = to_float(bias[n * 8 + 1]);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const float (&d)[4] = sum[m][n];
      const float low0 = relu(d[0] + bias0), low1 = relu(d[1] + bias1);  // row g
      const float high0 = relu(d[2] + bias0), high1 = relu(d[3] + bias1);
      if constexpr (kIsTf32<T>) {
        y[n][m][0] = to_tf32(low0), y[n][m][1] = to_tf32(high0);
        y[n][m][2] = to_tf32(low1), y[n][m][3] = to_tf32(high1);
      } else {
        y[n / 2][m][n % 2 * 2] = pack_pair<T>(low0, low1);
        y[n / 2][m][n % 2 * 2 + 1] = pack_pair<T>(high0, high1);
      }
    }
  }
}

// Two neighbouring channels of a row.
template <typename T>
SIMT_DEVICE void load_two(const T* from, float& v0, float& v1) {
  if constexpr (kIsTf32<T>) {
    const Bits64 words = load_vector<Bits64>(from);
    v0 += bits_float(words.x), v1 += bits_float(words.y);
  } else {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
    v0 += pair_low<T>(pair), v1 += pair_high<T>(pair);
  }
}
template <typename T>
SIMT_DEVICE void store_two(T* to, float v0, float v1) {
  if constexpr (kIsTf32<T>) {
    store_vector(to, Bits64{float_bits(v0), float_bits(v1)});
  } else {
    *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(v0, v1);
  }
}

// Four neighbouring channels of a row of the output, from `channel` on: whole sectors of four lanes where their number
// allows it.
template <typename T>
SIMT_DEVICE void add_outputs(const ForwardCall& call, int64_t row, int channel, float v0, float v1, float v2,
                             float v3) {
  T* const at = static_cast<T*>(call.y) + row * call.out_channels + channel;
  const T* const bias = static_cast<const T*>(call.collapse_bias) + channel;
  const bool biased = call.collapse_bias != nullptr, four = channel + 2 < call.out_channels;
  if (biased) v0 += to_float(load_readonly(bias)), v1 += to_float(load_readonly(bias + 1));
  if (biased && four) v2 += to_float(load_readonly(bias + 2)), v3 += to_float(load_readonly(bias + 3));
  if (call.accumulate) {
    load_two<T>(at, v0, v1);
    if (four) load_two<T>(at + 2, v2, v3);
  }
  if (call.relu) v0 = v0 < 0 ? 0 : v0, v1 = v1 < 0 ? 0 : v1, v2 = v2 < 0 ? 0 : v2, v3 = v3 < 0 ? 0 : v3;
  if (call.out_channels % 4 != 0) {
    store_two<T>(at, v0, v1);
    if (four) store_two<T>(at + 2, v2, v3);
  } else if constexpr (kIsTf32<T>) {
    store_vector(at, Bits128{float_bits(v0), float_bits(v1), float_bits(v2), float_bits(v3)});
  } else {
    store_vector(at, Bits64{pack_pair<T>(v0, v1), pack_pair<T>(v2, v3)});
  }
}

template <typename T>
SIMT_KERNEL(kMostWarps * 32, 1)
void few_channels_collapse_kernel(ForwardCall call) {
  const int threads = call.warps * 32, V = call.V, slots = call.nodes / V, steps = call.groups * kGroupSteps<T>;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
  const int tiles = (call.windows + call.tile_windows - 1) / call.tile_windows;
  const int clip = block_x() / tiles, first_window = block_x() % tiles * call.tile_windows;
  const int windows = call.windows - first_window < call.tile_windows ? call.windows - first_window : call.tile_windows;

  const int item_bytes = steps * kOutTiles * 256;  // of a slot's weights for kFewOutputs channels
  const int items = (call.out_channels + kFewOutputs - 1) / kFewOutputs * slots;
  const auto fetch_item = [&](int item) {
    fetch(shared + call.stage_at + item % 2 * item_bytes,
          static_cast<const char*>(call.collapse) + static_cast<int64_t>(item) * item_bytes, item_bytes, threads);
    cp_async_commit();
  };
  fetch(shared + call.weight_at, call.weight, call.channel_steps * call.groups * 3 * 512, threads);
  fetch_item(0);
#pragma unroll 1
  for (int o = thread_index(); o < call.groups * kGroup; o += threads) {
    const bool biased = call.bias != nullptr && o < call.O;
    shared_memory<T>(call.y_at)[o] = biased ? load_readonly(static_cast<const T*>(call.bias) + o) : from_float<T>(0.f);
  }
  const int columns = call.tile_windows * call.C;
  stage_x<T>(call, (columns + 15) / 16 * 16, clip, first_window, windows);
  block_barrier();  // x is there
  aggregate<T, 2, kColumnTiles>(call, columns);

  const int lane = lane_index(), rows = windows * V, first = warp_index() * 16, second = first + call.warps * 16;
  const bool one = first < rows, two = second < rows;  // the same for the whole warp
  int h_row[kRowTiles];                                // of slot 0
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const int near = (m == 0 ? first : second) + lane % 16, row = near < rows ? near : rows - 1;
    h_row[m] = row / V * call.nodes + row % V;
  }
  float out[kRowTiles][kOutTiles][4] = {};
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    cp_async_wait<0>();
    block_barrier();  // H is complete, all weights have landed; nobody reads the other buffer
    if (item + 1 < items) fetch_item(item + 1);
    if (!one) continue;
    const int l = opaque(lane), slot = item % slots;
    const int h[kRowTiles] = {h_row[0] + slot * V, h_row[1] + slot * V};
    const Bits128* next = shared_memory<Bits128>(call.stage_at + item % 2 * item_bytes) + l;
#pragma unroll 1
    for (int group = 0; group < call.groups; ++group) {
      uint32_t y[kGroupSteps<T>][kRowTiles][4];
      project<T>(call, y, shared_memory<Bits128>(call.weight_at) + group * 96 + l, h, two,
                 shared_memory<T>(call.y_at) + group * kGroup + l % 4 * 2);
#pragma unroll
      for (int i = 0; i < kGroupSteps<T>; ++i, next += kOutTiles * 16) {
#pragma unroll
        for (int n = 0; n < kOutTiles; n += 2) {
          const Bits128 b = load_vector<Bits128>(next + n * 16);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            if (m > 0 && !two) break;
            multiply_step<T>(out[m][n], y[i][m], b.x, b.y);
            multiply_step<T>(out[m][n + 1], y[i][m], b.z, b.w);
          }
        }
      }
    }
    if (slot + 1 < slots) continue;
    const int64_t first_row = (static_cast<int64_t>(clip) * call.windows + first_window) * V;
    const int channel = item / slots * kFewOutputs + l % 4 * 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 2) {
        const int row = (m == 0 ? first : second) + l / 4, o = channel + n * 8;
        float (&low)[4] = out[m][n], (&high)[4] = out[m][n + 1];
        if (row < rows && o < call.out_channels) {
          add_outputs<T>(call, first_row + row, o, low[0], low[1], high[0], high[1]);
        }
        if (row + 8 < rows && o < call.out_channels) {
          add_outputs<T>(call, first_row + row + 8, o, low[2], low[3], high[2], high[3]);
        }
        low[0] = low[1] = low[2] = low[3] = high[0] = high[1] = high[2] = high[3] = 0;
      }
    }
  }
}

}  // namespace few_channels

int launch_few_channels_collapse(const ForwardCall& call, Type type, int64_t blocks, int shared_bytes,
                                 simt::Stream stream) {
  const simt::Grid grid{static_cast<unsigned>(blocks)};
  const auto run = [&](auto kernel) { return simt::launch(kernel, grid, call.warps * 32, shared_bytes, stream, call); };
  return run(type == Type::kBFloat16  ? few_channels::few_channels_collapse_kernel<simt::bf16>
             : type == Type::kFloat16 ? few_channels::few_channels_collapse_kernel<simt::half>
                                      : few_channels::few_channels_collapse_kernel<simt::tf32>);
}

}  // namespace msg3d::ms_g3d::cuda
