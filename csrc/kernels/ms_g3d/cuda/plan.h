// Which kernel computes a forward pass on a GPU, with which tile: a pure host function from sizes, type and the limits
// of the device. Nothing else decides, and nothing here needs CUDA.
//
// The tensor-core kernels project first: Z_k = x W_k^T once per frame, then y += A_k Z_k. Frames (tau = s = d = 1) keep
// Z in registers, windows keep it in shared memory. Every candidate tile gets its shared memory and a modelled time:
// the sum over barrier intervals of the busier of tensor cores and shared memory, times the blocks that one
// multiprocessor runs. What fits and is fastest wins; where nothing fits, `refused` says why and the plain path runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../../chunks.h"
#include "../problem.h"

namespace msg3d::ms_g3d::cuda {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Device {
  int arch;             // 80, 90, ...: compute capability times ten
  int multiprocessors;  // SMs
  int shared_bytes;     // that one block may ask for: 99, 163 or 227 KB
};

enum class Kernel { kPlain, kFrames, kWindows, kFewChannels };

constexpr int kGroup = 48;            // output channels of a warp: three m16 tiles
constexpr int kColumnStep = 24;       // output channels of a projection unit of the windows kernel
constexpr int kFewColumns = 24;       // windows times channels of the kernel for few input channels
constexpr int kMostWarps = 8;         // of a block: leaves 255 registers to a thread
constexpr int kFragmentBytes = 128;   // one register of a warp: an 8 x 8 matrix of 16-bit values
constexpr int kSharedReserve = 1024;  // what the system takes of an SM's shared memory for each block

// Frames of one warp, packed without padding between them: V joints from v_least to v_most in row_tiles * 8 rows, each
// frame in joint_tiles * 8 joints. csrc/kernels/ms_g3d/cuda/frames.cu instantiates them.
struct FramePack {
  const char* name;
  int frames, v_least, v_most, joint_tiles, row_tiles;
};
constexpr FramePack kFramePacks[] = {
    {"3 frames of 17", 3, 17, 18, 3, 7}, {"2 frames of 25", 2, 25, 28, 4, 7}, {"1 frame of 16", 1, 1, 16, 2, 2},
    {"1 frame of 24", 1, 17, 24, 3, 3},  {"1 frame of 32", 1, 17, 32, 4, 4},  {"1 frame of 48", 1, 33, 48, 6, 6},
    {"1 frame of 64", 1, 49, 64, 8, 8},
};

// Destination nodes of one warp in tiles of eight, and its windows. windows.cu instantiates them.
struct WindowTile {
  const char* name;
  int node_tiles, windows;
};
constexpr WindowTile kWindowTiles[] = {
    {"56 nodes", 7, 1}, {"56 nodes, 2 windows", 7, 2}, {"80 nodes", 10, 1}, {"88 nodes", 11, 1}, {"128 nodes", 16, 1},
};

struct ForwardPlan {
  Kernel kernel;
  std::string refused;  // of kPlain: why no tensor-core kernel runs
  int tile;             // index into kFramePacks or kWindowTiles
  int warps;
  int groups;            // of 48 output channels that a block computes at once: a slice
  int parts;             // windows: runs of destination nodes, each a warp's
  int windows;           // frames or windows of a block
  int slots;             // windows: frames that a block holds in shared memory
  int frame_step;        // windows: frames from one slot to the next
  int channel_steps;     // k16 steps of C
  int weight_steps;      // frames: k16 steps of a weight chunk; windows: projection units of a weight chunk
  int slices;            // of all output channels
  int slices_per_block;  // that a block computes one after the other while it keeps x
  int shared_bytes;
  int64_t blocks;
  int64_t weight_bytes, adjacency_bytes, workspace_bytes;  // packed once a call
  int64_t block_clocks, waves;                             // modelled, not measured
  double clocks;                                           // of all waves: what the plan minimises

