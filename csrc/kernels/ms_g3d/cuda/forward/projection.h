// Phase 1 of the windows kernel, the projection of its frames: Z_k[(f,u), o] = sum_c x[f,u,c] weight[o,k,c]. A warp
// takes units of 16 rows times `unit_tiles` and 24 or 48 channels.
#pragma once

#include "forward.h"

namespace msg3d::ms_g3d::cuda {
namespace windows {

using namespace simt;

constexpr int kUnitBytes = 768;  // of W, one step of 24 channels

// Z of rows [row, end), at most kTiles * 16, and kColumns times 24 channels.
template <typename T, int kColumns, int kTiles>
struct Unit {
  float sum[kTiles][kColumns * 3][4] = {};
  int row, end;

  SIMT_DEVICE Unit(int first, int last) : row(first), end(last) {}

  // Adds steps [step, last) of the channels, whose W is at `weight`, a column's behind the other's.
  SIMT_DEVICE void multiply(const ForwardCall& call, int step, int last, const unsigned char* weight) {
    const int lane = opaque(lane_index()), bit = lane / 16;
    uint32_t x[kTiles];
    int turn[kTiles];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const int mine = row + 16 * m + lane % 16, r = mine < end ? mine : end - 1;
      x[m] = shared_address(shared_memory<unsigned char>()) + r * call.x_rows.bytes(), turn[m] = call.x_rows.turn(r);
    }
#pragma unroll 1
    for (; step < last; ++step, weight += kUnitBytes) {
      Bits128 b01[kColumns];
      Bits64 b2[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        b01[c] = load_vector<Bits128>(weight + c * call.weight_chunk_bytes + lane * 16);
        b2[c] = load_vector<Bits64>(weight + c * call.weight_chunk_bytes + 512 + lane * 8);
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (row + 16 * m >= end) break;  // the same for the whole warp
        uint32_t a[4];
        ldmatrix_x4(a, x[m] + ((2 * step + bit) ^ turn[m]) * 16);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          multiply_step<T>(sum[m][3 * c], a, b01[c].x, b01[c].y);
          multiply_step<T>(sum[m][3 * c + 1], a, b01[c].z, b01[c].w);
          multiply_step<T>(sum[m][3 * c + 2], a, b2[c].x, b2[c].y);
        }
      }
    }
  }

  // Into rows of Z from their eight channels `column` on.
  SIMT_DEVICE void leave(const ForwardCall& call, int column) const {
    const int lane = opaque(lane_index());
    unsigned char* const z = shared_memory<unsigned char>(call.z_at);
#pragma unroll
    for (int half_tile = 0; half_tile < 2 * kTiles; ++half_tile) {  // rows g, g+8, g+16, ...
      const int r = row + half_tile * 8 + lane / 4;
      if (r < end) {
#pragma unroll
        for (int n = 0; n < kColumns * 3; ++n) {
          const float* const d = sum[half_tile / 2][n] + half_tile % 2 * 2;
          if constexpr (kIsTf32<T>) {
            const int chunk = 2 * (column + n) + lane % 4 / 2;
            store_vector(z + PairedRows{call.z_rows}.offset(r, chunk) + lane % 2 * 8,
                         Bits64{to_tf32(d[0]), to_tf32(d[1])});
          } else {
            *reinterpret_cast<uint32_t*>(z + call.z_rows.offset(r, column + n) + lane % 4 * 4) =
                pack_pair<T>(d[0], d[1]);
          }
        }
      }
    }
  }
};

// Phase 1. `turn` waits for the next chunk of W and says where it is. Several chunks along the summed channels mean at
// most one unit for a warp, which keeps it in registers.
template <typename T, int kColumns, int kTiles, bool kChunks, typename Turn>
SIMT_DEVICE void project(const ForwardCall& call, const Turn& turn) {
  const int rows = call.slots * call.V, height = call.unit_tiles * 16;
  const int columns = call.groups * kGroup / kColumnStep, at_once = kChunks ? call.weight_columns : columns;
  const int across = at_once / kColumns;  // units of a chunk side by side
  const int units = (rows + height - 1) / height * across;
  const int steps = kChunks ? call.weight_steps : call.channel_steps;
  int weight_at = 0;
  int first_column = 0;
  do {
#pragma unroll 1
    for (int first = 0; first < units; first += call.warps) {
      const int unit = first + opaque(warp_index()), column = unit % across, row = unit / across * height;
      Unit<T, kColumns, kTiles> z(row, row + height < rows ? row + height : rows);
#pragma unroll 1
      for (int step = 0; step < call.channel_steps; step += steps) {
        if (first == 0) weight_at = turn();
        const int last = step + steps < call.channel_steps ? step + steps : call.channel_steps;
        if (unit < units) {
          z.multiply(call, step, last,
                     shared_memory<unsigned char>(weight_at + column * kColumns * call.weight_chunk_bytes));
        }
      }
      if (unit < units) z.leave(call, (first_column + column * kColumns) * 3);
    }
    first_column += at_once;
  } while (kChunks && first_column < columns);
}

}  // namespace windows
}  // namespace msg3d::ms_g3d::cuda
