// grad_x[f,u,c] = sum_k sum_o weight[o,k,c] H_k[f,u,o], with H_k of gather.h: each frame is projected once.
//
// A block holds `tile_frames` frames; a team of one, two or four warps owns one. For every 32 channels o (gy in shared
// memory) and every group of scales, each warp gathers H_k^T of its own scales into registers, turns it into B operands
// in place, and adds W_k^T H_k^T to its m16 tiles of channels c, which stay in registers to the end. Warps of a team
// hand H to each other through shared memory. A streams in two buffers; the weights of a group come with its first
// chunk of A or, where there is room for one buffer only, behind it.
#include "backward.h"
#include "gather.h"
#include "parts.h"

namespace msg3d::ms_g3d::cuda {

struct GradXParameters {
  GatherParameters gather;
  const void* weight;  // (K, O to a multiple of 32, slices * pitch * 8), zeros where there is none
  void* grad_x;
  int V, C, all_outputs;
  int team, scales, channel_tiles, pitch, slices, weight_buffers;
  int A_offset, weight_offset, exchange_offset;
};

template <typename Type_, int JOINT_TILES, int SCALES, int CHANNEL_TILES>
struct GradXTile {
  using T = Type_;
  static constexpr int kJointTiles = JOINT_TILES, kScales = SCALES, kChannelTiles = CHANNEL_TILES;
  static constexpr int kThreads = 256;  // at most
  static constexpr int kStepBytes = JOINT_TILES * 256;
};

// Where a block is in its walk over channels o, groups of scales and chunks of A.
struct Walk {
  int output, scale, step, groups;  // groups of scales behind it
};

template <class Tile>
struct GradX {
  using T = typename Tile::T;
  static constexpr int JT = Tile::kJointTiles, NS = Tile::kScales, CT = Tile::kChannelTiles;

  const GradXParameters& p;
  const FrameTile tile;
  const int slice, group;

  SIMT_DEVICE int scales_at(int scale) const { return p.gather.K - scale < group ? p.gather.K - scale : group; }

  SIMT_DEVICE bool advance(Walk& at) const {
    at.step += p.gather.chunk_steps;
    if (at.step < tile.steps()) return true;
    at.step = 0, at.scale += group, ++at.groups;
    if (at.scale < p.gather.K) return true;
    at.scale = 0, at.output += 32;
    return at.output < p.gather.O;
  }

  SIMT_DEVICE int weight_buffer(const Walk& at) const {
    return p.weight_offset + (p.weight_buffers == 2 ? at.groups & 1 : 0) * group * 32 * p.pitch * 16;
  }

  SIMT_DEVICE void stage_weight(const Walk& at) const {
    const T* const weight = static_cast<const T*>(p.weight);
    const uint32_t to = shared_address(shared_memory<unsigned char>(weight_buffer(at)));
    const int rows = scales_at(at.scale) * 32, width = p.slices * p.pitch;
#pragma unroll 1
    for (int i = opaque(thread_index()); i < rows * p.pitch; i += p.gather.threads) {
      const int row = i / p.pitch, chunk = i - row * p.pitch;
      const int64_t from = static_cast<int64_t>(at.scale + (row >> 5)) * p.all_outputs + at.output + (row & 31);
      cp_async<16>(to + row_offset(row, chunk, p.pitch), weight + (from * width + slice * p.pitch + chunk) * 8);
    }
  }

  SIMT_DEVICE void stage_next(const Walk& at, int buffer) const {
    const int offset = p.A_offset + buffer * group * p.gather.chunk_steps * Tile::kStepBytes;
    stage_A<JT>(p.gather, tile, at.scale, scales_at(at.scale), at.step,
                shared_address(shared_memory<unsigned char>(offset)));
    if (p.weight_buffers == 2 && at.step == 0) stage_weight(at);
  }

  // H^T of 16 channels o as B operands, joints n.
  SIMT_DEVICE static void turn(const float (&h)[JT][2][4], int m, uint32_t (&b)[JT][2]) {
#pragma unroll
    for (int n = 0; n < JT; ++n) {
      b[n][0] = movmatrix_trans(pack_pair<T>(h[n][m][0], h[n][m][1]));
      b[n][1] = movmatrix_trans(pack_pair<T>(h[n][m][2], h[n][m][3]));
    }
  }