  int slice() const { return groups * kGroup; }
};

struct Rejected {
  std::string tile, why;
};

namespace detail {

constexpr int64_t kAlign = 256;

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// Time of a block and of the whole grid. An m16n8k16 product keeps one of an SM's four sub-partitions busy for 8
// clocks, shared memory moves 128 bytes a clock; a barrier, and the start of a block, cost latency.
struct Interval {
  int64_t mma, warps, wavefronts;
  int64_t clocks() const { return std::max(mma * 8 / std::min<int64_t>(warps, 4), wavefronts) + 40; }
};

inline void finish(ForwardPlan& plan, const Device& device, int64_t x_bytes, int64_t clocks) {
  plan.block_clocks = clocks + 1500 + x_bytes / 12;  // nothing hides the first load
  const int64_t per_sm = std::max<int64_t>(
      1,
      std::min((device.shared_bytes + kSharedReserve) / (plan.shared_bytes + kSharedReserve), kMostWarps / plan.warps));
  plan.waves = ceil_div(plan.blocks, device.multiprocessors * per_sm);
  // One warp on a sub-partition cannot hide its own latency.
  const double resident =
      static_cast<double>(plan.warps * std::min(per_sm, ceil_div(plan.blocks, device.multiprocessors)));
  plan.clocks = static_cast<double>(ceil_div(plan.blocks, device.multiprocessors) * plan.block_clocks) *
                (resident >= 8 ? 1.0 : 1.25);
  plan.workspace_bytes = aligned(plan.weight_bytes) + aligned(plan.adjacency_bytes);
}

inline void cut_channels(ForwardPlan& plan, const Problem& p, int groups) {
  plan.groups = groups;
  plan.channel_steps = static_cast<int>(ceil_div(p.C, 16));
  plan.slices = static_cast<int>(ceil_div(p.O, plan.slice()));
  plan.weight_bytes = plan.slices * p.K * plan.channel_steps * 16 * plan.slice() * 2;
}

// Packs of frames, `sets` of them in a block.
inline ForwardPlan frames_plan(const Problem& p, const Device& device, int tile, int groups, int sets,
                               int weight_chunks) {
  const FramePack& pack = kFramePacks[tile];
  ForwardPlan plan{};
  plan.kernel = Kernel::kFrames, plan.tile = tile, plan.parts = plan.frame_step = 1;
  cut_channels(plan, p, groups);
  plan.warps = groups * sets, plan.windows = plan.slots = sets * pack.frames;
  plan.weight_steps = static_cast<int>(ceil_div(plan.channel_steps, weight_chunks));
  plan.slices_per_block = plan.slices;
  const int64_t a_bytes = pack.frames * pack.joint_tiles * pack.joint_tiles * kFragmentBytes;
  const int64_t rows = (sets - 1) * pack.frames * p.V + pack.row_tiles * 8;
  const int64_t weight_chunk = plan.weight_steps * 16 * plan.slice() * 2;
  plan.shared_bytes = static_cast<int>(rows * plan.channel_steps * 32 + 2 * (weight_chunk + a_bytes));
  plan.adjacency_bytes = p.K * a_bytes;
  plan.blocks = ceil_div(p.N * p.T, plan.windows);
  const int64_t k = plan.channel_steps;
  const int64_t products = 3 * pack.row_tiles * k + pack.frames * 3 * pack.joint_tiles * ceil_div(pack.joint_tiles, 2);
  const int64_t fragments = (48 + 8 * pack.row_tiles) * k / 4 + a_bytes / 128;
  const int64_t staged = (plan.channel_steps * 16 * plan.slice() * 2 + a_bytes) / 128;
  const Interval scale{products * plan.warps, plan.warps, fragments * plan.warps + staged};
  finish(plan, device, plan.windows * p.V * p.C * 2, plan.slices * p.K * (scale.clocks() + 40 * (weight_chunks - 1)));
  return plan;
}

inline ForwardPlan windows_plan(const Problem& p, const Device& device, int tile, int groups, int windows,
                                bool stream_weight, bool keep_x) {
  const WindowTile& shape = kWindowTiles[tile];
  ForwardPlan plan{};
  plan.kernel = Kernel::kWindows, plan.tile = tile;
  cut_channels(plan, p, groups);
  plan.windows = windows;
  const int64_t node_tiles = ceil_div(p.nodes(), 8);
  plan.parts = static_cast<int>(ceil_div(node_tiles, shape.node_tiles));
  plan.warps = groups * plan.parts * (windows / shape.windows);
  int64_t step = p.dilation;
  if (windows > 1) {
    for (int64_t a = p.stride; a;) {
      const int64_t rest = step % a;
      step = a, a = rest;
    }
  }
  plan.frame_step = static_cast<int>(step);
  plan.slots = static_cast<int>((p.frames_of(windows) - 1) / step + 1);
  const int64_t rows = plan.slots * p.V, k = plan.channel_steps, columns = plan.slice() / kColumnStep;
  plan.weight_steps = static_cast<int>(stream_weight ? 1 : columns);
  plan.slices_per_block = keep_x ? plan.slices : 1;
  const int64_t a_bytes = node_tiles * plan.parts * shape.node_tiles * kFragmentBytes;
  const int64_t unit_bytes = k * kColumnStep * 32;
  plan.shared_bytes =
      static_cast<int>(rows * (k * 32 + plan.slice() * 2) + (stream_weight ? 2 : columns) * unit_bytes + a_bytes);
  plan.adjacency_bytes = p.K * a_bytes;
  plan.blocks = p.N * ceil_div(p.windows(), windows) * (plan.slices / plan.slices_per_block);
  // Phase 1: units of 32 rows x 24 channels. Phase 2: a warp's windows.
  const int64_t m32 = ceil_div(rows, 32), units = m32 * plan.weight_steps, chunks = columns / plan.weight_steps;
  const Interval project{ceil_div(units, std::min(plan.warps, 4)) * std::min(plan.warps, 4) * 6 * k, plan.warps,
                         units * 14 * k + rows * plan.slice() / 64 / chunks + (a_bytes + unit_bytes) / 128 / chunks};
  const int64_t per_step = 3 * shape.node_tiles * shape.windows;
  const Interval gather{
      plan.warps * per_step * ceil_div(node_tiles, 2), plan.warps,
      plan.warps * (12 * shape.windows + 2 * shape.node_tiles) * ceil_div(node_tiles, 2) + columns * unit_bytes / 128};
  finish(plan, device, rows * p.C * 2, plan.slices_per_block * p.K * (chunks * project.clocks() + gather.clocks()));
  return plan;
}

// Aggregate first, for C <= 8. One slice holds all output channels; `channel_steps` are k16 steps of K*C.
inline ForwardPlan few_channels_plan(const Problem& p, const Device& device, int windows) {
  ForwardPlan plan{};
  plan.kernel = Kernel::kFewChannels, plan.parts = plan.frame_step = plan.slices = plan.slices_per_block = 1;
  plan.warps = kMostWarps, plan.windows = windows;
  plan.groups = static_cast<int>(ceil_div(p.O, kGroup));
  plan.channel_steps = static_cast<int>(ceil_div(p.K * p.C, 16));
  plan.weight_steps = plan.channel_steps;
  plan.weight_bytes = plan.channel_steps * 16 * plan.slice() * 2;
  const int64_t steps = ceil_div(p.nodes(), 16), row_tiles = ceil_div(p.nodes() * p.K, 16);
  const int64_t rows = windows * p.nodes(), chunks = ceil_div(p.K * p.C, 8);
  plan.adjacency_bytes = row_tiles * steps * 512;
  plan.shared_bytes = static_cast<int>(kFewColumns * steps * 32 + rows * chunks * 16 + plan.weight_bytes);
  plan.blocks = p.N * ceil_div(p.windows(), windows);
  const Interval aggregate{row_tiles * steps * 3, kMostWarps, row_tiles * (steps * 6 + 24) + rows * chunks / 8};
  const Interval project{ceil_div(rows, 32) * plan.groups * 12 * ceil_div(chunks, 2), kMostWarps,
                         ceil_div(rows, 32) * plan.groups * 20 * ceil_div(chunks, 2)};
  // Writing y to memory, at 12 bytes a clock and multiprocessor, takes longer than both where all of them write.
  finish(plan, device, plan.adjacency_bytes / 4, aggregate.clocks() + project.clocks() + rows * p.O * 2 / 12);
  return plan;
}

inline ForwardPlan plain(const std::string& why) {
  ForwardPlan plan{};
  plan.kernel = Kernel::kPlain, plan.refused = why;
  return plan;
}

}  // namespace detail

// What a forward pass runs as. `rejected`, if given, gets every tile that was looked at and lost, with the reason.
inline ForwardPlan plan_forward(const Problem& p, Type type, const Device& device,
                                std::vector<Rejected>* rejected = nullptr) {
  if (type == Type::kFloat64) return detail::plain("float64 has no tensor-core path");
  if (type == Type::kFloat32) return detail::plain("float32 runs in full precision");
  if (device.arch < 80) return detail::plain("tensor cores for this need compute capability 8.0");
  if (p.C > 8 && p.C % 8 != 0) return detail::plain("C is over 8 and not a multiple of 8");
  if (p.O % 2 != 0) return detail::plain("O is odd");
  if (p.V > 64) return detail::plain("V is over 64");

  ForwardPlan best = detail::plain("");
  std::string least_name;
  int64_t least_bytes = INT64_MAX;
  std::vector<Rejected> lost;
  std::string best_name;
  const auto consider = [&](const ForwardPlan& plan, const std::string& name) {
    if (plan.warps > kMostWarps) return;
    if (plan.shared_bytes > device.shared_bytes) {
      lost.push_back({name, "needs " + std::to_string(plan.shared_bytes) + " bytes of shared memory, there are " +
                                std::to_string(device.shared_bytes)});
      if (plan.shared_bytes < least_bytes) least_bytes = plan.shared_bytes, least_name = name;
      return;
    }
    const bool better = best.kernel == Kernel::kPlain || plan.clocks < best.clocks;
    const std::string slower = "modelled slower: " + std::to_string(static_cast<int64_t>(plan.clocks)) + " clocks";
    if (better) {
      if (best.kernel != Kernel::kPlain) {
        lost.push_back(
            {best_name, "modelled slower: " + std::to_string(static_cast<int64_t>(best.clocks)) + " clocks"});
      }
      best = plan, best_name = name;
    } else {
      lost.push_back({name, slower});
    }
  };
  const auto words = [](const char* tile, int groups, int count, const char* what, const std::string& more) {
    return std::string(tile) + ", " + std::to_string(groups * kGroup) + " channels, " + std::to_string(count) + what +
           more;
  };

  const int all_groups = static_cast<int>(ceil_div(p.O, kGroup));
  if (p.C <= 8) {
    for (int windows = static_cast<int>(kFewColumns / p.C); windows > 0; windows /= 2) {
      consider(detail::few_channels_plan(p, device, windows),
               "few channels, " + std::to_string(windows) + " windows a block");
    }
  } else if (p.window == 1 && p.stride == 1) {
    for (int tile = 0; tile < static_cast<int>(std::size(kFramePacks)); ++tile) {
      const FramePack& pack = kFramePacks[tile];
      if (p.V < pack.v_least || p.V > pack.v_most) continue;
      for (int groups : {1, 2, 4, 8}) {
        if (groups > 1 && groups >= 2 * all_groups) continue;
        for (int sets : {1, 2, 4}) {
          for (int chunks : {1, 2, 4, 8}) {
            if (chunks > ceil_div(p.C, 16)) continue;
            consider(detail::frames_plan(p, device, tile, groups, sets, chunks),
                     words(pack.name, groups, sets * pack.frames, " frames a block",
                           chunks > 1 ? ", weights in " + std::to_string(chunks) + " chunks" : ""));
          }
        }
      }
    }
  } else {
    for (int tile = 0; tile < static_cast<int>(std::size(kWindowTiles)); ++tile) {
      const WindowTile& shape = kWindowTiles[tile];
      for (int groups : {1, 2, 4}) {
        if (groups > 1 && groups >= 2 * all_groups) continue;
        for (int windows : {1, 2, 3, 4, 8}) {
          if (windows % shape.windows != 0) continue;
          for (int way = 0; way < 4; ++way) {
            const bool stream = way & 1, keep = way & 2;
            if (keep && groups >= all_groups) continue;
            consider(detail::windows_plan(p, device, tile, groups, windows, stream, keep),
                     words(shape.name, groups, windows, " windows a block",
                           std::string(stream ? ", weights streamed" : "") + (keep ? ", slices in turn" : "")));
          }
        }
      }
    }
  }
  if (best.kernel == Kernel::kPlain) {
    best.refused = "no tile fits into the shared memory: the smallest (" + least_name + ") needs " +
                   std::to_string(least_bytes) + " bytes, a block may have " + std::to_string(device.shared_bytes);
  }
  if (rejected) *rejected = std::move(lost);
  return best;
}

}  // namespace msg3d::ms_g3d::cuda
