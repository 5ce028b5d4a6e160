// grad_A[k,(w,v),(w',u)] = sum over windows t and channels o of gy[t,(w,v),o] Z_k[t*s + w'*d - p,u,o], where
// Z_k[f,u,o] = sum_c weight[o,k,c] x[f,u,c].
//
// A block sums one run of window tiles for 32 channels o, a group of scales and a run of destination nodes (w,v); its
// weights stay in shared memory, its sums in registers, from the first tile to the last. Per tile: new frames are
// projected into a ring of frames in shared memory (phase 1), so that each frame is projected once a block; then
// grad_A^T += Z gy^T (phase 2), where rows (k,w',u) of Z lie densely whatever V is, and are found in the ring by each
// lane. Warps cut the rows, or take turns with the windows and write a part each. Windows are taken in phases d /
// gcd(s, d) apart, whose slots lie on every d-th frame: dilation costs nothing. Rows and nodes beyond the last are
// copies of it, whose sums nobody stores.
#include "backward.h"
#include "parts.h"
#include "rows.h"

namespace msg3d::ms_g3d::cuda {

struct GradAParameters {
  const void *x, *gy, *weight;  // weight packed: see pack_weight_rows in parts.h
  float* parts;                 // (splits, output chunks, window groups, K, nodes sources, nodes to a multiple of 8)
  int frames, windows, V, nodes, C, O, K, all_outputs;
  int window, stride, dilation, padding;
  int phases, phase_count, slot_step;  // windows t = phases*i + r begin at frames dilation*(slot_step*i) + ...
  int window_tiles, tiles, splits;
  int scales, scale_groups, output_chunks, node_slices;
  int tile_windows, window_groups, slots, piece, pitch;
  int gy_offset, z_offset, weight_offset;
};

template <typename Type_, int ROW_TILES, int NODE_TILES, int PROJECT_TILES>
struct GradATile {
  using T = Type_;
  static constexpr int kRowTiles = ROW_TILES, kNodeTiles = NODE_TILES, kProjectTiles = PROJECT_TILES;
  static constexpr int kThreads = 256, kWarps = 8;
};

// A run of windows of one phase of one clip. Frame i of the phase is frame dilation*i + first_frame.
struct WindowRun {
  int clip, phase, first, first_frame;
  int windows;  // that there are: what lies behind must not meet the frames it would read
};

template <class Tile>
struct GradA {
  using T = typename Tile::T;
  static constexpr int MT = Tile::kRowTiles, NT = Tile::kNodeTiles, PT = Tile::kProjectTiles;

  const GradAParameters& p;
  const int first_scale, scales, output, first_node;

  SIMT_DEVICE WindowRun window_tile(int index) const {
    WindowRun tile;
    tile.first = index % p.window_tiles * p.tile_windows;
    tile.phase = index / p.window_tiles % p.phase_count;
    tile.clip = index / p.window_tiles / p.phase_count;
    tile.first_frame = tile.phase * p.stride - p.padding;
    const int left = (p.windows - tile.phase + p.phases - 1) / p.phases - tile.first;
    tile.windows = left < p.tile_windows ? left : p.tile_windows;
    return tile;
  }

  SIMT_DEVICE void stage_weight() const {
    const T* const weight = static_cast<const T*>(p.weight);
    const uint32_t to = shared_address(shared_memory<unsigned char>(p.weight_offset));
#pragma unroll 1
    for (int i = opaque(thread_index()); i < scales * 32 * p.pitch; i += Tile::kThreads) {
      const int row = i / p.pitch, chunk = i - row * p.pitch;
      const int64_t from = static_cast<int64_t>(first_scale + (row >> 5)) * p.all_outputs + output + (row & 31);
      cp_async<16>(to + row_offset(row, chunk, p.pitch), weight + (from * p.pitch + chunk) * kPerChunk<T>);
    }
  }

  SIMT_DEVICE void stage_gy(const WindowRun& tile) const {
    const T* const gy = static_cast<const T*>(p.gy);
    const uint32_t to = shared_address(shared_memory<unsigned char>(p.gy_offset));
#pragma unroll 1
    for (int i = opaque(thread_index()); i < p.tile_windows * p.nodes * kRow32Chunks<T>; i += Tile::kThreads) {
      const int row = i / kRow32Chunks<T>, chunk = i % kRow32Chunks<T>, slot = row / p.nodes;
      const int channel = output + chunk * kPerChunk<T>;
      const int t = p.phases * (tile.first + slot) + tile.phase;
      const bool inside = t < p.windows && channel < p.O;
      const int64_t node = (static_cast<int64_t>(tile.clip) * p.windows + t) * p.nodes + (row - slot * p.nodes);
      cp_async<16>(to + row32_offset<T>(row, chunk), inside ? gy + node * p.O + channel : gy, inside ? 16 : 0);
    }
  }

