// MS-GCN and MS-G3D of few input channels (C <= 8: the network's first stage) on tensor cores, operands of 16 bits or
// tf32, sums in float. Aggregate first: with K*C as short as it is, both products together take less time than writing
// y.
//
//     1  H[(f,r), (k,c)] = sum_j A[k,r,j] x_f[j,c]           rows (r,k), columns (f,c): H into shared memory
//     2  y^T[o, (f,r)] = sum_{k,c} weight[o,(k,c)] H[(f,r), (k,c)]
//
// A block owns kFewColumns / C windows f; j = (w',u) runs over their nodes. x is gathered element by element (a frame
// of 3 channels has no 16-byte pieces) into x_f^T, A is read once, fragment by fragment, from the second-level cache.
#include "collapse.h"

namespace msg3d::ms_g3d::cuda {
namespace few_channels {

using namespace simt;

constexpr int kRowTiles = 4;  // of eight rows of H that a warp multiplies at once in phase 2

// A of an m16 tile and a step; the words of a lane lie side by side.
SIMT_DEVICE void load_fragment(uint32_t (&a)[4], const Bits128* from) {
  const Bits128 words = load_readonly(from);
  a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
}

template <typename T>
SIMT_KERNEL(kMostWarps * 32, 2)
void few_channels_kernel(ForwardCall call) {
  const int threads = call.warps * 32;
  constexpr int kPerStep = kStepBytes / sizeof(T);
  const int steps = (call.nodes + kPerStep - 1) / kPerStep;  // of phase 1
  const Rows &x_rows = call.x_rows, &h_rows = call.z_rows;
  const int h_count = call.tile_windows * call.nodes, h_at = call.z_at, weight_at = call.weight_at;
  unsigned char* const shared = shared_memory<unsigned char>();
  const uint32_t shared_at = shared_address(shared);
  const int tiles = (call.windows + call.tile_windows - 1) / call.tile_windows;
  const int clip = block_x() / tiles, first_window = block_x() % tiles * call.tile_windows;
  const int windows = call.windows - first_window < call.tile_windows ? call.windows - first_window : call.tile_windows;

  fetch(shared_at + weight_at, call.weight, call.slices * call.channel_steps * call.groups * 3 * 512, threads);
  cp_async_commit();
  const auto place = [&](int base, const Rows& rows, int row, int column) {
    return reinterpret_cast<T*>(shared + base + rows.offset(row, column / kPerChunk<T>)) + column % kPerChunk<T>;
  };
  {  // x_f^T, rows (f,c); nodes outside the clip, nodes behind the last and rows behind the last are zero
    const T* const x = static_cast<const T*>(call.x) + static_cast<int64_t>(clip) * call.T * call.V * call.C;
#pragma unroll 1
    for (int i = thread_index(); i < (kFewColumns + call.C - 1) / call.C * call.C * steps * kPerStep; i += threads) {
      const int c = i % call.C, at = i / call.C, j = at % (steps * kPerStep), f = at / (steps * kPerStep);
      const int slot = j / call.V, frame = (first_window + f) * call.stride + slot * call.dilation - call.padding;
      const bool inside = f < windows && j < call.nodes && frame >= 0 && frame < call.T;
      T value = from_float<T>(0.f);
      if (inside) value = load_readonly(x + static_cast<int64_t>(frame * call.V + j - slot * call.V) * call.C + c);
      if (kIsTf32<T>) value = from_float<T>(to_float(value));  // rounds
      if (f * call.C + c < kFewColumns) *place(0, x_rows, f * call.C + c, j) = value;
    }
    const int filled = call.K * call.C, padding = h_rows.chunks * kPerChunk<T> - filled;
#pragma unroll 1
    for (int i = thread_index(); i < h_count * padding; i += threads) {
      *place(h_at, h_rows, i / padding, filled + i % padding) = from_float<T>(0.f);
    }
  }
  block_barrier();

  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int row_tiles = (call.nodes * call.K + 15) / 16;
#pragma unroll 1
  for (int tile = warp_index(); tile < row_tiles; tile += call.warps) {
    float h[3][4] = {};
    const Bits128* from = static_cast<const Bits128*>(call.adjacency) + static_cast<int64_t>(tile) * steps * 32 + lane;
    uint32_t a[4], next[4];
    load_fragment(next, from);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = next[i];
      if (step + 1 < steps) load_fragment(next, from + (step + 1) * 32);
      uint32_t b[4], third[2];
      ldmatrix_x4(b, shared_at + x_rows.offset(lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
      ldmatrix_x2(third, shared_at + x_rows.offset(16 + lane % 8, 2 * step + lane / 8 % 2));
      multiply_step<T>(h[0], a, b[0], b[1]);
      multiply_step<T>(h[1], a, b[2], b[3]);
      multiply_step<T>(h[2], a, third[0], third[1]);
    }
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      const int m = tile * 16 + half_tile * 8 + g, r = m / call.K, k = m - r * call.K;
#pragma unroll
      for (int n = 0; n < 3; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = n * 8 + 2 * t + i, f = column / call.C, c = column - f * call.C;
          if (r < call.nodes && f < call.tile_windows) {
            *place(h_at, h_rows, f * call.nodes + r, k * call.C + c) = from_float<T>(h[n][half_tile * 2 + i]);
          }
        }
      }
    }
  }
  cp_async_wait<0>();
  block_barrier();  // H is complete and W has landed