  // gx^T += W^T H^T for the 16 channels o in rows row.. of the weights.
  SIMT_DEVICE void project(float (&gx)[CT][JT][4], const uint32_t (&b)[JT][2], int weights, int row, int member) const {
    const int lane = opaque(lane_index());
    row += (lane & 7) + ((lane >> 4) & 1) * 8;
    const uint32_t base = shared_address(shared_memory<unsigned char>(weights));
#pragma unroll
    for (int c = 0; c < CT; ++c) {
      if (c >= p.channel_tiles) continue;
      uint32_t a[4];
      ldmatrix_x4_trans(a, base + row_offset(row, (member * p.channel_tiles + c) * 2 + ((lane >> 3) & 1), p.pitch));
#pragma unroll
      for (int n = 0; n < JT; ++n) mma_m16n8k16<T>(gx[c][n], a, b[n][0], b[n][1]);
    }
  }

  // The warp's frame and channels through shared memory, so that rows leave in 16-byte pieces.
  SIMT_DEVICE void leave(const float (&gx)[CT][JT][4], int frame, int member) const {
    const int lane = opaque(lane_index()), pitch = (p.channel_tiles * 2 + 1) * 16;
    unsigned char* const rows = shared_memory<unsigned char>(warp_index() * JT * 8 * pitch);
#pragma unroll
    for (int c = 0; c < CT; ++c) {
      if (c >= p.channel_tiles) continue;
#pragma unroll
      for (int n = 0; n < JT; ++n) {
        unsigned char* const at = rows + (n * 8 + (lane >> 2)) * pitch + c * 32 + (lane & 3) * 4;
        *reinterpret_cast<uint32_t*>(at) = movmatrix_trans(pack_pair<T>(gx[c][n][0], gx[c][n][1]));
        *reinterpret_cast<uint32_t*>(at + 16) = movmatrix_trans(pack_pair<T>(gx[c][n][2], gx[c][n][3]));
      }
    }
    warp_barrier();
    const int f = p.gather.phases * (tile.first + frame) + tile.phase;
    const int first = slice * p.pitch * 8 + member * p.channel_tiles * 16, chunks = p.channel_tiles * 2;
    const int count = f < p.gather.frames ? p.V * chunks : 0;
    T* const out = static_cast<T*>(p.grad_x) + (static_cast<int64_t>(tile.clip) * p.gather.frames + f) * p.V * p.C;
#pragma unroll 1
    for (int i = lane; i < count; i += 32) {
      const int u = i / chunks, chunk = i - u * chunks, c = first + chunk * 8;
      const unsigned char* const from = rows + u * pitch + chunk * 16;
      T* const to = out + static_cast<int64_t>(u) * p.C + c;
      if (p.C % 8 == 0) {
        if (c < p.C) store_vector(to, load_vector<Bits128>(from));
      } else {
#pragma unroll 1
        for (int j = 0; j < 8 && c + j < p.C; ++j) to[j] = reinterpret_cast<const T*>(from)[j];
      }
    }
  }