  // `frames` frames of the tile's phase, the first of which is its frame `first`.
  SIMT_DEVICE void stage_x(const WindowRun& tile, int first, int frames) const {
    const T* const x = static_cast<const T*>(p.x);
    T* const plain = shared_memory<T>(0);
    const uint32_t to = shared_address(plain);
#pragma unroll 1
    for (int i = opaque(thread_index()); i < frames * p.V * p.pitch; i += Tile::kThreads) {
      const int row = i / p.pitch, chunk = i - row * p.pitch, frame = row / p.V, c = chunk * kPerChunk<T>;
      const int f = p.dilation * (first + frame) + tile.first_frame;
      const bool inside = f >= 0 && f < p.frames && c < p.C;
      const int64_t node = (static_cast<int64_t>(tile.clip) * p.frames + f) * p.V + (row - frame * p.V);
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

  // Z of `frames` frames in x's buffer, into the ring from the slot of frame `first` on.
  SIMT_DEVICE void project(int first, int frames) const {
    const int lane = opaque(lane_index()), rows = frames * p.V;
    const int row_units = (rows + PT * 16 - 1) / (PT * 16), steps = p.pitch / 2;
    const uint32_t x = shared_address(shared_memory<unsigned char>(0));
    const uint32_t weight = shared_address(shared_memory<unsigned char>(p.weight_offset));
    unsigned char* const z = shared_memory<unsigned char>(p.z_offset);
#pragma unroll 1
    for (int unit = warp_index(); unit < row_units * scales; unit += Tile::kWarps) {
      const int scale = unit / row_units, first_row = (unit - scale * row_units) * PT * 16;
      float sum[PT][4][4];
#pragma unroll
      for (int i = 0; i < PT * 16; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0.f;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        uint32_t b[2][4];  // 32 channels o: n8 tiles 0 and 1, each both halves of the step, and 2 and 3
#pragma unroll
        for (int half_ = 0; half_ < 2; ++half_) {
          const int row = scale * 32 + half_ * 16 + (lane & 7) + (lane >> 4) * 8;
          ldmatrix_x4(b[half_], weight + row_offset(row, step * 2 + ((lane >> 3) & 1), p.pitch));
        }
#pragma unroll
        for (int m = 0; m < PT; ++m) {
          if (first_row + m * 16 >= rows) continue;
          const int wanted = first_row + m * 16 + (lane & 15), row = wanted < rows ? wanted : rows - 1;
          uint32_t a[4];
          ldmatrix_x4(a, x + row_offset(row, step * 2 + (lane >> 4), p.pitch));
          round_operands<T>(a);
#pragma unroll
          for (int n = 0; n < 4; ++n) multiply_step<T>(sum[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int m = 0; m < PT; ++m) {
        const int l = opaque(lane_index());  // addresses that are known before would spill
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int row = first_row + m * 16 + upper * 8 + (l >> 2), frame = row / p.V;
          if (row >= rows) continue;
          const int at = (scale * p.slots + (first + frame) % p.slots) * p.V + (row - frame * p.V);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const float* const d = sum[m][n] + upper * 2;
            if constexpr (kIsTf32<T>) {
              store_vector(z + row32_offset<T>(at, n + (l & 2) * 2) + (l & 1) * 8,
                           Bits64{to_tf32(d[0]), to_tf32(d[1])});
            } else {
              *reinterpret_cast<uint32_t*>(z + row32_offset<T>(at, n) + (l & 3) * 4) = pack_pair<T>(d[0], d[1]);
            }
          }
        }
      }
    }
  }

  // Phase 2 for a warp's rows and windows.
  SIMT_DEVICE void multiply(float (&sum)[MT][NT][4], int first_row_tile, int row_tiles, int group,
                            const WindowRun& tile) const {
    const int lane = opaque(lane_index()), left = (p.nodes - first_node + 7) / 8, node_tiles = left < NT ? left : NT;
    int z_row[MT], z_slot[MT];  // the lane's rows of Z if its slot were 0, and their slots in a window
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const int wanted = (first_row_tile + m) * 16 + (lane & 15), rows = scales * p.nodes;
      const int row = wanted < rows ? wanted : rows - 1;
      const int scale = row / p.nodes, node = row - scale * p.nodes, slot = node / p.V;
      z_row[m] = scale * p.slots * p.V + node - slot * p.V, z_slot[m] = slot;
    }
    const uint32_t z = shared_address(shared_memory<unsigned char>(p.z_offset));
    const uint32_t gy = shared_address(shared_memory<unsigned char>(p.gy_offset));
#pragma unroll 1
    for (int window = group; window < tile.windows; window += p.window_groups) {
      const int base = p.slot_step * (tile.first + window) % p.slots;
#pragma unroll
      for (int k = 0; k < 32 / kPerStep<T>; ++k) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          if (m >= row_tiles) continue;
          const int slot = base + z_slot[m], wrapped = slot < p.slots ? slot : slot - p.slots;
          ldmatrix_x4(a[m], z + row32_offset<T>(z_row[m] + wrapped * p.V, k * 2 + (lane >> 4)));
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
          if (n >= node_tiles) continue;
          const int wanted = first_node + n * 8 + (lane & 7) + (lane >> 4) * 8;
          const int node = wanted < p.nodes ? wanted : p.nodes - 1;
          const uint32_t from = gy + row32_offset<T>(window * p.nodes + node, k * 2 + ((lane >> 3) & 1));
          const bool second = n + 1 < NT && n + 1 < node_tiles;
          uint32_t b[4] = {};
          if (second) {
            ldmatrix_x4(b, from);
          } else {
            ldmatrix_x2(reinterpret_cast<uint32_t (&)[2]>(b), from);
          }
          round_operands<T>(b);
#pragma unroll
          for (int m = 0; m < MT; ++m) {
            if (m >= row_tiles) continue;
            multiply_step<T>(sum[m][n], a[m], b[0], b[1]);
            if (second) multiply_step<T>(sum[m][n + 1 < NT ? n + 1 : n], a[m], b[2], b[3]);
          }
        }
      }
    }
  }

