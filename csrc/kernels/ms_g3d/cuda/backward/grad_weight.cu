// grad_weight[o,k,c] = sum over frames f and joints u of H_k[f,u,o] x[f,u,c], with H_k of gather.h.
//
// A block sums one run of frame tiles for 32 channels o, a group of scales and one slice of the channels c; the sums
// stay in registers from the first tile to the last. For each tile every warp gathers H_k^T of its own frame; then the
// block multiplies all frames of H^T, as A operands in shared memory, with their rows of x: a warp owns one scale and
// some n8 tiles of channels. Each block writes its part, and sum_parts adds them in order.
#include "backward.h"
#include "gather.h"
#include "parts.h"

namespace msg3d::ms_g3d::cuda {

struct GradWeightParameters {
  GatherParameters gather;
  const void* x;
  float* parts;  // (splits, K, O to a multiple of 32, slices * pitch * kPerChunk)
  int V, C, all_outputs, tiles, splits;
  int scales, scale_groups, output_chunks, slices, channel_tiles, pitch;
  int A_offset, x_offset, h_offset;
  int gy_bytes, x_bytes;  // from one buffer to the other; 0: there is one
  bool x_has_room;        // of its own: else it lies over gy, with H
};

template <typename Type_, int JOINT_TILES, int SCALES>
struct GradWeightTile {
  using T = Type_;
  static constexpr int kJointTiles = JOINT_TILES, kScales = SCALES;
  static constexpr int kChannelTiles = kWeightTiles;
  static constexpr int kThreads = 256;  // at most
  static constexpr int kStepBytes = JOINT_TILES * 256;
  static constexpr int kTileBytes = 128 * sizeof(T);  // of H^T: sixteen channels o, eight joints
};

template <class Tile>
struct GradWeight {
  using T = typename Tile::T;
  static constexpr int JT = Tile::kJointTiles, NS = Tile::kScales, CT = Tile::kChannelTiles;

  const GradWeightParameters& p;
  const int first_scale, scales, output, slice;

  // The tile's rows of x, and a row of zeros for what H pads its joints with. Frames that no window reads are zeros: a
  // NaN there is nobody's.
  SIMT_DEVICE void stage_x(const FrameTile& tile, int offset) const {
    const T* const x = static_cast<const T*>(p.x);
    T* const plain = shared_memory<T>(offset);
    const uint32_t to = shared_address(plain);
    const int rows = p.gather.tile_frames * p.V;
#pragma unroll 1
    for (int i = opaque(thread_index()); i < (rows + 1) * p.pitch; i += p.gather.threads) {
      const int row = i / p.pitch, chunk = i - row * p.pitch, frame = row / p.V;
      const int f = p.gather.phases * (tile.first + frame) + tile.phase;
      const int c = (slice * p.pitch + chunk) * kPerChunk<T>;
      const bool inside = row < rows && f < p.gather.frames && c < p.C && is_read(p.gather, tile, frame);
      const int64_t node = (static_cast<int64_t>(tile.clip) * p.gather.frames + f) * p.V + (row - frame * p.V);
      const T* const from = inside ? x + node * p.C + c : x;
      const int at = row_offset(row, chunk, p.pitch);
      if (p.C % kPerChunk<T> == 0) {
        cp_async<16>(to + at, from, inside ? 16 : 0);
      } else {
#pragma unroll 1
        for (int j = 0; j < kPerChunk<T>; ++j) {
          plain[at / sizeof(T) + j] = inside && c + j < p.C ? from[j] : from_float<T>(0.f);
        }
      }
    }
  }

  // Where H^T of a frame and of m16 tile `m` of the channels o begins behind that of the first.
  SIMT_DEVICE int place_of(int scale, int frame, int m) const {
    return ((scale * p.gather.tile_frames + frame) * 2 + m) * JT * Tile::kTileBytes;
  }

