// MS-GCN on tensor cores, operands of 16 bits or tf32, sums in float:
//
//     Z_k^T[o, (f,u)] = sum_c weight[o,k,c] x[f,u,c]          y^T[o, (f,v)] += sum_u Z_k^T[o, (f,u)] A[k,v,u]
//
// A warp owns a pack of frames (plan.h) and 48 output channels; a block has `sets` packs times `groups` of channels. Z
// stays in registers: the accumulators of the first product, rounded to T, are the A fragments of the second. Frames of
// a pack follow each other without padding, so a tile of eight rows may hold the end of one frame and the start of the
// next: those columns of Z are masked for either (zero weights would let a NaN through), and A is packed once for every
// frame of the pack, shifted to where its rows start.
//
// x of the block's frames stays in shared memory; W_k in chunks along C, and A_k, are double-buffered by cp.async, one
// barrier a chunk.
#include "forward.h"
#include "moments.h"

namespace msg3d::ms_g3d::cuda {
namespace frames {

using namespace simt;

template <int kIndex>
struct Pack {
  static constexpr FramePack kPack = kFramePacks[kIndex];
  static constexpr int kFrames = kPack.frames, kJointTiles = kPack.joint_tiles, kRowTiles = kPack.row_tiles;
  static constexpr int kRows = kRowTiles * 8;
  static constexpr int kWords = kJointTiles * kJointTiles;  // of a lane, for A_k of one frame
  static constexpr int kAdjacencyBytes = kFrames * kWords * kFragmentBytes;
  // The row tile in which a frame starts.
  SIMT_HOST_DEVICE static constexpr int first_tile(int frame) {
    return kFrames == 1 ? 0 : frame * ((kRowTiles - kJointTiles) / (kFrames > 1 ? kFrames - 1 : 1));
  }
};

// Columns of Z^T that belong to the frame whose rows are [first, last), of the two in a register.
SIMT_DEVICE uint32_t column_mask(int column, int first, int last) {
  return (column >= first && column < last ? 0xffffu : 0u) |
         (column + 1 >= first && column + 1 < last ? 0xffff0000u : 0u);
}

// Rows of x [0, kRows) of the pack at `rows_of_set`, times one step of W: into Z^T of all row tiles.
template <typename T, typename P>
SIMT_DEVICE void project_step(float (&z)[3][P::kRowTiles][4], const Bits128* weight, uint32_t x, int row_bytes) {
  uint32_t w[3][4];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Bits128 words = load_vector<Bits128>(weight + i * 32);
    w[i][0] = words.x, w[i][1] = words.y, w[i][2] = words.z, w[i][3] = words.w;
  }
#pragma unroll
  for (int pair = 0; pair < (P::kRowTiles + 1) / 2; ++pair) {
    const uint32_t address = x + pair * 16 * row_bytes;
    uint32_t b[4];
    if (2 * pair + 1 < P::kRowTiles) {
      ldmatrix_x4(b, address);
    } else {
      uint32_t half_pair[2];
      ldmatrix_x2(half_pair, address);
      b[0] = half_pair[0], b[1] = half_pair[1], b[2] = b[3] = 0;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      multiply_step<T>(z[i][2 * pair], w[i], b[0], b[1]);
      if (2 * pair + 1 < P::kRowTiles) multiply_step<T>(z[i][2 * pair + 1], w[i], b[2], b[3]);
    }
  }
}

// The words of A_k of one frame, in the order in which they are packed: k16 steps, in each the joint tiles, in each two
// words; then one word of each joint tile for the last eight rows if the row tiles are odd.
template <typename P>
struct AdjacencyWords {
  uint32_t word[P::kWords];

  SIMT_DEVICE explicit AdjacencyWords(const unsigned char* image) {
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < P::kWords / 4; ++i) {
      const Bits128 words = load_vector<Bits128>(image + i * 4 * kFragmentBytes + lane * 16);
      word[4 * i] = words.x, word[4 * i + 1] = words.y, word[4 * i + 2] = words.z, word[4 * i + 3] = words.w;
    }
#pragma unroll
    for (int i = P::kWords / 4 * 4; i < P::kWords; ++i) {
      word[i] = *reinterpret_cast<const uint32_t*>(image + i * kFragmentBytes + lane * 4);
    }
  }
};