  SIMT_DEVICE void run(int first_tile, int last_tile, int part) const {
    const int warp = opaque(warp_index()), row_warps = Tile::kWarps / p.window_groups;
    const int group = warp / row_warps, rows = scales * p.nodes, all_row_tiles = (rows + 15) / 16;
    const int share = (all_row_tiles + row_warps - 1) / row_warps;
    // The first warps take one tile more than the others where tiles do not divide evenly.
    const int mine = warp - group * row_warps, more = all_row_tiles - (share - 1) * row_warps;
    const int first_row_tile = mine * (share - 1) + (mine < more ? mine : more);
    const int row_tiles = share - (mine < more ? 0 : 1);
    float sum[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.f;

    stage_weight();
    int done = 0;  // frames of the tile's phase before this one are in the ring
#pragma unroll 1
    for (int index = first_tile; index < last_tile; ++index) {
      const WindowRun tile = window_tile(index);
      const int oldest = p.slot_step * tile.first, end = oldest + p.slots;
      int first = index == first_tile || tile.first == 0 || done < oldest ? oldest : done;
      int frames = end - first < p.piece ? end - first : p.piece;
      if (index == first_tile || tile.first == 0) stage_x(tile, first, frames);  // else it was asked for before phase 2
      cp_async_commit();
      stage_gy(tile);
      cp_async_commit();
      cp_async_wait<1>();
      block_barrier();
#pragma unroll 1
      while (true) {
        project(first, frames);
        first += frames;
        if (first >= end) break;
        frames = end - first < p.piece ? end - first : p.piece;
        block_barrier();  // x has been read
        stage_x(tile, first, frames);
        cp_async_commit();
        cp_async_wait<0>();
        block_barrier();
      }
      done = end;
      cp_async_wait<0>();
      block_barrier();  // Z and gy are there, x has been read
      if (index + 1 < last_tile && window_tile(index + 1).first != 0) {
        const int next_oldest = oldest + p.slot_step * p.tile_windows, next_end = next_oldest + p.slots;
        const int next = done < next_oldest ? next_oldest : done;
        stage_x(tile, next, next_end - next < p.piece ? next_end - next : p.piece);
      }
      multiply(sum, first_row_tile, row_tiles, group, tile);
      block_barrier();  // Z and gy have been read
    }
    cp_async_wait<0>();

    const int lane = opaque(lane_index()), width = (p.nodes + 7) / 8 * 8;
    float* const out =
        p.parts + ((static_cast<int64_t>(part) * p.window_groups + group) * p.K + first_scale) * p.nodes * width;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int row = (first_row_tile + m) * 16 + upper * 8 + (lane >> 2);
          const int node = first_node + n * 8 + (lane & 3) * 2;
          if (m < row_tiles && row < rows && node < width) {
            store_vector(out + static_cast<int64_t>(row) * width + node,
                         Bits64{float_bits(sum[m][n][upper * 2]), float_bits(sum[m][n][upper * 2 + 1])});
          }
        }
      }
    }
  }
};

