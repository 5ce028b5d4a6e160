// The aggregation of the backward pass, shared by grad_x and grad_weight: a warp sums what the windows that read a
// frame send back to it,
//
//     H_k[f,u,o] = sum over windows t and slots w' with t*s + w'*d - p = f, and nodes (w,v), of
//                  A[k,(w,v),(w',u)] * gy[t,(w,v),o],
//
// for up to kScales scales at once as H_k^T: 32 channels o are two m16 tiles (gathered_channel), joints u are n8 tiles,
// the sum runs in steps of kPerStep over the rows (window, node) of gy in shared memory, which lie side by side for
// every frame: frames are taken in phases,
// f = phases*i + r with phases = lcm(s, d). Frames of a phase see the same slots w' = set + j*slot_step, and slot j of
// frame i is window window_step*(i - j) + first_window, so consecutive frames share windows whatever stride and
// dilation are. The last step's rows beyond the sum are a row of zeros: no neighbour's NaN gets in.
#pragma once

#include "rows.h"

namespace msg3d::ms_g3d::cuda {

using namespace simt;

struct GatherParameters {
  const void* gy;  // (N, windows, nodes, O)
  const void* A;   // packed: see pack_for_gather in parts.h
  int windows, nodes, O, K;
  int window, stride, dilation, padding;
  int phases, window_step, slot_step;
  int phase_count;  // phases that have frames
  int frames;       // of one clip
  int frame_tiles;  // of a phase
  int tile_frames;  // that a block holds
  int set_steps;    // steps of a set of slots in the packed A
  int chunk_steps;  // steps of A that are in shared memory at once
  int threads;      // of a block
};

// A run of frames of one phase of one clip, and the windows that it reads.
struct FrameTile {
  int clip, phase, first;        // frames phases*(first + i) + phase
  int set, slots, first_window;  // no slots: no window reads these frames
  int sum;                       // rows (window, node) that a frame sums over
  template <typename T>
  SIMT_DEVICE int steps() const {
    return (sum + kPerStep<T> - 1) / kPerStep<T>;
  }
};

SIMT_DEVICE FrameTile frame_tile(const GatherParameters& p, int index) {
  FrameTile tile;
  tile.first = index % p.frame_tiles * p.tile_frames;
  tile.phase = index / p.frame_tiles % p.phase_count;
  tile.clip = index / p.frame_tiles / p.phase_count;
  int set = 0;
  while (set < p.slot_step && (tile.phase + p.padding - set * p.dilation) % p.stride != 0) ++set;
  const bool read = set < p.slot_step && set < p.window;
  tile.set = read ? set : 0;
  tile.slots = read ? (p.window - 1 - set) / p.slot_step + 1 : 0;
  tile.first_window = (tile.phase + p.padding - tile.set * p.dilation) / p.stride;
  tile.sum = tile.slots * p.nodes;
  return tile;
}

// Whether any window reads frame `frame` of the tile.
SIMT_DEVICE bool is_read(const GatherParameters& p, const FrameTile& tile, int frame) {
  const int last = p.window_step * (tile.first + frame) + tile.first_window;
  const int beyond = last - p.windows + 1, skipped = beyond > 0 ? (beyond + p.window_step - 1) / p.window_step : 0;
  return skipped < tile.slots && last - skipped * p.window_step >= 0;
}

SIMT_DEVICE int gathered_rows(const GatherParameters& p, const FrameTile& tile) {
  return tile.slots == 0 ? 0 : (p.tile_frames + tile.slots - 1) * p.nodes;
}

// Starts the copies of 32 channels of the tile's windows, oldest first, and of a row of zeros behind them.
template <typename T>
SIMT_DEVICE void stage_gy(const GatherParameters& p, const FrameTile& tile, int first_channel, uint32_t shared) {
  const T* const gy = static_cast<const T*>(p.gy);
  const int rows = gathered_rows(p, tile);
#pragma unroll 1
  for (int i = opaque(thread_index()); i < (rows + 1) * kRow32Chunks<T>; i += p.threads) {
    const int row = i / kRow32Chunks<T>, chunk = i % kRow32Chunks<T>, slot = row / p.nodes;
    const int channel = first_channel + chunk * kPerChunk<T>;
    const int t = p.window_step * (tile.first + slot - (tile.slots - 1)) + tile.first_window;
    const bool inside = row < rows && t >= 0 && t < p.windows && channel < p.O;
    const int64_t node = (static_cast<int64_t>(tile.clip) * p.windows + t) * p.nodes + (row - slot * p.nodes);
    cp_async<16>(shared + row32_offset<T>(row, chunk), inside ? gy + node * p.O + channel : gy, inside ? 16 : 0);
  }
}

// Starts the copies of steps [first_step, ...) of `scales` scales of the packed A.
template <typename T, int JOINT_TILES>
SIMT_DEVICE void stage_A(const GatherParameters& p, const FrameTile& tile, int first_scale, int scales, int first_step,
                         uint32_t shared) {
  constexpr int kStepBytes = JOINT_TILES * 256;
  const int sets = p.slot_step < p.window ? p.slot_step : p.window;
  const int left = tile.steps<T>() - first_step, steps = left < p.chunk_steps ? left : p.chunk_steps;
  const unsigned char* const A = static_cast<const unsigned char*>(p.A);
#pragma unroll 1
  for (int scale = 0; scale < scales; ++scale) {
    const int64_t step = static_cast<int64_t>((first_scale + scale) * sets + tile.set) * p.set_steps + first_step;
    const unsigned char* const from = A + step * kStepBytes;
    const uint32_t to = shared + scale * p.chunk_steps * kStepBytes;
#pragma unroll 1
    for (int i = opaque(thread_index()); i < steps * (kStepBytes / 16); i += p.threads) {
      cp_async<16>(to + i * 16, from + i * 16);
    }
  }
}

// The channel, of 32, that row `row` of m16 tile `tile` of H_k^T holds. A lane reads sixteen bytes of a row of gy: in
// tf32 they are four neighbours, in each tile two, and lanes of two fragment rows read chunks that differ in one bit,
// which lie in other banks whatever the rows are.
template <typename T>
SIMT_HOST_DEVICE int gathered_channel(int tile, int row) {
  if constexpr (kIsTf32<T>) {
    return ((row & 7) >> 1) * 4 + (row & 1) * 16 + tile * 2 + (row >> 3);
  } else {
    return tile * 16 + row;
  }
}

// gy^T of 32 channels and of a step's rows, as A operands. Rows beyond the sum are the row `zeros`.
template <typename T>
SIMT_DEVICE void load_gy(uint32_t (&a)[2][4], int gy, int first_row, int sum, int end, int zeros) {
  const int lane = opaque(lane_index());
  if constexpr (kIsTf32<T>) {
    const int chunk = ((lane >> 3) & 3) + (lane & 4);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int at = sum + (lane & 3) + upper * 4, row = at < end ? first_row + at : zeros;
      const Bits128 four = load_vector<Bits128>(shared_memory<unsigned char>(gy + row32_offset<T>(row, chunk)));
      a[0][2 * upper] = four.x, a[0][2 * upper + 1] = four.y, a[1][2 * upper] = four.z, a[1][2 * upper + 1] = four.w;
    }
    round_operands<T>(a[0]);
    round_operands<T>(a[1]);
  } else {
    const int at = sum + (lane & 7) + ((lane >> 4) & 1) * 8, row = at < end ? first_row + at : zeros;
    const uint32_t address = shared_address(shared_memory<unsigned char>(gy)) + row32_offset<T>(row, (lane >> 3) & 1);
    ldmatrix_x4_trans(a[0], address);
    ldmatrix_x4_trans(a[1], address ^ 32);
  }
}

