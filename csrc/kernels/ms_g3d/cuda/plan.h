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
#include <numeric>
#include <string>
#include <vector>

#include "../../chunks.h"
#include "../problem.h"

namespace msg3d::ms_g3d::cuda {

// kTf32: float32 whose products may take ten bits of a mantissa.
enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16, kTf32 };

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
constexpr int kStepBytes = 32;        // of a row, that one product sums over: 16 values of 16 bits, 8 of tf32
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

// Destination nodes of one warp in tiles of eight, its windows, and whether it has registers left for projection units
// of 48 channels instead of 24. windows.cu instantiates them.
struct WindowTile {
  const char* name;
  int node_tiles, windows;
  bool wide_units;
};
constexpr WindowTile kWindowTiles[] = {
    {"56 nodes", 7, 1, true},  {"56 nodes, 2 windows", 7, 2, false},
    {"64 nodes", 8, 1, true},  {"80 nodes", 10, 1, true},
    {"88 nodes", 11, 1, true}, {"128 nodes", 16, 1, false},
};

struct ForwardPlan {
  Kernel kernel;
  std::string refused;  // of kPlain: why no tensor-core kernel runs
  int element_bytes;    // of T
  int tile;             // index into kFramePacks or kWindowTiles
  int warps;
  int groups;            // of 48 output channels that a block computes at once: a slice
  int parts;             // windows: runs of destination nodes, each a warp's
  int windows;           // frames or windows of a block
  int slots;             // windows: frames that a block holds in shared memory
  int frame_step;        // windows: frames from one slot to the next
  int channel_steps;     // of kStepBytes of C
  int weight_steps;      // frames: steps of a weight chunk; windows: projection units of a weight chunk
  bool wide_units;       // windows: projection units are 48 channels wide
  int slices;            // of all output channels
  int slices_per_block;  // that a block computes one after the other while it keeps x
  int out_channels;      // of the collapse behind it; 0: none
  int collapse_groups;   // of 48 of them whose weights a block holds at once
  int64_t blocks;

  // Shared memory: x from its start on, then Z (or H), W, A; the collapse lays y and its weights over what it can.
  int z_at, weight_at, adjacency_at, y_at, stage_at, shared_bytes;
  int weight_chunk_bytes;    // frames: a weight chunk; windows: a projection unit's weights
  int adjacency_part_bytes;  // A_k for one part
  int64_t weight_bytes, adjacency_bytes, collapse_bytes, workspace_bytes;  // packed once a call

  // Modelled, not measured.
  int64_t block_clocks, waves;
  double clocks;  // of all waves: what the plan minimises

  std::string tile_name;
  bool forced;  // by name

  int slice() const { return groups * kGroup; }
  // Plans of the same C, O, V, K, window and out_channels with the same number read the same packed weights; 0: none.
  int64_t layout() const {
    return kernel == Kernel::kPlain ? 0
                                    : static_cast<int64_t>(kernel) + 8 * (tile + 64 * (groups + 64 * element_bytes));
  }
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
  int64_t mma, wavefronts;  // products of the busiest sub-partition

  constexpr Interval(int64_t products, int64_t shared) : mma(products), wavefronts(shared) {}
  // Of products that `warps` warps share evenly.
  constexpr Interval(int64_t products, int64_t warps, int64_t shared)
      : mma(products / std::min<int64_t>(warps, 4)), wavefronts(shared) {}
  // Shared memory at its limit the whole time is not what one gets: a tenth of its time is added.
  int64_t clocks() const { return std::max(mma * 8, wavefronts) + wavefronts / 10 + 40; }
};

// Of `units` that warps take in turn, those of the busiest sub-partition; warp w runs on sub-partition w % 4.
inline int64_t busiest(int64_t units, int64_t warps) {
  const int64_t rest = units % warps;
  return units / warps * ceil_div(warps, 4) + (rest > 0) + (rest > 4);
}