  // A warp's H^T as A operands: channels o are M, joints K. Accumulators are such operands as they stand, in tf32 with
  // joints 2i and 2i+1 of eight in places i and i+4.
  SIMT_DEVICE void hand_over(const float (&h)[NS][JT][2][4], int frame, int offset) const {
    const int lane = opaque(lane_index());
#pragma unroll
    for (int s = 0; s < NS; ++s) {
      if (s >= scales) continue;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        unsigned char* const to = shared_memory<unsigned char>(offset + place_of(s, frame, m));
#pragma unroll
        for (int n = 0; n < JT; n += kPerStep<T> / 8) {
          const float (&d)[4] = h[s][n][m];
          if constexpr (kIsTf32<T>) {
            store_vector(to + n * Tile::kTileBytes + lane * 16,
                         Bits128{to_tf32(d[0]), to_tf32(d[2]), to_tf32(d[1]), to_tf32(d[3])});
          } else {
            const Bits64 first{pack_pair<T>(d[0], d[1]), pack_pair<T>(d[2], d[3])};
            if (n == JT - 1) {
              store_vector(to + n * Tile::kTileBytes + lane * 8, first);
              continue;
            }
            const float (&e)[4] = h[s][n + 1 < JT ? n + 1 : n][m];
            store_vector(to + n * Tile::kTileBytes + lane * 16,
                         Bits128{first.x, first.y, pack_pair<T>(e[0], e[1]), pack_pair<T>(e[2], e[3])});
          }
        }
      }
    }
  }