// y^T += Z_k^T A_k^T for every frame of the pack.
template <typename T, typename P>
SIMT_DEVICE void aggregate(float (&y)[P::kFrames][3][P::kJointTiles][4], const float (&z)[3][P::kRowTiles][4],
                           const unsigned char* adjacency, int V) {
  const int column = opaque(lane_index()) % 4 * 2;
#pragma unroll
  for (int f = 0; f < P::kFrames; ++f) {
    const AdjacencyWords<P> a(adjacency + f * P::kWords * kFragmentBytes);
    uint32_t mask[P::kJointTiles];
#pragma unroll
    for (int j = 0; j < P::kJointTiles; ++j) {
      mask[j] = column_mask((P::first_tile(f) + j) * 8 + column, f * V, (f + 1) * V);
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      uint32_t fragment[P::kJointTiles][2];
#pragma unroll
      for (int j = 0; j < P::kJointTiles; ++j) {
        const float (&from)[4] = z[i][P::first_tile(f) + j];
        const bool whole = P::kFrames > 1 && j > 0 && j + 1 < P::kJointTiles;
        fragment[j][0] = pack_pair<T>(from[0], from[1]) & (whole ? ~0u : mask[j]);
        fragment[j][1] = pack_pair<T>(from[2], from[3]) & (whole ? ~0u : mask[j]);
      }
#pragma unroll
      for (int q = 0; q < P::kJointTiles / 2; ++q) {
        const uint32_t k16[4] = {fragment[2 * q][0], fragment[2 * q][1], fragment[2 * q + 1][0],
                                 fragment[2 * q + 1][1]};
#pragma unroll
        for (int n = 0; n < P::kJointTiles; ++n) {
          const int at = 2 * (q * P::kJointTiles + n);
          mma_m16n8k16<T>(y[f][i][n], k16, a.word[at], a.word[at + 1]);
        }
      }
      if constexpr (P::kJointTiles % 2 == 1) {
#pragma unroll
        for (int n = 0; n < P::kJointTiles; ++n) {
          mma_m16n8k8<T>(y[f][i][n], fragment[P::kJointTiles - 1][0], fragment[P::kJointTiles - 1][1],
                         a.word[(P::kJointTiles - 1) * P::kJointTiles + n]);
        }
      }
    }
  }
}

// The same in tf32. An accumulator's columns 2t and 2t+1 are taken as t and t+4 of an A fragment: A_k is packed so.
template <typename P>
SIMT_DEVICE void aggregate_tf32(float (&y)[P::kFrames][3][P::kJointTiles][4], const float (&z)[3][P::kRowTiles][4],
                                const unsigned char* adjacency, int V) {
  const int lane = opaque(lane_index()), column = lane % 4 * 2;
#pragma unroll
  for (int f = 0; f < P::kFrames; ++f) {
#pragma unroll
    for (int j = 0; j < P::kJointTiles; ++j, adjacency += P::kJointTiles * 2 * kFragmentBytes) {
      const int at = (P::first_tile(f) + j) * 8 + column;
      const bool whole = P::kFrames > 1 && j > 0 && j + 1 < P::kJointTiles;
      const bool first = whole || (at >= f * V && at < (f + 1) * V);
      const bool second = whole || (at + 1 >= f * V && at + 1 < (f + 1) * V);
      uint32_t fragment[3][4];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const float (&from)[4] = z[i][P::first_tile(f) + j];
        fragment[i][0] = first ? to_tf32(from[0]) : 0, fragment[i][1] = first ? to_tf32(from[2]) : 0;
        fragment[i][2] = second ? to_tf32(from[1]) : 0, fragment[i][3] = second ? to_tf32(from[3]) : 0;
      }
#pragma unroll
      for (int n = 0; n < P::kJointTiles; n += 2) {  // two tiles lie side by side
        if (n + 1 < P::kJointTiles) {
          const Bits128 a = load_vector<Bits128>(adjacency + n * 2 * kFragmentBytes + lane * 16);
#pragma unroll
          for (int i = 0; i < 3; ++i) {
            mma_m16n8k8_tf32(y[f][i][n], fragment[i], a.x, a.y);
            mma_m16n8k8_tf32(y[f][i][n + 1], fragment[i], a.z, a.w);
          }
        } else {
          const Bits64 a = load_vector<Bits64>(adjacency + n * 2 * kFragmentBytes + lane * 8);
#pragma unroll
          for (int i = 0; i < 3; ++i) mma_m16n8k8_tf32(y[f][i][n], fragment[i], a.x, a.y);
        }
      }
    }
  }
}