  const int rows = windows * call.nodes, row_units = (rows + 8 * kRowTiles - 1) / (8 * kRowTiles);
  const int all_groups = call.slices * call.groups;
#pragma unroll 1
  for (int unit = warp_index(); unit < row_units * all_groups; unit += call.warps) {
    const int group = unit % all_groups, row = unit / all_groups * 8 * kRowTiles;
    float y[3][kRowTiles][4] = {};
    const int near = row + lane % 8 + lane / 16 * 8, bit = lane / 8 % 2;
    const int r0 = near < rows ? near : rows - 1, r1 = near + 16 < rows ? near + 16 : rows - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < h_rows.chunks; chunk += 2) {
      const Bits128* const weight = shared_memory<Bits128>(weight_at) + (chunk / 2 * all_groups + group) * 96 + lane;
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
            multiply_step<T>(y[i][n], a, b0, b1);
          } else if (chunk + 1 < h_rows.chunks) {
            mma_m16n8k16<T>(y[i][n], a, b0, b1);
          } else {
            mma_m16n8k8<T>(y[i][n], a[0], a[1], b0);
          }
        }
      }
    }
    const int o = group * kGroup + 2 * g;
    const T* const bias = static_cast<const T*>(call.bias);
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
        if (call.collapse) {
          stage_nodes<T>(shared + call.y_at, call.y_rows, at, o + 16 * i, y[i][n], bias0, bias1, at < rows,
                         at + 1 < rows);
        } else {
          const bool stored = o + 16 * i < call.O;
          store_nodes(to + n * 8 * call.O + 16 * i, call.O, y[i][n], bias0, bias1, call.relu, stored && at < rows,
                      stored && at + 1 < rows);
        }
      }
    }
  }
  if (!call.collapse) return;
  block_barrier();  // nobody reads H and W any more
  fetch_collapse<T>(call, 0, 0);
  collapse<T>(call, 0, static_cast<int64_t>(clip) * call.windows + first_window, windows);
}

}  // namespace few_channels

int launch_few_channels(const ForwardCall& call, Type type, int64_t blocks, int shared_bytes, simt::Stream stream) {
  const simt::Grid grid{static_cast<unsigned>(blocks)};
  const auto run = [&](auto kernel) { return simt::launch(kernel, grid, call.warps * 32, shared_bytes, stream, call); };
  return run(type == Type::kBFloat16  ? few_channels::few_channels_kernel<simt::bf16>
             : type == Type::kFloat16 ? few_channels::few_channels_kernel<simt::half>
                                      : few_channels::few_channels_kernel<simt::tf32>);
}

}  // namespace msg3d::ms_g3d::cuda