  // x of a frame's joints of one step, the first of which is `joint`, and eight channels, as a B operand.
  SIMT_DEVICE void load_x(uint32_t (&b)[2], int x_offset, int frame, int joint, int tile, bool single) const {
    const int lane = opaque(lane_index()), zeros = p.gather.tile_frames * p.V;
    const auto row_of = [&](int u) { return u < p.V ? frame * p.V + u : zeros; };
    if constexpr (kIsTf32<T>) {
      const int u = joint + (lane & 3) * 2, chunk = tile * 2 + (lane >> 4), byte = (lane >> 2 & 3) * 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b[i] = *shared_memory<uint32_t>(x_offset + row_offset(row_of(u + i), chunk, p.pitch) + byte);
      }
      round_operands<T>(b);
    } else {
      const uint32_t at = shared_address(shared_memory<unsigned char>(x_offset)) +
                          row_offset(row_of(joint + (lane & 15)), tile, p.pitch);
      if (single) {
        ldmatrix_x1_trans(b[0], at);
      } else {
        ldmatrix_x2_trans(b, at);
      }
    }
  }

  SIMT_DEVICE void multiply(float (&sum)[CT][2][4], int scale, int first_tile, int tiles, int h_offset,
                            int x_offset) const {
    const int lane = opaque(lane_index());
#pragma unroll 1
    for (int frame = 0; frame < p.gather.tile_frames; ++frame) {
#pragma unroll
      for (int n = 0; n < JT; n += kPerStep<T> / 8) {
        const bool single = !kIsTf32<T> && n == JT - 1;  // half a step
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const unsigned char* const h =
              shared_memory<unsigned char>(h_offset + place_of(scale, frame, m) + n * Tile::kTileBytes);
          if (single) {
            const Bits64 v = load_vector<Bits64>(h + lane * 8);
            a[m][0] = v.x, a[m][1] = v.y;
          } else {
            const Bits128 v = load_vector<Bits128>(h + lane * 16);
            a[m][0] = v.x, a[m][1] = v.y, a[m][2] = v.z, a[m][3] = v.w;
          }
        }
#pragma unroll
        for (int c = 0; c < CT; ++c) {
          if (c >= tiles) continue;
          uint32_t b[2];
          load_x(b, x_offset, frame, n * 8, first_tile + c, single);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            if constexpr (!kIsTf32<T>) {
              if (single) {
                mma_m16n8k8<T>(sum[c][m], a[m][0], a[m][1], b[0]);
                continue;
              }
            }
            multiply_step<T>(sum[c][m], a[m], b[0], b[1]);
          }
        }
      }
    }
  }

  SIMT_DEVICE void stage_chunk(const FrameTile& tile, int step, int buffer) const {
    const int bytes = p.scales * p.gather.chunk_steps * Tile::kStepBytes;
    stage_A<T, JT>(p.gather, tile, first_scale, scales, step,
                   shared_address(shared_memory<unsigned char>(p.A_offset + buffer * bytes)));
  }

  // Everything of a tile that may be loaded before its turn.
  SIMT_DEVICE void stage_ahead(const FrameTile& tile, int place, int buffer) const {
    stage_gy<T>(p.gather, tile, output, shared_address(shared_memory<unsigned char>(place * p.gy_bytes)));
    stage_chunk(tile, 0, buffer);
    if (p.x_bytes > 0) stage_x(tile, p.x_offset + place * p.x_bytes);
  }

  // The first tile from `index` on whose frames any window reads.
  SIMT_DEVICE int next_read(int index, int last) const {
    while (index < last && frame_tile(p.gather, index).slots == 0) ++index;
    return index;
  }

  SIMT_DEVICE void run(int first_tile, int last_tile, int split) const {
    const int warp = warp_index(), warps_per_scale = p.gather.tile_frames / p.scales;
    const int scale = warp / warps_per_scale, share = p.channel_tiles;
    const int first_channel_tile = (warp - scale * warps_per_scale) * share;
    const int row_tiles = p.pitch * kPerChunk<T> / 8;
    const int left = row_tiles - first_channel_tile, tiles = scale >= scales ? 0 : left < share ? left : share;
    float sum[CT][2][4];
#pragma unroll
    for (int i = 0; i < CT * 8; ++i) sum[i / 8][i / 4 % 2][i % 4] = 0.f;

    const bool ahead = p.gy_bytes > 0;  // gy of the next tile is loaded during this one
    int index = next_read(first_tile, last_tile), place = 0, buffer = 0;
    if (ahead && index < last_tile) stage_ahead(frame_tile(p.gather, index), place, buffer);
#pragma unroll 1
    while (index < last_tile) {
      const FrameTile tile = frame_tile(p.gather, index);
      const int next = next_read(index + 1, last_tile), gy = place * p.gy_bytes, x = p.x_offset + place * p.x_bytes;
      if (!ahead) stage_ahead(tile, place, buffer);
      cp_async_commit();
      float h[NS][JT][2][4];
      clear(h);
#pragma unroll 1
      for (int step = 0; step < tile.steps<T>(); step += p.gather.chunk_steps, buffer ^= 1) {
        cp_async_wait<0>();
        block_barrier();  // this chunk is there, and the other buffer has been read
        if (step == 0 && p.x_has_room && p.x_bytes == 0) stage_x(tile, x);
        cp_async_commit();
        if (step + p.gather.chunk_steps < tile.steps<T>()) {
          stage_chunk(tile, step + p.gather.chunk_steps, buffer ^ 1);
        } else if (ahead && next < last_tile) {
          stage_ahead(frame_tile(p.gather, next), place ^ 1, buffer ^ 1);
        }
        cp_async_commit();
        gather<T>(
            h, scales, p.gather, tile, warp, step, gy,
            shared_memory<unsigned char>(p.A_offset + buffer * p.scales * p.gather.chunk_steps * Tile::kStepBytes));
      }
      block_barrier();  // gy has been read: H may lie over it
      const int h_offset = p.h_offset < 0 ? gy : p.h_offset;
      hand_over(h, warp, h_offset);
      if (!p.x_has_room) stage_x(tile, x);
      cp_async_commit();
      if (ahead) {
        cp_async_wait<2>();  // x, but not what is for the next tile
      } else {
        cp_async_wait<0>();
      }
      block_barrier();
      if (tiles > 0) multiply(sum, scale, first_channel_tile, tiles, h_offset, x);
      if (!ahead) block_barrier();  // H and x have been read; else the next tile's first barrier says so
      index = next, place ^= ahead;
    }
    cp_async_wait<0>();

    const int lane = opaque(lane_index()), width = p.slices * row_tiles * 8;
    float* const part =
        p.parts + (static_cast<int64_t>(split) * p.gather.K + first_scale + scale) * p.all_outputs * width;
#pragma unroll
    for (int c = 0; c < CT; ++c) {
      if (c >= tiles) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // m16 tile i / 2, and the upper or the lower half of it
        const int64_t o = output + gathered_channel<T>(i / 2, (lane >> 2) + i % 2 * 8);
        const int column = (slice * row_tiles + first_channel_tile + c) * 8 + (lane & 3) * 2;
        store_vector(part + o * width + column,
                     Bits64{float_bits(sum[c][i / 2][i % 2 * 2]), float_bits(sum[c][i / 2][i % 2 * 2 + 1])});
      }
    }
  }
};

