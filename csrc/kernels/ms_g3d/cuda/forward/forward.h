// What the kernels of the forward pass share: their parameters, the images that weights and A are packed into, and the
// layout of tiles in shared memory.
//
// Products are transposed: output channels are the m16 dimension, joints (or nodes) the n8 one. Within sixteen channels
// fragment row g holds channel 2g and row g+8 channel 2g+1, so that a lane owns neighbouring channels and y is stored
// from registers in whole sectors.
#pragma once

#include "../elements.h"
#include "../ms_g3d.h"

namespace msg3d::ms_g3d::cuda {

// Rows of 16-byte chunks in shared memory without padding. Chunk c of row r sits at place c ^ turn(r), which puts the
// same chunk of any eight neighbouring rows into different banks; adding a multiple of 8 to r does not change turn(r).
struct Rows {
  int chunks, mask, shift;

  SIMT_HOST_DEVICE int bytes() const { return chunks * 16; }
  SIMT_HOST_DEVICE int turn(int row) const { return (row >> shift) & mask; }
  SIMT_HOST_DEVICE int offset(int row, int chunk) const { return (row * chunks + (chunk ^ turn(row))) * 16; }
};

// The same for rows of Z in tf32, of which a half-warp touches two chunks, the first one even, of four neighbours.
struct PairedRows {
  Rows rows;

  SIMT_HOST_DEVICE int turn(int row) const { return (2 * row >> rows.shift) & rows.mask; }
  SIMT_HOST_DEVICE int offset(int row, int chunk) const { return (row * rows.chunks + (chunk ^ turn(row))) * 16; }
};

inline Rows paired_rows_of(int chunks) { return chunks % 8 == 0 ? Rows{chunks, 6, 0} : Rows{chunks, 2, 1}; }

inline Rows rows_of(int chunks) {
  const int power = chunks & -chunks, turns = power < 8 ? power : 8;
  return {chunks, turns - 1, turns == 8 ? 0 : turns == 4 ? 1 : 2};
}

struct ForwardCall {
  const void* x;
  const void* weight;     // packed
  const void* adjacency;  // packed
  const void* bias;
  void* y;
  int64_t frames;                                    // N*T
  int C, O, T, V, K, windows, nodes;                 // windows: T_out
  int stride, dilation, padding;                     // of the problem, in frames
  int frame_step, slots;                             // see ForwardPlan
  int tile_windows, groups, parts;                   // frames or windows of a block, 48-channel groups, runs of nodes
  int channel_steps, weight_steps, adjacency_steps;  // see ForwardPlan
  int weight_columns;                                // see ForwardPlan
  int slices, slices_per_block, warps;
  Rows x_rows, z_rows, y_rows;        // in shared memory, x from its start on; z: of Z, H
  int z_at, weight_at, adjacency_at;  // bytes from its start
  int weight_chunk_bytes, adjacency_chunk_bytes, adjacency_part_bytes;  // see ForwardPlan
  int unit_tiles;                                                       // see ForwardPlan
  bool wide_units;                                                      // see ForwardPlan
  bool relu;
  // With the collapse behind it, y is its output (N, T_out, V, out_channels) and relu is that output's. y_at: where y
  // of a slice goes in shared memory, of few channels where their bias is; kept_at: y of the slices that wait for the
  // last one, kept_bytes each; stage_at: the collapse's weights.
  const void* collapse;  // packed; null: none
  const void* collapse_bias;
  int out_channels, collapse_groups, collapse_tiles, slices_at_once;  // see ForwardPlan
  int y_at, kept_at, kept_bytes, stage_at;
  int y_pitch;  // rows of a window's y
  bool accumulate;
  float* moments;  // parts of y's statistics (moments.h); null: not wanted
};

// Tile by tile; each returns CUDA's status.
int launch_frames(const ForwardCall& call, Type type, int tile, int64_t blocks, int shared_bytes, simt::Stream stream);
int launch_windows(const ForwardCall& call, Type type, int tile, int64_t blocks, int shared_bytes, simt::Stream stream);

int launch_few_channels(const ForwardCall& call, Type type, int64_t blocks, int shared_bytes, simt::Stream stream);
int launch_few_channels_collapse(const ForwardCall& call, Type type, int64_t blocks, int shared_bytes,
                                 simt::Stream stream);

// Rounds what the oldest group of this thread's copies, all but one of them waited for here, and those of the other
// threads have brought to [0, bytes) of shared memory: operands of products are rounded once. The next barrier makes it
// visible.
template <typename T>
SIMT_DEVICE void round_in_place(int bytes, int threads) {
  if constexpr (kIsTf32<T>) {
    simt::cp_async_wait<1>();
    simt::block_barrier();
#pragma unroll 1
    for (int i = simt::thread_index() * 16; i < bytes; i += threads * 16) {
      unsigned char* const at = simt::shared_memory<unsigned char>(i);
      const simt::Bits128 v = simt::load_vector<simt::Bits128>(at);
      const auto rounded = [](uint32_t bits) { return simt::to_tf32(simt::bits_float(bits)); };
      simt::store_vector(at, simt::Bits128{rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)});
    }
  }
}

// Copies `bytes`, a multiple of 16, that lie in memory as they shall lie in shared memory.
SIMT_DEVICE void fetch(uint32_t shared, const void* image, int bytes, int threads) {
  const int thread = simt::opaque(simt::thread_index());
  const char* const source = static_cast<const char*>(image);
#pragma unroll 1
  for (int i = thread * 16; i < bytes; i += threads * 16) simt::cp_async<16>(shared + i, source + i);
}

// Two nodes v, v+1 of sixteen channels from an accumulator of y^T: d[0], d[1] are channel 2g of both, d[2], d[3] are
// channel 2g+1. `y` points to channel 2g of node v.
template <typename T>
SIMT_DEVICE void store_nodes(T* y, int O, const float (&d)[4], float bias0, float bias1, bool relu, bool first,
                             bool second) {
  float v00 = d[0] + bias0, v01 = d[2] + bias1, v10 = d[1] + bias0, v11 = d[3] + bias1;
  if (relu) {  // a NaN stays one
    v00 = v00 < 0 ? 0 : v00, v01 = v01 < 0 ? 0 : v01, v10 = v10 < 0 ? 0 : v10, v11 = v11 < 0 ? 0 : v11;
  }
  if (first) store_pair(y, v00, v01);
  if (second) store_pair(y + O, v10, v11);
}

}  // namespace msg3d::ms_g3d::cuda
