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
  const void* weight;  // packed: see pack_weight_operands in parts.h
  void* grad_x;
  int V, C, output_chunks;
  int team, scales, channel_tiles, slices, weight_buffers;
  int A_offset, weight_offset, exchange_offset;
};

template <typename Type_, int JOINT_TILES, int SCALES, int CHANNEL_TILES>
struct GradXTile {
  using T = Type_;
  static constexpr int kJointTiles = JOINT_TILES, kScales = SCALES, kChannelTiles = CHANNEL_TILES;
  static constexpr int kThreads = 256;  // at most
  static constexpr int kStepBytes = JOINT_TILES * 256;
  static constexpr int kSteps = 32 / kPerStep<T>;  // of a sum over 32 channels o
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
    if (at.step < tile.steps<T>()) return true;
    at.step = 0, at.scale += group, ++at.groups;
    if (at.scale < p.gather.K) return true;
    at.scale = 0, at.output += 32;
    return at.output < p.gather.O;
  }

  // Of one scale's weights of 32 channels o.
  SIMT_DEVICE int weight_bytes() const { return Tile::kSteps * p.team * p.channel_tiles * 512; }

  SIMT_DEVICE int weight_buffer(const Walk& at) const {
    return p.weight_offset + (p.weight_buffers == 2 ? at.groups & 1 : 0) * group * weight_bytes();
  }

  SIMT_DEVICE void stage_weight(const Walk& at) const {
    const int64_t first = static_cast<int64_t>(slice * p.output_chunks + at.output / 32) * p.gather.K + at.scale;
    const unsigned char* const from = static_cast<const unsigned char*>(p.weight) + first * weight_bytes();
    const uint32_t to = shared_address(shared_memory<unsigned char>(weight_buffer(at)));
    const int bytes = scales_at(at.scale) * weight_bytes();
#pragma unroll 1
    for (int i = opaque(thread_index()) * 16; i < bytes; i += p.gather.threads * 16) cp_async<16>(to + i, from + i);
  }

  SIMT_DEVICE void stage_next(const Walk& at, int buffer) const {
    const int offset = p.A_offset + buffer * group * p.gather.chunk_steps * Tile::kStepBytes;
    stage_A<T, JT>(p.gather, tile, at.scale, scales_at(at.scale), at.step,
                   shared_address(shared_memory<unsigned char>(offset)));
    if (p.weight_buffers == 2 && at.step == 0) stage_weight(at);
  }

  // H^T of one step's channels o as B operands, joints n. In tf32 a step is eight rows of an m16 tile, whose rows 2i
  // and 2i+1 come as rows i and i+4; words are turned in two halves.
  SIMT_DEVICE static void turn(const float (&h)[JT][2][4], int step, uint32_t (&b)[JT][2]) {
#pragma unroll
    for (int n = 0; n < JT; ++n) {
      if constexpr (kIsTf32<T>) {
        const float* const from = h[n][step / 2] + step % 2 * 2;
        const uint32_t first = to_tf32(from[0]), second = to_tf32(from[1]);
        const uint32_t low = movmatrix_trans((first & 0xffffu) | (second << 16));
        const uint32_t high = movmatrix_trans((first >> 16) | (second & 0xffff0000u));
        b[n][0] = (low & 0xffffu) | (high << 16), b[n][1] = (low >> 16) | (high & 0xffff0000u);
      } else {
        b[n][0] = movmatrix_trans(pack_pair<T>(h[n][step][0], h[n][step][1]));
        b[n][1] = movmatrix_trans(pack_pair<T>(h[n][step][2], h[n][step][3]));
      }
    }
  }

  // gx^T += W^T H^T for one step's channels o of a scale of the group.
  SIMT_DEVICE void project(float (&gx)[CT][JT][4], const uint32_t (&b)[JT][2], int weights, int scale, int step,
                           int member) const {
    const int first = ((scale * Tile::kSteps + step) * p.team + member) * p.channel_tiles;
    const unsigned char* const from = shared_memory<unsigned char>(weights + first * 512 + opaque(lane_index()) * 16);
#pragma unroll
    for (int c = 0; c < CT; ++c) {
      if (c >= p.channel_tiles) continue;
      const Bits128 w = load_vector<Bits128>(from + c * 512);
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int n = 0; n < JT; ++n) multiply_step<T>(gx[c][n], a, b[n][0], b[n][1]);
    }
  }

  // Straight from registers: lanes own neighbouring channels, and eight of them whole sectors.
  SIMT_DEVICE void leave(const float (&gx)[CT][JT][4], int frame, int member) const {
    const int lane = opaque(lane_index()), f = p.gather.phases * (tile.first + frame) + tile.phase;
    const int u = (lane & 3) * 2, first = (slice * p.team + member) * p.channel_tiles * 16 + (lane >> 2) * 2;
    const int64_t row = (static_cast<int64_t>(tile.clip) * p.gather.frames + f) * p.V + u;
    T* const out = static_cast<T*>(p.grad_x) + row * p.C + first;
    const int joints = f < p.gather.frames ? p.V - u : 0, channels = p.C - first;  // from the lane's first on
#pragma unroll
    for (int c = 0; c < CT; ++c) {
      if (c >= p.channel_tiles || c * 16 >= channels) continue;
#pragma unroll
      for (int i = 0; i < JT * 2; ++i) {  // joint i % 2 of two in tile i / 2
        const int n = i / 2, joint = n * 8 + i % 2;
        T* const to = out + joint * p.C + c * 16;
        if (joint >= joints) continue;
        if (p.C % 2 == 0) {
          store_pair(to, gx[c][n][i % 2], gx[c][n][2 + i % 2]);
        } else {
          *to = stored<T>(gx[c][n][i % 2]);
          if (c * 16 + 1 < channels) to[1] = stored<T>(gx[c][n][2 + i % 2]);
        }
      }
    }
  }

  SIMT_DEVICE void run() const {
    const int team = p.team, frame = warp_index() / team, member = warp_index() - frame * team;
    float gx[CT][JT][4];
#pragma unroll
    for (int i = 0; i < CT * JT * 4; ++i) gx[i / (JT * 4)][i / 4 % JT][i % 4] = 0.f;

    Walk at{0, 0, 0, 0};
    bool more = tile.slots > 0;
    if (more) stage_next(at, 0);
    int buffer = 0;
    float h[NS][JT][2][4];
#pragma unroll 1
    while (more) {
      if (at.scale == 0 && at.step == 0) {
        block_barrier();  // all have done with the channels before
        stage_gy<T>(p.gather, tile, at.output, shared_address(shared_memory<unsigned char>()));
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
      gather<T>(h, own, p.gather, tile, frame, here.step, 0,
                shared_memory<unsigned char>(p.A_offset +
                                             (buffer * group + first) * p.gather.chunk_steps * Tile::kStepBytes));
      buffer ^= 1;
      if (here.step + p.gather.chunk_steps < tile.steps<T>()) continue;

      if (p.weight_buffers == 1 && here.step == 0) {  // no chunk has passed since the weights were asked for
        cp_async_wait<0>();
        block_barrier();
      }
      const int weights = weight_buffer(here);
      // One step's channels o at a time: of the warp's own scales H goes from registers into the product and, where
      // others share the frame, into the exchange; theirs are read there.
      unsigned char* const exchange =
          shared_memory<unsigned char>(p.exchange_offset) + frame * group * Tile::kStepBytes + lane_index() * 8;
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
#pragma unroll
        for (int s = 0; s < NS; ++s) {
          if (s >= own) continue;
          uint32_t b[JT][2];
          turn(h[s], step, b);
          if (team > 1) {
#pragma unroll
            for (int n = 0; n < JT; ++n) {
              store_vector(exchange + ((first + s) * JT + n) * 256, Bits64{b[n][0], b[n][1]});
            }
          }
          project(gx, b, weights, first + s, step, member);
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
          project(gx, b, weights, i, step, member);
        }
        if (step + 1 < Tile::kSteps) block_barrier();  // it has been read; in the end the next chunk's barrier says so
      }
    }
    cp_async_wait<0>();
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
  if (const int error = pack_weight_operands(p, type, plan, in, weight, stream)) return error;

  GradXParameters k{};
  k.gather = gather_parameters(p, plan, gy, A);
  k.weight = weight, k.grad_x = out;
  k.V = static_cast<int>(p.V), k.C = static_cast<int>(p.C);
  k.output_chunks = static_cast<int>(ceil_div(p.O, kChannelChunk));
  k.team = plan.team, k.scales = plan.scales, k.channel_tiles = plan.channel_tiles;
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
  return type == Type::kBFloat16 ? of_type(bf16{}) : type == Type::kFloat16 ? of_type(half{}) : of_type(tf32{});
}

}  // namespace msg3d::ms_g3d::cuda