template <typename T, int kIndex>
SIMT_KERNEL(kMostWarps * 32, 1)
void frames_kernel(ForwardCall call) {
  using P = Pack<kIndex>;
  constexpr int kAdjacencyBytes = P::kAdjacencyBytes * sizeof(T) / 2;
  const int threads = call.warps * 32, warp = warp_index(), lane = lane_index();
  const int group = warp % call.groups, set = warp / call.groups;
  const Rows& rows = call.x_rows;
  const int step_bytes = call.groups * 3 * 512;  // of W, one step of the slice
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
  const int64_t first_frame = static_cast<int64_t>(block_x()) * call.tile_windows;
  const int64_t left = call.frames - first_frame;
  const int frames = left < call.tile_windows ? static_cast<int>(left) : call.tile_windows;

  {  // x of the frames; rows behind the last frame, and channels behind the last, are zero
    const T* const x = static_cast<const T*>(call.x) + first_frame * call.V * call.C;
    const int filled = frames * call.V, chunks = call.C / kPerChunk<T>;
#pragma unroll 1
    for (int i = thread_index(); i < call.weight_at / 16; i += threads) {
      const int row = i / rows.chunks, chunk = i % rows.chunks;
      const bool inside = row < filled && chunk < chunks;
      cp_async<16>(shared + rows.offset(row, chunk), inside ? x + row * call.C + chunk * kPerChunk<T> : x,
                   inside ? 16 : 0);
    }
    if (kIsTf32<T>) cp_async_commit();
  }
  const int chunks = (call.channel_steps + call.weight_steps - 1) / call.weight_steps;
  const int scales = call.slices_per_block * call.K;  // slice by slice
  const auto fetch_chunk = [&](int scale, int chunk, int stage) {
    const int step = chunk * call.weight_steps;
    const int steps = call.channel_steps - step < call.weight_steps ? call.channel_steps - step : call.weight_steps;
    const int64_t from = static_cast<int64_t>(block_y()) * scales + scale;
    fetch(shared + call.weight_at + stage % 2 * call.weight_chunk_bytes,
          static_cast<const char*>(call.weight) + (from * call.channel_steps + step) * step_bytes, steps * step_bytes,
          threads);
    if (chunk == 0) {
      fetch(shared + call.adjacency_at + scale % 2 * kAdjacencyBytes,
            static_cast<const char*>(call.adjacency) + scale % call.K * kAdjacencyBytes, kAdjacencyBytes, threads);
    }
    cp_async_commit();
  };
  fetch_chunk(0, 0, 0);
  round_in_place<T>(call.weight_at, threads);

  float y[P::kFrames][3][P::kJointTiles][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int scale = 0; scale < scales; ++scale) {
    float z[3][P::kRowTiles][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk, ++stage) {
      cp_async_wait<0>();
      block_barrier();  // this chunk has landed for everybody, and nobody reads the buffer of the one before
      if (chunk + 1 < chunks) {
        fetch_chunk(scale, chunk + 1, stage + 1);
      } else if (scale + 1 < scales) {
        fetch_chunk(scale + 1, 0, stage + 1);
      }
      const int first = chunk * call.weight_steps;
      const int last = first + call.weight_steps < call.channel_steps ? first + call.weight_steps : call.channel_steps;
      const int l = opaque(lane);
      const int row = set * P::kFrames * call.V + l % 8 + l / 16 * 8, turn = rows.turn(row), bit = l / 8 % 2;
      const uint32_t x = shared + row * rows.bytes();
      const Bits128* weight =
          shared_memory<Bits128>(call.weight_at + stage % 2 * call.weight_chunk_bytes) + group * 96 + l;
#pragma unroll 1
      for (int step = first; step < last; ++step, weight += call.groups * 96) {
        project_step<T, P>(z, weight, x + ((2 * step + bit) ^ turn) * 16, rows.bytes());
      }
    }
    const unsigned char* const a = shared_memory<unsigned char>(call.adjacency_at + scale % 2 * kAdjacencyBytes);
    if constexpr (kIsTf32<T>) {
      aggregate_tf32<P>(y, z, a, call.V);
    } else {
      aggregate<T, P>(y, z, a, call.V);
    }
    if ((scale + 1) % call.K == 0) {  // the slice is complete
      const int slice = block_y() * call.slices_per_block + scale / call.K;
      const int l = opaque(lane), v = l % 4 * 2;
      const int o = (slice * call.groups + group) * kGroup + l / 4 * 2;
      if (call.moments) {  // over the weights that have been used: of every group one step or more
        static_assert(kStepBytes * kGroup >= kMostSets * kMomentBytes, "a step has room for a group's warps, its sets");
        const auto frames_of = [&](int w) { return at_most(P::kFrames, frames - w / call.groups * P::kFrames); };
        const int mine = frames_of(warp), used = call.weight_at + (stage + 1) % 2 * call.weight_chunk_bytes;
        const auto real = [&](int f, int joint) { return f < mine && joint < call.V; };
        gather_moments<T>(call, y, slice, group, used, mine * call.V, real);
        leave_part(call, slice, used, [&](int w) { return frames_of(w) * call.V; });
      }
      const T* const bias = static_cast<const T*>(call.moments ? nullptr : call.bias);
#pragma unroll
      for (int f = 0; f < P::kFrames; ++f) {
        const int frame = set * P::kFrames + f;
        T* const to = static_cast<T*>(call.y) + ((first_frame + frame) * call.V + v) * call.O + o;
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const bool stored = frame < frames && o + 16 * i < call.O;
          const float bias0 = bias && stored ? to_float(load_readonly(bias + o + 16 * i)) : 0.f;
          const float bias1 = bias && stored ? to_float(load_readonly(bias + o + 16 * i + 1)) : 0.f;
#pragma unroll
          for (int n = 0; n < P::kJointTiles; ++n) {
            store_nodes(to + n * 8 * call.O + 16 * i, call.O, y[f][i][n], bias0, bias1, call.relu,
                        stored && n * 8 + v < call.V, stored && n * 8 + v + 1 < call.V);
            y[f][i][n][0] = y[f][i][n][1] = y[f][i][n][2] = y[f][i][n][3] = 0;
          }
        }
      }
    }
  }
}

