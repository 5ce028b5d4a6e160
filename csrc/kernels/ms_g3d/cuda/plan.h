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
#include "tiles.h"

namespace msg3d::ms_g3d::cuda {

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

// The same of units that have `height` tiles of rows each, but for the last ones, and stand `across` beside each other:
// in tiles.
inline int64_t busiest_rows(int64_t tiles, int64_t height, int64_t across, int64_t warps) {
  int64_t sum[4] = {};
  for (int64_t unit = 0; unit < ceil_div(tiles, height) * across; ++unit) {
    sum[unit % warps % 4] += std::min(height, tiles - unit / across * height);
  }
  return *std::max_element(sum, sum + 4);
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

// Rows of a window's y: neighbouring rows (f,v) of a slot, across windows too, fall into different banks.
inline int64_t collapse_pitch(const Problem& p) { return p.nodes() + (8 - (p.nodes() - p.V) % 8) % 8; }

// The collapse to `out_channels` behind a plan of windows, of all slices at once or of each: in the fastest of the ways
// in which warps share its rows and outputs that fit. False if they are too few for the windows.
inline bool add_collapse(ForwardPlan& plan, const Problem& p, const Device& device, int64_t out_channels, bool at_once,
                         int64_t& clocks, int64_t& all_bytes) {
  const int64_t out_groups = ceil_div(out_channels, kGroup), tiles = ceil_div(plan.windows * p.V, 8);
  const int64_t steps = 3 * plan.element_bytes / 2, piece_bytes = steps * 1536, pieces = plan.slices * plan.groups;
  const int64_t y_bytes = plan.windows * collapse_pitch(p) * plan.slice() * plan.element_bytes;
  plan.out_channels = static_cast<int>(out_channels), plan.slices_at_once = at_once ? plan.slices : 1;
  plan.collapse_bytes = p.window * pieces * out_groups * piece_bytes;
  plan.y_at = at_once ? 0 : plan.z_at, plan.stage_at = static_cast<int>(plan.y_at + y_bytes);
  plan.kept_bytes = static_cast<int>(y_bytes);
  const ForwardPlan bare = plan;
  int64_t best = 0;
  for (int64_t groups = std::min<int64_t>(plan.warps, out_groups); groups > 0; --groups) {
    const int64_t sets = std::min<int64_t>(plan.warps / groups, tiles), height = ceil_div(tiles, sets);
    if (height > kCollapseTiles) continue;
    const int64_t end = std::max<int64_t>(bare.shared_bytes, plan.stage_at + 2 * groups * piece_bytes);
    const int64_t shared_bytes = end + (plan.slices_at_once - 1) * y_bytes;
    // Warps beside each other make the same rows: where their number is a multiple of four, each sub-partition has all.
    const int64_t busy = groups % 4 == 0 ? groups / 4 * tiles : ceil_div(groups * sets, 4) * height;
    const int64_t fragments = groups * (12 * sets + 4 * ceil_div(tiles, 2)) * steps;
    const Interval piece{busy * 3 * steps, fragments + groups * piece_bytes / 128};
    const int64_t hidden = groups * sets < std::min(plan.warps, kMostWarps) ? 115 : 100;  // as in finish
    const int64_t time = ceil_div(out_groups, groups) * p.window * pieces * piece.clocks() * hidden / 100;
    const bool fits = shared_bytes <= device.shared_bytes, first = best == 0;
    if (!first &&
        (fits ? plan.shared_bytes <= device.shared_bytes && time >= best : shared_bytes >= plan.shared_bytes)) {
      continue;
    }
    best = time;
    plan.collapse_groups = static_cast<int>(groups), plan.collapse_tiles = static_cast<int>(height);
    plan.kept_at = static_cast<int>(end), plan.shared_bytes = static_cast<int>(shared_bytes);
  }
  if (best == 0) return false;
  clocks += best + plan.slices * y_bytes / 128;
  const int64_t passes = at_once ? 1 : 2 * plan.slices - 1;  // over the output
  all_bytes += plan.collapse_bytes + passes * plan.windows * p.V * out_channels * plan.element_bytes;
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

// How the windows kernel cuts projection: units of 24 or 48 channels and 16 rows times `tiles`, weights whole or in
// about so many chunks along the summed channels, or in so many along the output's.
struct Cut {
  const char* name;
  bool wide;
  int tiles, chunks, output_chunks;
};
constexpr Cut kCuts[] = {
    {"", false, 2, 1, 1},
    {", wide units", true, 2, 1, 1},
    {", wide units of 48 rows", true, 3, 1, 1},
    {", streamed, wide units", true, 2, 3, 1},
    {", streamed, wide units of 48 rows", true, 3, 3, 1},
    {", finely streamed, wide units of 48 rows", true, 3, 6, 1},
    {", outputs streamed", false, 2, 1, 4},
    {", outputs streamed, wide units", true, 2, 1, 2},
    {", outputs streamed, wide units of 48 rows", true, 3, 1, 2},
};

// False if no such tile exists.
inline bool windows_plan(ForwardPlan& plan, const Problem& p, const Device& device, int bytes, int tile, int groups,
                         int windows, const Cut& cut, bool keep_x, int64_t out_channels, bool at_once) {
  const WindowTile& shape = kWindowTiles[tile];
  if (bytes == 4 && shape.node_tiles == 16) return false;  // no register is left for the addresses of its operands
  plan = {};
  plan.kernel = Kernel::kWindows, plan.tile = tile;
  cut_channels(plan, p, groups, bytes);
  plan.windows = windows;
  const int64_t node_tiles = ceil_div(p.nodes(), 8);
  plan.parts = static_cast<int>(ceil_div(node_tiles, shape.node_tiles));
  plan.warps = groups * plan.parts * (windows / shape.windows);
  if (plan.warps > kMostWarps || (cut.wide && cut.tiles > shape.wide_tiles)) return false;
  plan.frame_step = static_cast<int>(windows > 1 ? std::gcd(p.stride, p.dilation) : p.dilation);
  plan.slots = static_cast<int>((p.frames_of(windows) - 1) / plan.frame_step + 1);
  const int64_t rows = plan.slots * p.V, k = plan.channel_steps, columns = plan.slice() / kColumnStep;
  const int64_t row_tiles = ceil_div(rows, 16), across = cut.wide ? columns / 2 : columns;
  const int64_t units = ceil_div(row_tiles, cut.tiles) * across, steps = joint_steps(node_tiles, bytes);
  if (cut.chunks > 1 && (units > plan.warps || cut.chunks > k)) return false;
  if (cut.output_chunks > 1 && (shape.wide_tiles == 0 || across % cut.output_chunks != 0)) return false;
  const bool chunked = cut.chunks > 1 || cut.output_chunks > 1;
  plan.wide_units = cut.wide, plan.unit_tiles = cut.tiles;
  plan.slices_per_block = keep_x ? plan.slices : 1;
  plan.adjacency_part_bytes = static_cast<int>(node_tiles * shape.node_tiles * kFragmentBytes * bytes / 2);
  plan.adjacency_bytes = p.K * plan.parts * plan.adjacency_part_bytes;
  plan.weight_steps = static_cast<int>(ceil_div(k, cut.chunks)), plan.adjacency_steps = static_cast<int>(steps);
  plan.weight_chunk_bytes = static_cast<int>(plan.weight_steps * kColumnStep * kStepBytes);
  plan.weight_columns = static_cast<int>(columns / cut.output_chunks);
  int64_t buffer = plan.weight_columns * plan.weight_chunk_bytes;
  const int64_t step_bytes = shape.node_tiles * 2 * kFragmentBytes;
  if (chunked) {
    plan.adjacency_steps = static_cast<int>(
        std::clamp<int64_t>((buffer + plan.parts * step_bytes / 2) / (plan.parts * step_bytes), 1, steps));
  }
  plan.adjacency_chunk_bytes =
      static_cast<int>(std::min<int64_t>(plan.adjacency_part_bytes, plan.adjacency_steps * step_bytes));
  plan.z_at = static_cast<int>(rows * k * kStepBytes);
  // Statistics go over Z, which one joint may make too short.
  plan.weight_at =
      plan.z_at + static_cast<int>(std::max<int64_t>(rows * plan.slice() * bytes, plan.warps * kMomentBytes));
  // In chunks, either buffer holds chunks of W as well as of A.
  const int64_t a_buffer = plan.parts * plan.adjacency_chunk_bytes;
  if (chunked) buffer = std::max(buffer, a_buffer);
  plan.adjacency_at = static_cast<int>(plan.weight_at + buffer);
  plan.shared_bytes = static_cast<int>(plan.adjacency_at + (chunked ? buffer : a_buffer));
  plan.blocks = p.N * ceil_div(p.windows(), windows) * (plan.slices / plan.slices_per_block);
  // Phase 1: units. Phase 2: a warp's windows.
  const int64_t a_bytes = plan.parts * plan.adjacency_part_bytes, weight_bytes = columns * k * kColumnStep * kStepBytes;
  const Interval project{
      busiest_rows(row_tiles, cut.tiles, across / cut.output_chunks, plan.warps) * cut.output_chunks *
          (cut.wide ? 6 : 3) * k,
      (4 * row_tiles * across + units * (cut.wide ? 12 : 6)) * k + rows * plan.slice() * bytes / 128 + a_bytes / 128};
  const int64_t products = 3 * shape.node_tiles * shape.windows * steps;
  const int64_t fragments = (12 * shape.windows + 2 * shape.node_tiles) * steps;
  const Interval gather{ceil_div(plan.warps, 4) * products, plan.warps * fragments + weight_bytes / 128};
  const int64_t scales = plan.slices_per_block * p.K, x_bytes = rows * p.C * bytes;
  const int64_t barriers = ceil_div(k, plan.weight_steps) * cut.output_chunks + ceil_div(steps, plan.adjacency_steps);
  int64_t clocks = scales * (project.clocks() + gather.clocks() + 40 * (barriers - 2));
  int64_t all_bytes = x_bytes + scales * (a_bytes + weight_bytes);
  if (out_channels == 0) {
    all_bytes += windows * p.nodes() * std::min<int64_t>(p.O, plan.slices_per_block * plan.slice()) * bytes;
  } else if (plan.slices_per_block != plan.slices ||
             !add_collapse(plan, p, device, out_channels, at_once, clocks, all_bytes)) {
    return false;
  }
  finish(plan, device, clocks, x_bytes, all_bytes);
  return true;
}

// 16-byte chunks of a row of H: 16-bit products may end with half a step.
inline int64_t few_chunks(const Problem& p, int bytes) {
  return bytes == 2 ? ceil_div(p.K * p.C, 8) : 2 * ceil_div(p.K * p.C, 8);
}

// Aggregate first, for C <= 8; `channel_steps` are steps of K*C. A slice has no more groups of channels than the block
// has warps, each of which may then keep to one; with the collapse it has all.
inline ForwardPlan few_channels_plan(const Problem& p, const Device& device, int bytes, int windows,
                                     int64_t out_channels) {
  ForwardPlan plan{};
  plan.kernel = Kernel::kFewChannels, plan.parts = plan.frame_step = plan.slices_per_block = 1;
  plan.warps = kMostWarps, plan.windows = windows, plan.element_bytes = bytes;
  const int64_t all_groups = ceil_div(p.O, kGroup);
  plan.slices = out_channels > 0 ? 1 : static_cast<int>(ceil_div(all_groups, plan.warps));
  plan.groups = static_cast<int>(ceil_div(all_groups, plan.slices));
  plan.channel_steps = static_cast<int>(ceil_div(p.K * p.C * bytes, kStepBytes));
  plan.weight_steps = plan.channel_steps;
  const int64_t slice_bytes = plan.channel_steps * kStepBytes * plan.slice();  // of W
  plan.weight_bytes = plan.slices * slice_bytes;
  const int64_t steps = ceil_div(p.nodes() * bytes, kStepBytes), row_tiles = ceil_div(p.nodes() * p.K, 16);
  const int64_t rows = windows * p.nodes(), chunks = few_chunks(p, bytes), h_steps = ceil_div(chunks, 2);
  plan.adjacency_bytes = row_tiles * steps * 512;
  const int64_t columns = out_channels > 0 ? ceil_div(windows * p.C, 16) * 16 : kFewColumns;
  plan.z_at = static_cast<int>(columns * steps * kStepBytes);
  plan.weight_at = static_cast<int>(plan.z_at + rows * chunks * 16);
  plan.shared_bytes = std::max(static_cast<int>(plan.weight_at + slice_bytes), plan.warps * kMomentBytes);
  plan.blocks = p.N * ceil_div(p.windows(), windows) * plan.slices;
  const int64_t height = out_channels > 0 ? 2 : 1;  // m16 tiles that a warp aggregates at once
  const Interval aggregate{busiest(ceil_div(row_tiles, height), kMostWarps) * height * steps * columns / 8,
                           ceil_div(row_tiles, height) * steps * columns / 4 + row_tiles * columns + rows * chunks / 8};
  int64_t clocks = aggregate.clocks(), all_bytes = plan.adjacency_bytes + slice_bytes;
  if (out_channels == 0) {
    const int64_t units = ceil_div(rows, 32) * plan.groups;
    const int64_t y_bytes = rows * std::min<int64_t>(p.O, plan.slice()) * bytes;
    all_bytes += y_bytes;
    clocks += Interval{busiest(units, kMostWarps) * 12 * h_steps, units * 20 * h_steps}.clocks();
    clocks += y_bytes / 12;  // to memory, which takes longer than both products
  } else {
    const int64_t passes = ceil_div(out_channels, kFewOutputs), item_bytes = plan.slice() * kFewOutputs * bytes;
    plan.out_channels = static_cast<int>(out_channels);
    plan.collapse_bytes = passes * p.window * item_bytes;
    plan.y_at = plan.shared_bytes;
    plan.stage_at = plan.y_at + plan.slice() * bytes;
    plan.shared_bytes = static_cast<int>(plan.stage_at + 2 * item_bytes);
    const int64_t tiles = ceil_div(windows * p.V, 16), warps = std::min<int64_t>(tiles, kMostWarps);
    const int64_t products = plan.groups * (6 * h_steps + 18 * bytes);
    const int64_t fragments = plan.groups * (12 * h_steps + 6 + 36 * bytes);
    const Interval slot{busiest(tiles, kMostWarps) * products,
                        warps * fragments + tiles * plan.groups * 4 * h_steps + item_bytes / 128};
    clocks += passes * p.window * slot.clocks();
    all_bytes += plan.collapse_bytes + windows * p.V * out_channels * bytes;
  }
  finish(plan, device, clocks, plan.adjacency_bytes / 4, all_bytes);
  return plan;
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
    // With the collapse, a warp has at most two m16 tiles of rows.
    const int64_t most =
        out_channels > 0 ? std::min(kCollapseColumns / p.C, 2 * kMostWarps * 16 / p.V) : kFewColumns / p.C;
    for (int windows = static_cast<int>(most); windows > 0; windows = out_channels > 0 ? windows - 1 : windows / 2) {
      choice.consider(few_channels_plan(p, device, bytes, windows, out_channels),
                      "few channels, " + std::to_string(windows) + " windows a block");
    }
  } else if (p.window == 1 && p.stride == 1 && out_channels == 0) {
    for (int tile = 0; tile < static_cast<int>(std::size(kFramePacks)); ++tile) {
      const FramePack& pack = kFramePacks[tile];
      if (p.V < pack.v_least || p.V > pack.v_most) continue;
      for (int groups : {1, 2, 4, 8}) {
        for (int sets = 1; sets <= kMostSets; sets *= 2) {
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
    // Slices that the collapse adds up in memory read and write its output again: only where nothing else fits, and 48
    // channels of them only where nothing else does either.
    const int least_groups = out_channels > 0 ? std::min(2, all_groups) : 1;
    for (const bool at_once : {true, false}) {
      if (!at_once && (out_channels == 0 || choice.found())) break;
      for (int tile = 0; tile < static_cast<int>(std::size(kWindowTiles)); ++tile) {
        const WindowTile& shape = kWindowTiles[tile];
        for (int groups : {4, 2, 1}) {
          if (groups < least_groups && choice.found()) continue;
          for (int windows : {1, 2, 3, 4, 8}) {
            for (const Cut& cut : kCuts) {
              for (const bool keep : {false, true}) {
                if (too_wide(groups) || windows % shape.windows != 0) continue;
                if (keep ? groups >= all_groups : out_channels > 0 && groups < all_groups) continue;
                if (!windows_plan(plan, p, device, bytes, tile, groups, windows, cut, keep, out_channels, at_once)) {
                  continue;
                }
                const char* const slices = !keep                     ? ""
                                           : out_channels && at_once ? ", slices at once"
                                                                     : ", slices in turn";
                choice.consider(plan,
                                tile_name(shape.name, groups, windows, "windows", cut.name + std::string(slices)));
              }
            }
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