template <class Tile>
SIMT_KERNEL(Tile::kThreads, 1)
void grad_A(GradAParameters p) {
  int index = block_x();
  const int slice = index % p.node_slices;
  index /= p.node_slices;
  const int group = index % p.scale_groups;
  index /= p.scale_groups;
  const int chunk = index % p.output_chunks, split = index / p.output_chunks;
  const int first_scale = group * p.scales, left = p.K - first_scale;
  const GradA<Tile> block{p, first_scale, left < p.scales ? left : p.scales, chunk * 32, slice * Tile::kNodeTiles * 8};
  const int64_t tiles = p.tiles;
  block.run(static_cast<int>(tiles * split / p.splits), static_cast<int>(tiles * (split + 1) / p.splits),
            split * p.output_chunks + chunk);
}

int launch_grad_A(const Problem& p, Type type, const OuterPlan& plan, const Pointers& in, const void* gy,
                  const Gradients& out, unsigned char* workspace, void* stream) {
  float* const parts = reinterpret_cast<float*>(workspace + detail::aligned(plan.weight_bytes));
  if (const int error = pack_weight_rows(p, type, plan.pitch * (type == Type::kTf32 ? 4 : 8), in, workspace, stream))
    return error;

  const FramePhases phases = frame_phases(p);
  GradAParameters k{};
  k.x = in.x, k.gy = gy, k.weight = workspace, k.parts = parts;
  k.frames = static_cast<int>(p.T), k.windows = static_cast<int>(p.windows()), k.V = static_cast<int>(p.V);
  k.nodes = static_cast<int>(p.nodes()), k.C = static_cast<int>(p.C), k.O = static_cast<int>(p.O);
  k.K = static_cast<int>(p.K), k.output_chunks = static_cast<int>(ceil_div(p.O, kChannelChunk));
  k.all_outputs = k.output_chunks * kChannelChunk;
  k.window = static_cast<int>(p.window), k.stride = static_cast<int>(p.stride);
  k.dilation = static_cast<int>(p.dilation), k.padding = static_cast<int>(p.padding());
  k.phases = phases.window_step, k.slot_step = phases.slot_step;
  k.phase_count = static_cast<int>(std::min<int64_t>(phases.window_step, p.windows()));
  k.window_tiles = plan.window_tiles, k.tiles = static_cast<int>(plan.tiles);
  k.splits = static_cast<int>(plan.splits);
  k.scales = plan.scales, k.scale_groups = static_cast<int>(ceil_div(p.K, plan.scales));
  k.node_slices = plan.node_slices, k.tile_windows = plan.windows, k.window_groups = plan.window_groups;
  k.slots = plan.slots, k.piece = plan.piece, k.pitch = plan.pitch;
  k.gy_offset = plan.gy_offset, k.z_offset = plan.z_offset, k.weight_offset = plan.weight_offset;
  const Grid grid{static_cast<unsigned>(plan.splits * k.output_chunks * k.scale_groups * k.node_slices)};
  const auto run = [&](auto kernel) { return launch(kernel, grid, plan.warps * 32, plan.shared_bytes, stream, k); };
  const auto of_type = [&](auto zero) {
    using T = decltype(zero);
    switch (plan.tile) {
      case 0:
        return run(grad_A<GradATile<T, 4, 4, 6>>);
      case 1:
        return run(grad_A<GradATile<T, 3, 11, 3>>);
      default:
        return run(grad_A<GradATile<T, 2, 16, 2>>);
    }
  };
  if (const int error = type == Type::kBFloat16  ? of_type(bf16{})
                        : type == Type::kFloat16 ? of_type(half{})
                                                 : of_type(tf32{})) {
    return error;
  }

  const int64_t R = p.nodes(), width = ceil_div(R, 8) * 8;
  PartSum sum{parts, out.A, out.type, plan.parts, p.K * R * width};
  sum.size[0] = k.K, sum.size[1] = k.nodes, sum.size[2] = k.nodes;  // scale, source, destination
  sum.stride[0] = R * width, sum.stride[1] = width;
  sum.out_stride[0] = R * R, sum.out_stride[1] = 1, sum.out_stride[2] = R;
  return sum_parts(sum, stream);
}

}  // namespace msg3d::ms_g3d::cuda