template <typename T>
int launch_type(const ForwardCall& call, int tile, Grid grid, int shared_bytes, Stream stream) {
  const auto run = [&](auto kernel) { return launch(kernel, grid, call.warps * 32, shared_bytes, stream, call); };
  static_assert(sizeof(kFramePacks) / sizeof(kFramePacks[0]) == 7, "every pack has its kernel here");
  switch (tile) {
    case 0:
      return run(frames_kernel<T, 0>);
    case 1:
      return run(frames_kernel<T, 1>);
    case 2:
      return run(frames_kernel<T, 2>);
    case 3:
      return run(frames_kernel<T, 3>);
    case 4:
      return run(frames_kernel<T, 4>);
    case 5:
      return run(frames_kernel<T, 5>);
    default:
      return run(frames_kernel<T, 6>);
  }
}

}  // namespace frames

int launch_frames(const ForwardCall& call, Type type, int tile, int64_t blocks, int shared_bytes, simt::Stream stream) {
  const simt::Grid grid{static_cast<unsigned>(blocks), static_cast<unsigned>(call.slices / call.slices_per_block)};
  const auto launch = type == Type::kBFloat16  ? frames::launch_type<simt::bf16>
                      : type == Type::kFloat16 ? frames::launch_type<simt::half>
                                               : frames::launch_type<simt::tf32>;
  return launch(call, tile, grid, shared_bytes, stream);
}

}  // namespace msg3d::ms_g3d::cuda