// `clocks` of the block's intervals, the bytes that it reads before them, and all that it moves through the
// second-level cache, which gives a multiprocessor 47 bytes a clock: more than half of the time there is too much.
inline void finish(ForwardPlan& plan, const Device& device, int64_t clocks, int64_t first_bytes, int64_t all_bytes) {
  plan.block_clocks = std::max(clocks, 2 * all_bytes / 47) + 1500 + first_bytes / 12;  // nothing hides the first load
  const int64_t per_sm = std::max<int64_t>(
      1, std::min<int64_t>((device.shared_bytes + kSharedReserve) / (plan.shared_bytes + kSharedReserve),
                           kMostWarps / plan.warps));
  const int64_t on_one_sm = ceil_div(plan.blocks, device.multiprocessors);
  plan.waves = ceil_div(plan.blocks, device.multiprocessors * per_sm);
  // One warp on a sub-partition cannot hide its own latency.
  const bool hidden = plan.warps * std::min(per_sm, on_one_sm) >= kMostWarps;
  plan.clocks = static_cast<double>(on_one_sm * plan.block_clocks) * (hidden ? 1.0 : 1.15);
  plan.workspace_bytes = aligned(plan.weight_bytes) + aligned(plan.adjacency_bytes) + aligned(plan.collapse_bytes);
}

// Steps of a sum over `tiles` tiles of eight joints.
inline int64_t joint_steps(int64_t tiles, int bytes) { return bytes == 2 ? ceil_div(tiles, 2) : tiles; }

inline void cut_channels(ForwardPlan& plan, const Problem& p, int groups, int bytes) {
  plan.groups = groups, plan.element_bytes = bytes;
  plan.channel_steps = static_cast<int>(ceil_div(p.C * bytes, kStepBytes));
  plan.slices = static_cast<int>(ceil_div(p.O, plan.slice()));
  plan.weight_bytes = plan.slices * p.K * plan.channel_steps * kStepBytes * plan.slice();
}

// The collapse to `out_channels` behind a plan whose y may go to `y_at` and whose shared memory is free from there on,
// and before it if `whole`. False if the warps are too few for the windows.
inline bool add_collapse(ForwardPlan& plan, const Problem& p, int64_t out_channels, int y_at, bool whole,
                         int64_t& clocks, int64_t& all_bytes) {
  const int64_t sets = plan.windows * ceil_div(p.V, 32);
  if (sets > plan.warps) return false;
  plan.out_channels = static_cast<int>(out_channels);
  const int64_t out_groups = ceil_div(out_channels, kGroup), steps = plan.groups * 3 * plan.element_bytes / 2;
  const int64_t group_bytes = steps * 1536;
  plan.collapse_groups = static_cast<int>(std::min(plan.warps / sets, out_groups));
  plan.collapse_bytes = plan.slices * p.window * out_groups * group_bytes;
  const int64_t stage_bytes = 2 * plan.collapse_groups * group_bytes;
  const int64_t y_bytes = plan.windows * ceil_div(p.nodes(), 8) * 8 * plan.slice() * plan.element_bytes;
  plan.y_at = y_at;
  plan.stage_at = static_cast<int>(whole && stage_bytes <= y_at ? 0 : y_at + y_bytes);
  const int64_t end = y_at + y_bytes + (plan.stage_at ? stage_bytes : 0);
  plan.shared_bytes = static_cast<int>(std::max<int64_t>(plan.shared_bytes, end));
  const int64_t passes = ceil_div(out_groups, plan.collapse_groups);
  const int64_t busy = sets * plan.collapse_groups;
  const int64_t tiles = 3 * ceil_div(std::min<int64_t>(p.V, 32), 8);
  const Interval slot{ceil_div(busy, 4) * tiles * steps, busy * 20 * steps + stage_bytes / 256};
  clocks += plan.slices * (passes * p.window * slot.clocks() + y_bytes / 128);
  all_bytes += plan.collapse_bytes + plan.windows * p.V * out_channels * plan.element_bytes;
  return true;
}