// Adds the steps of one chunk of A for a warp's frame (its index within the tile) and `scales` scales, the first of
// which stands at A. `gy`: where it begins in shared memory.
template <typename T, int JOINT_TILES, int SCALES>
SIMT_DEVICE void gather(float (&h)[SCALES][JOINT_TILES][2][4], int scales, const GatherParameters& p,
                        const FrameTile& tile, int frame, int first_step, int gy, const unsigned char* A) {
  const int lane = opaque(lane_index());
  const int left = tile.steps<T>() - first_step, steps = left < p.chunk_steps ? left : p.chunk_steps;
  const int zeros = gathered_rows(p, tile), first_row = frame * p.nodes;
  int sum = first_step * kPerStep<T>;
  const unsigned char* from = A + lane * 16;
#pragma unroll 1
  for (int step = 0; step < steps; ++step, sum += kPerStep<T>, from += JOINT_TILES * 256) {
    uint32_t a[2][4];
    load_gy<T>(a, gy, first_row, sum, tile.sum, zeros);
#pragma unroll
    for (int s = 0; s < SCALES; ++s) {
      if (s >= scales) continue;
      const unsigned char* const of_scale = from + s * p.chunk_steps * JOINT_TILES * 256;
#pragma unroll
      for (int pair = 0; pair < JOINT_TILES / 2; ++pair) {
        const Bits128 b = load_vector<Bits128>(of_scale + pair * 512);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_step<T>(h[s][2 * pair][m], a[m], b.x, b.y);
          multiply_step<T>(h[s][2 * pair + 1][m], a[m], b.z, b.w);
        }
      }
      if constexpr (JOINT_TILES % 2 == 1) {
        const Bits64 b = load_vector<Bits64>(of_scale + (JOINT_TILES / 2) * 512 - lane * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) multiply_step<T>(h[s][JOINT_TILES - 1][m], a[m], b.x, b.y);
      }
    }
  }
}

template <int JOINT_TILES, int SCALES>
SIMT_DEVICE void clear(float (&h)[SCALES][JOINT_TILES][2][4]) {
#pragma unroll
  for (int s = 0; s < SCALES; ++s) {
#pragma unroll
    for (int n = 0; n < JOINT_TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) h[s][n][i / 4][i % 4] = 0.f;
    }
  }
}

}  // namespace msg3d::ms_g3d::cuda
