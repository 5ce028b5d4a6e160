// What both kernels of few input channels (C <= 8: the network's first stage) start with, aggregation:
//
//     H[(f,r), (k,c)] = sum_j A[k,r,j] x_f[j,c]           rows (r,k), columns (f,c)
//
// f counts the block's windows, j = (w',u) runs over their nodes. x is gathered element by element (a frame of 3
// channels has no 16-byte pieces) into x_f^T, A is read once, fragment by fragment, from the second-level cache, H goes
// to shared memory, a row for every node of every window.
#pragma once

#include "forward.h"

namespace msg3d::ms_g3d::cuda {
namespace few_channels {

using namespace simt;

template <typename T>
SIMT_DEVICE T* place(int base, const Rows& rows, int row, int column) {
  return reinterpret_cast<T*>(shared_memory<unsigned char>(base) + rows.offset(row, column / kPerChunk<T>)) +
         column % kPerChunk<T>;
}

// `columns` rows (f,c) of x_f^T, and zeros behind the K*C columns of H. Nodes outside the clip, nodes behind the last
// and rows behind the last are zero.
template <typename T>
SIMT_DEVICE void stage_x(const ForwardCall& call, int columns, int clip, int first_window, int windows) {
  constexpr int kPerStep = kStepBytes / sizeof(T);
  const int threads = call.warps * 32, sources = (call.nodes + kPerStep - 1) / kPerStep * kPerStep;
  const T* const x = static_cast<const T*>(call.x) + static_cast<int64_t>(clip) * call.T * call.V * call.C;
#pragma unroll 1
  for (int i = thread_index(); i < (columns + call.C - 1) / call.C * call.C * sources; i += threads) {
    const int c = i % call.C, at = i / call.C, j = at % sources, f = at / sources;
    const int slot = j / call.V, frame = (first_window + f) * call.stride + slot * call.dilation - call.padding;
    const bool inside = f < windows && j < call.nodes && frame >= 0 && frame < call.T;
    T value = from_float<T>(0.f);
    if (inside) value = load_readonly(x + static_cast<int64_t>(frame * call.V + j - slot * call.V) * call.C + c);
    if (kIsTf32<T>) value = from_float<T>(to_float(value));  // rounds
    if (f * call.C + c < columns) *place<T>(0, call.x_rows, f * call.C + c, j) = value;
  }
  const int filled = call.K * call.C, padding = call.z_rows.chunks * kPerChunk<T> - filled;
#pragma unroll 1
  for (int i = thread_index(); i < call.tile_windows * call.nodes * padding; i += threads) {
    *place<T>(call.z_at, call.z_rows, i / padding, filled + i % padding) = from_float<T>(0.f);
  }
}

// A of an m16 tile and a step; the words of a lane lie side by side.
SIMT_DEVICE void load_fragment(uint32_t (&a)[4], const Bits128* from) {
  const Bits128 words = load_readonly(from);
  a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
}

// H of the first `columns` columns, at most kColumnTiles * 8; a warp makes kRowTiles m16 tiles at once.
template <typename T, int kRowTiles, int kColumnTiles>
SIMT_DEVICE void aggregate(const ForwardCall& call, int columns) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  constexpr int kPerStep = kStepBytes / sizeof(T);
  const int steps = (call.nodes + kPerStep - 1) / kPerStep, row_tiles = (call.nodes * call.K + 15) / 16;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
#pragma unroll 1
  for (int tile = warp_index() * kRowTiles; tile < row_tiles; tile += call.warps * kRowTiles) {
    float h[kRowTiles][kColumnTiles][4] = {};
    const Bits128* from = static_cast<const Bits128*>(call.adjacency) + static_cast<int64_t>(tile) * steps * 32 + lane;
    uint32_t a[kRowTiles][4], next[kRowTiles][4] = {};
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if (tile + m < row_tiles) load_fragment(next[m], from + m * steps * 32);
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = next[m][i];
        if (step + 1 < steps && tile + m < row_tiles) load_fragment(next[m], from + (m * steps + step + 1) * 32);
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        if (n * 8 >= columns) break;
        const uint32_t address = shared + call.x_rows.offset(n * 8 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2);
        uint32_t b[4];
        if (n + 1 < kColumnTiles) {
          ldmatrix_x4(b, address);
        } else {
          uint32_t last[2];
          ldmatrix_x2(last, shared + call.x_rows.offset(n * 8 + lane % 8, 2 * step + lane / 8 % 2));
          b[0] = last[0], b[1] = last[1], b[2] = b[3] = 0;
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply_step<T>(h[m][n], a[m], b[0], b[1]);
          if (n + 1 < kColumnTiles) multiply_step<T>(h[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int half_tile = 0; half_tile < 2 * kRowTiles; ++half_tile) {
      const int m = tile * 16 + half_tile * 8 + g, r = m / call.K, k = m - r * call.K;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        if (n * 8 >= columns) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = n * 8 + 2 * t + i, f = column / call.C, c = column - f * call.C;
          if (r < call.nodes && f < call.tile_windows) {
            *place<T>(call.z_at, call.z_rows, f * call.nodes + r, k * call.C + c) =
                from_float<T>(h[half_tile / 2][n][half_tile % 2 * 2 + i]);
          }
        }
      }
    }
  }
}

}  // namespace few_channels
}  // namespace msg3d::ms_g3d::cuda