// Packs of frames, `sets` of them in a block.
inline ForwardPlan frames_plan(const Problem& p, const Device& device, int bytes, int tile, int groups, int sets,
                               int weight_chunks) {
  const FramePack& pack = kFramePacks[tile];
  ForwardPlan plan{};
  plan.kernel = Kernel::kFrames, plan.tile = tile, plan.parts = plan.frame_step = 1;
  cut_channels(plan, p, groups, bytes);
  plan.warps = groups * sets, plan.windows = plan.slots = sets * pack.frames;
  plan.weight_steps = static_cast<int>(ceil_div(plan.channel_steps, weight_chunks));
  plan.slices_per_block = plan.slices;
  plan.adjacency_part_bytes = pack.frames * pack.joint_tiles * pack.joint_tiles * kFragmentBytes * bytes / 2;
  plan.adjacency_bytes = p.K * plan.adjacency_part_bytes;
  plan.weight_chunk_bytes = plan.weight_steps * kStepBytes * plan.slice();
  const int64_t rows = (sets - 1) * pack.frames * p.V + pack.row_tiles * 8;
  plan.weight_at = static_cast<int>(rows * plan.channel_steps * kStepBytes);
  plan.adjacency_at = plan.weight_at + 2 * plan.weight_chunk_bytes;
  plan.shared_bytes = plan.adjacency_at + 2 * plan.adjacency_part_bytes;
  plan.blocks = ceil_div(p.N * p.T, plan.windows);
  const int64_t k = plan.channel_steps, scales = plan.slices * p.K;
  const int64_t products =
      3 * pack.row_tiles * k + pack.frames * 3 * pack.joint_tiles * joint_steps(pack.joint_tiles, bytes);
  const int64_t fragments = (48 + 8 * pack.row_tiles) * k / 4 + plan.adjacency_part_bytes / 128;
  const int64_t staged = k * kStepBytes * plan.slice() + plan.adjacency_part_bytes;
  const Interval scale{products * ceil_div(plan.warps, 4), fragments * plan.warps + staged / 128};
  const int64_t x_bytes = plan.windows * p.V * p.C * bytes, y_bytes = plan.windows * p.V * p.O * bytes;
  finish(plan, device, scales * (scale.clocks() + 40 * (weight_chunks - 1)), x_bytes,
         x_bytes + y_bytes + scales * staged);
  return plan;
}