template <class Tile>
SIMT_KERNEL(Tile::kThreads, 1)
void grad_weight(GradWeightParameters p) {
  int index = block_x();
  const int slice = index % p.slices;
  index /= p.slices;
  const int chunk = index % p.output_chunks;
  index /= p.output_chunks;
  const int group = index % p.scale_groups, split = index / p.scale_groups;
  const int first_scale = group * p.scales, left = p.gather.K - first_scale;
  const GradWeight<Tile> block{p, first_scale, left < p.scales ? left : p.scales, chunk * 32, slice};
  const int64_t tiles = p.tiles;
  block.run(static_cast<int>(tiles * split / p.splits), static_cast<int>(tiles * (split + 1) / p.splits), split);
}

int launch_grad_weight(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, const void* gy,
                       const Gradients& out, unsigned char* workspace, void* stream) {
  unsigned char* const A = workspace;
  float* const parts = reinterpret_cast<float*>(A + detail::aligned(plan.adjacency_bytes));
  if (const int error = pack_for_gather(p, type, plan, in, A, stream)) return error;

  GradWeightParameters k{};
  k.gather = gather_parameters(p, plan, gy, A);
  k.x = in.x, k.parts = parts;
  k.V = static_cast<int>(p.V), k.C = static_cast<int>(p.C);
  k.output_chunks = static_cast<int>(ceil_div(p.O, kChannelChunk)), k.all_outputs = k.output_chunks * kChannelChunk;
  k.tiles = static_cast<int>(plan.tiles), k.splits = static_cast<int>(plan.splits);
  k.scales = plan.scales, k.scale_groups = static_cast<int>(ceil_div(p.K, plan.scales));
  k.slices = plan.slices, k.channel_tiles = plan.channel_tiles, k.pitch = plan.pitch;
  k.A_offset = plan.A_offset, k.x_offset = plan.x_offset, k.h_offset = plan.exchange_offset;
  k.gy_bytes = plan.gy_bytes, k.x_bytes = plan.x_bytes, k.x_has_room = plan.x_offset > plan.A_offset;
  const Grid grid{static_cast<unsigned>(plan.splits * k.scale_groups * k.output_chunks * k.slices)};
  const auto run = [&](auto kernel) { return launch(kernel, grid, plan.warps * 32, plan.shared_bytes, stream, k); };
  const auto of_type = [&](auto zero) {
    using T = decltype(zero);
    switch (plan.tile) {
      case 0:
        return run(grad_weight<GradWeightTile<T, 3, 2>>);
      case 1:
        return run(grad_weight<GradWeightTile<T, 4, 2>>);
      default:
        return run(grad_weight<GradWeightTile<T, 8, 1>>);
    }
  };
  if (const int error = type == Type::kBFloat16  ? of_type(bf16{})
                        : type == Type::kFloat16 ? of_type(half{})
                                                 : of_type(tf32{})) {
    return error;
  }

  const int64_t width = static_cast<int64_t>(plan.slices) * plan.pitch * (type == Type::kTf32 ? 4 : 8), K = p.K,
                C = p.C;
  PartSum sum{parts, out.weight, out.type, plan.splits, K * k.all_outputs * width};
  sum.size[0] = static_cast<int>(K), sum.size[1] = static_cast<int>(p.O), sum.size[2] = k.C;
  sum.stride[0] = k.all_outputs * width, sum.stride[1] = width;
  sum.out_stride[0] = C, sum.out_stride[1] = K * C, sum.out_stride[2] = 1;
  return sum_parts(sum, stream);
}

}  // namespace msg3d::ms_g3d::cuda