  SIMT_DEVICE void run() const {
    const int team = p.team, frame = warp_index() / team, member = warp_index() - frame * team;
    float gx[CT][JT][4];
#pragma unroll
    for (int i = 0; i < CT * JT * 4; ++i) gx[i / (JT * 4)][i / 4 % JT][i % 4] = 0.f;

    const uint32_t gy = shared_address(shared_memory<unsigned char>(0));
    Walk at{0, 0, 0, 0};
    bool more = tile.slots > 0;
    if (more) stage_next(at, 0);
    int buffer = 0;
    float h[NS][JT][2][4];
#pragma unroll 1
    while (more) {
      if (at.scale == 0 && at.step == 0) {
        block_barrier();  // all have done with the channels before
        stage_gy<T>(p.gather, tile, at.output, gy);
      }
      cp_async_commit();
      cp_async_wait<0>();
      block_barrier();  // this chunk is there, and the other buffer has been read
      const Walk here = at;
      if (p.weight_buffers == 1 && here.step == 0) stage_weight(here);
      more = advance(at);
      if (more) stage_next(at, buffer ^ 1);
      cp_async_commit();

      const int scales = scales_at(here.scale), share = (scales + team - 1) / team, first = member * share;
      const int own = scales - first < share ? scales - first : share;
      if (here.step == 0) clear(h);
      gather<T>(h, own, p.gather, tile, frame, here.step, gy,
                shared_memory<unsigned char>(p.A_offset +
                                             (buffer * group + first) * p.gather.chunk_steps * Tile::kStepBytes));
      buffer ^= 1;
      if (here.step + p.gather.chunk_steps < tile.steps()) continue;

      if (p.weight_buffers == 1 && here.step == 0) {  // no chunk has passed since the weights were asked for
        cp_async_wait<0>();
        block_barrier();
      }
      const int weights = weight_buffer(here);
      // Sixteen channels o at a time: of the warp's own scales H goes from registers into the product and, where others
      // share the frame, into the exchange; theirs are read there.
      unsigned char* const exchange =
          shared_memory<unsigned char>(p.exchange_offset) + frame * group * Tile::kStepBytes + lane_index() * 8;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int s = 0; s < NS; ++s) {
          if (s >= own) continue;
          uint32_t b[JT][2];
          turn(h[s], m, b);
          if (team > 1) {
#pragma unroll
            for (int n = 0; n < JT; ++n) {
              store_vector(exchange + ((first + s) * JT + n) * 256, Bits64{b[n][0], b[n][1]});
            }
          }
          project(gx, b, weights, (first + s) * 32 + m * 16, member);
        }
        if (team == 1) continue;
        block_barrier();  // the team's H is there
#pragma unroll 1
        for (int i = 0; i < scales; ++i) {
          if (i >= first && i < first + own) continue;
          uint32_t b[JT][2];
#pragma unroll
          for (int n = 0; n < JT; ++n) {
            const Bits64 pair = load_vector<Bits64>(exchange + (i * JT + n) * 256);
            b[n][0] = pair.x, b[n][1] = pair.y;
          }
          project(gx, b, weights, i * 32 + m * 16, member);
        }
        if (m == 0) block_barrier();  // it has been read; behind the second half the next chunk's barrier says so
      }
    }
    cp_async_wait<0>();
    block_barrier();  // what lies where the results go has been read
    leave(gx, frame, member);
  }
};

template <class Tile>
SIMT_KERNEL(Tile::kThreads, 1)
void grad_x(GradXParameters p) {
  const int slice = block_x() % p.slices;
  const GradX<Tile> block{p, frame_tile(p.gather, block_x() / p.slices), slice, p.team * p.scales};
  block.run();
}

int launch_grad_x(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, const void* gy, void* out,
                  unsigned char* workspace, void* stream) {
  unsigned char* const A = workspace;
  unsigned char* const weight = A + detail::aligned(plan.adjacency_bytes);
  if (const int error = pack_for_gather(p, type, plan, in, A, stream)) return error;
  if (const int error = pack_weight(p, type, plan.channels(), in, weight, stream)) return error;

  GradXParameters k{};
  k.gather = gather_parameters(p, plan, gy, A);
  k.weight = weight, k.grad_x = out;
  k.V = static_cast<int>(p.V), k.C = static_cast<int>(p.C);
  k.all_outputs = static_cast<int>(ceil_div(p.O, kChannelChunk) * kChannelChunk);
  k.team = plan.team, k.scales = plan.scales, k.channel_tiles = plan.channel_tiles, k.pitch = plan.pitch;
  k.slices = plan.slices, k.weight_buffers = plan.weight_buffers;
  k.A_offset = plan.A_offset, k.weight_offset = plan.weight_offset, k.exchange_offset = plan.exchange_offset;
  const Grid grid{static_cast<unsigned>(plan.tiles * plan.slices)};
  const auto run = [&](auto kernel) { return launch(kernel, grid, plan.warps * 32, plan.shared_bytes, stream, k); };
  const auto of_type = [&](auto zero) {
    using T = decltype(zero);
    switch (plan.tile) {
      case 0:
        return run(grad_x<GradXTile<T, 3, 3, 6>>);
      case 1:
        return run(grad_x<GradXTile<T, 4, 2, 6>>);
      default:
        return run(grad_x<GradXTile<T, 8, 1, 3>>);
    }
  };
  return type == Type::kBFloat16 ? of_type(bf16{}) : of_type(half{});
}

}  // namespace msg3d::ms_g3d::cuda