// False if no such tile exists.
inline bool windows_plan(ForwardPlan& plan, const Problem& p, const Device& device, int bytes, int tile, int groups,
                         int windows, bool stream_weight, bool wide_units, bool keep_x, int64_t out_channels) {
  const WindowTile& shape = kWindowTiles[tile];
  plan = {};
  plan.kernel = Kernel::kWindows, plan.tile = tile;
  cut_channels(plan, p, groups, bytes);
  plan.windows = windows;
  const int64_t node_tiles = ceil_div(p.nodes(), 8);
  plan.parts = static_cast<int>(ceil_div(node_tiles, shape.node_tiles));
  plan.warps = groups * plan.parts * (windows / shape.windows);
  if (plan.warps > kMostWarps) return false;
  plan.frame_step = static_cast<int>(windows > 1 ? std::gcd(p.stride, p.dilation) : p.dilation);
  plan.slots = static_cast<int>((p.frames_of(windows) - 1) / plan.frame_step + 1);
  const int64_t rows = plan.slots * p.V, k = plan.channel_steps, columns = plan.slice() / kColumnStep;
  plan.weight_steps = static_cast<int>(stream_weight ? 1 : columns);
  plan.slices_per_block = keep_x ? plan.slices : 1;
  plan.adjacency_part_bytes = static_cast<int>(node_tiles * shape.node_tiles * kFragmentBytes * bytes / 2);
  const int64_t a_bytes = plan.parts * plan.adjacency_part_bytes;
  plan.adjacency_bytes = p.K * a_bytes;
  plan.weight_chunk_bytes = static_cast<int>(k * kColumnStep * kStepBytes);
  plan.z_at = static_cast<int>(rows * k * kStepBytes);
  plan.weight_at = static_cast<int>(plan.z_at + rows * plan.slice() * bytes);
  plan.adjacency_at = static_cast<int>(plan.weight_at + (stream_weight ? 2 : columns) * plan.weight_chunk_bytes);
  plan.shared_bytes = static_cast<int>(plan.adjacency_at + a_bytes);
  plan.blocks = p.N * ceil_div(p.windows(), windows) * (plan.slices / plan.slices_per_block);
  // Phase 1: units of 32 rows x 24 or 48 channels. Phase 2: a warp's windows.
  plan.wide_units = wide_units;
  const int64_t wide = wide_units ? 2 : 1, chunks = columns / plan.weight_steps;
  const int64_t units = ceil_div(rows, 32) * plan.weight_steps / wide;
  const int64_t weight_bytes = columns * plan.weight_chunk_bytes;
  const Interval project{
      busiest(units, plan.warps) * 6 * wide * k,
      units * (8 + 6 * wide) * k + (rows * plan.slice() * bytes / 128 + (a_bytes + weight_bytes) / 128) / chunks};
  const int64_t steps = joint_steps(node_tiles, bytes), products = 3 * shape.node_tiles * shape.windows * steps;
  const int64_t fragments = (12 * shape.windows + 2 * shape.node_tiles) * steps;
  const Interval gather{ceil_div(plan.warps, 4) * products, plan.warps * fragments + weight_bytes / 128};
  const int64_t scales = plan.slices_per_block * p.K, x_bytes = rows * p.C * bytes;
  int64_t clocks = scales * (chunks * project.clocks() + gather.clocks());
  int64_t all_bytes = x_bytes + scales * (a_bytes + weight_bytes);
  if (out_channels == 0) {
    all_bytes += windows * p.nodes() * std::min<int64_t>(p.O, plan.slices_per_block * plan.slice()) * bytes;
  } else if (plan.slices_per_block != plan.slices ||
             !add_collapse(plan, p, out_channels, plan.slices > 1 ? plan.z_at : 0, false, clocks, all_bytes)) {
    return false;
  }
  finish(plan, device, clocks, x_bytes, all_bytes);
  return true;
}

// 16-byte chunks of a row of H: 16-bit products may end with half a step.
inline int64_t few_chunks(const Problem& p, int bytes) {
  return bytes == 2 ? ceil_div(p.K * p.C, 8) : 2 * ceil_div(p.K * p.C, 8);
}

// Aggregate first, for C <= 8. One slice holds all output channels; `channel_steps` are steps of K*C.
inline bool few_channels_plan(ForwardPlan& plan, const Problem& p, const Device& device, int bytes, int windows,
                              int64_t out_channels) {
  plan = {};
  plan.kernel = Kernel::kFewChannels, plan.parts = plan.frame_step = plan.slices = plan.slices_per_block = 1;
  plan.warps = kMostWarps, plan.windows = windows, plan.element_bytes = bytes;
  plan.groups = static_cast<int>(ceil_div(p.O, kGroup));
  plan.channel_steps = static_cast<int>(ceil_div(p.K * p.C * bytes, kStepBytes));
  plan.weight_steps = plan.channel_steps;
  plan.weight_bytes = plan.channel_steps * kStepBytes * plan.slice();
  const int64_t steps = ceil_div(p.nodes() * bytes, kStepBytes), row_tiles = ceil_div(p.nodes() * p.K, 16);
  const int64_t rows = windows * p.nodes(), chunks = few_chunks(p, bytes);
  plan.adjacency_bytes = row_tiles * steps * 512;
  plan.z_at = static_cast<int>(kFewColumns * steps * 32);
  plan.weight_at = static_cast<int>(plan.z_at + rows * chunks * 16);
  plan.shared_bytes = static_cast<int>(plan.weight_at + plan.weight_bytes);
  plan.blocks = p.N * ceil_div(p.windows(), windows);
  const Interval aggregate{busiest(row_tiles, kMostWarps) * steps * 3,
                           row_tiles * (steps * 6 + 24) + rows * chunks / 8};
  const Interval project{busiest(ceil_div(rows, 32) * plan.groups, kMostWarps) * 12 * ceil_div(chunks, 2),
                         ceil_div(rows, 32) * plan.groups * 20 * ceil_div(chunks, 2)};
  int64_t clocks = aggregate.clocks() + project.clocks(), all_bytes = plan.adjacency_bytes + plan.weight_bytes;
  if (out_channels == 0) {
    all_bytes += rows * p.O * bytes;
    clocks += rows * p.O * bytes / 12;  // to memory, which takes longer than both products
  } else if (!add_collapse(plan, p, out_channels, plan.shared_bytes, true, clocks, all_bytes)) {
    return false;
  }
  finish(plan, device, clocks, plan.adjacency_bytes / 4, all_bytes);
  return true;
}

inline ForwardPlan plain(const std::string& why) {
  ForwardPlan plan{};
  plan.kernel = Kernel::kPlain, plan.refused = why;
  return plan;
}

// Keeps the fastest plan that fits, and why the others lost.
class Choice {
 public:
  Choice(const Device& device, const std::string& forced) : device_(device), forced_(forced) {}

  void consider(const ForwardPlan& plan, const std::string& tile) {
    if (tile.find(forced_) == std::string::npos) {
      lost_.push_back({tile, "another one is forced"});
      return;
    }
    if (plan.shared_bytes > device_.shared_bytes) {
      const std::string needs = "needs " + std::to_string(plan.shared_bytes) + " bytes of shared memory";
      lost_.push_back({tile, needs + ", a block may have " + std::to_string(device_.shared_bytes)});
      if (plan.shared_bytes < least_bytes_) least_bytes_ = plan.shared_bytes, least_ = tile + ", " + needs;
      return;
    }
    const bool first = best_.kernel == Kernel::kPlain, better = first || plan.clocks < best_.clocks;
    if (!first) lost_.push_back(better ? Rejected{best_tile_, slower(best_)} : Rejected{tile, slower(plan)});
    if (better) best_ = plan, best_tile_ = tile;
  }

  bool found() const { return best_.kernel != Kernel::kPlain; }

  ForwardPlan best(std::vector<Rejected>* rejected) {
    if (best_.kernel == Kernel::kPlain) {
      best_ = plain(least_.empty() ? "no tile has enough warps for these sizes"
                                   : "no tile fits: the smallest, " + least_ + ", a block may have " +
                                         std::to_string(device_.shared_bytes));
    }
    best_.tile_name = best_tile_, best_.forced = !forced_.empty();
    if (rejected) *rejected = std::move(lost_);
    return best_;
  }

 private:
  static std::string slower(const ForwardPlan& plan) {
    return "modelled slower: " + std::to_string(static_cast<int64_t>(plan.clocks)) + " clocks";
  }

  Device device_;
  std::string forced_;
  ForwardPlan best_{};
  std::vector<Rejected> lost_;
  std::string best_tile_, least_;
  int64_t least_bytes_ = INT64_MAX;
};

inline std::string tile_name(const char* shape, int groups, int count, const char* what, const std::string& more) {
  return std::string(shape) + ", " + std::to_string(groups * kGroup) + " channels, " + std::to_string(count) + " " +
         what + " a block" + more;
}

// The fastest of the tiles whose name has `forced` in it.
inline ForwardPlan fastest(const Problem& p, const Device& device, int bytes, int64_t out_channels,
                           std::vector<Rejected>* rejected, const std::string& forced) {
  Choice choice(device, forced);
  ForwardPlan plan;
  const int all_groups = static_cast<int>(ceil_div(p.O, kGroup));
  const auto too_wide = [&](int groups) { return groups > 1 && groups >= 2 * all_groups; };
  if (p.C <= 8) {
    for (int windows = static_cast<int>(kFewColumns / p.C); windows > 0; windows /= 2) {
      if (few_channels_plan(plan, p, device, bytes, windows, out_channels)) {
        choice.consider(plan, "few channels, " + std::to_string(windows) + " windows a block");
      }
    }
  } else if (p.window == 1 && p.stride == 1 && out_channels == 0) {
    for (int tile = 0; tile < static_cast<int>(std::size(kFramePacks)); ++tile) {
      const FramePack& pack = kFramePacks[tile];
      if (p.V < pack.v_least || p.V > pack.v_most) continue;
      for (int groups : {1, 2, 4, 8}) {
        for (int sets : {1, 2, 4}) {
          for (int chunks : {1, 2, 4, 8}) {
            if (too_wide(groups) || groups * sets > kMostWarps || chunks > ceil_div(p.C * bytes, kStepBytes)) continue;
            choice.consider(frames_plan(p, device, bytes, tile, groups, sets, chunks),
                            tile_name(pack.name, groups, sets * pack.frames, "frames",
                                      chunks > 1 ? ", weights in " + std::to_string(chunks) + " chunks" : ""));
          }
        }
      }
    }
  } else {
    // Every slice behind the first reads and writes the collapse's output again: 48 channels only where nothing else
    // fits.
    const int least_groups = out_channels > 0 ? std::min(2, all_groups) : 1;
    for (int tile = 0; tile < static_cast<int>(std::size(kWindowTiles)); ++tile) {
      const WindowTile& shape = kWindowTiles[tile];
      for (int groups : {4, 2, 1}) {
        if (groups < least_groups && choice.found()) continue;
        for (int windows : {1, 2, 3, 4, 8}) {
          for (int way = 0; way < 6; ++way) {
            const bool stream = way % 3 == 1, wide = way % 3 == 2, keep = way / 3;
            if (wide && !shape.wide_units) continue;
            if (too_wide(groups) || windows % shape.windows != 0) continue;
            if (keep ? groups >= all_groups : out_channels > 0 && groups < all_groups) continue;
            if (!windows_plan(plan, p, device, bytes, tile, groups, windows, stream, wide, keep, out_channels))
              continue;
            choice.consider(plan, tile_name(shape.name, groups, windows, "windows",
                                            std::string(stream ? ", weights streamed"
                                                        : wide ? ", wide units"
                                                               : "") +
                                                (keep ? ", slices in turn" : "")));
          }
        }
      }
    }
  }
  return choice.best(rejected);
}

}  // namespace detail

// What a forward pass runs as; with `out_channels`, the whole block for inference (collapse behind relu). `rejected`,
// if given, gets every tile that was looked at and lost, with the reason. `forced`: "plain", or a part of a tile's name
// that the choice is held to where a tile that fits has it.
inline ForwardPlan plan_forward(const Problem& p, Type type, const Device& device, int64_t out_channels = 0,
                                std::vector<Rejected>* rejected = nullptr, const std::string& forced = {}) {
  using detail::plain;
  if (type == Type::kFloat64) return plain("float64 has no tensor-core path");
  if (type == Type::kFloat32) return plain("float32 runs in full precision");
  if (device.arch < 80) return plain("tensor cores for this need compute capability 8.0");
  const int bytes = type == Type::kTf32 ? 4 : 2;
  const std::string piece = std::to_string(16 / bytes);  // of 16 bytes
  if (p.C > 8 && p.C % (16 / bytes) != 0) return plain("C is over 8 and not a multiple of " + piece);
  if (p.O % 2 != 0) return plain("O is odd");
  if (out_channels % 2 != 0) return plain("the collapse's output channels are odd");
  if (p.V > 64) return plain("V is over 64");
  if (forced == "plain") {
    ForwardPlan plan = plain("forced");
    plan.forced = true;
    return plan;
  }
  ForwardPlan plan = detail::fastest(p, device, bytes, out_channels, rejected, forced);
  if (plan.kernel != Kernel::kPlain || forced.empty()) return plan;
  return detail::fastest(p, device, bytes, out_channels, rejected, {});
}

}  // namespace msg3d::ms_g3d::cuda
