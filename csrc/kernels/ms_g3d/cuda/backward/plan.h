// Which tiles the tensor-core backward passes take: pure host functions, as plan.h is for the forward pass.
//
// grad_x and grad_weight gather gy onto frames (gather.h): a block holds the windows that a run of frames reads, 32
// channels o at a time, and streams A. grad_A projects each frame once more and multiplies it with the gy of its
// windows. What sums over frames is split over blocks in fixed runs of tiles; backward.cu adds the parts in order, so
// results repeat bit for bit. Modelled clocks as in plan.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "../plan.h"

namespace msg3d::ms_g3d::cuda {

constexpr int kChannelChunk = 32;  // channels o of gy that a block holds at once
constexpr int kTileBytes = 256;    // a B operand of a warp: a step of a sum, eight columns
constexpr int kWeightTiles = 6;    // n8 tiles of C of a warp of grad_weight, at most
constexpr int kSplitWaves = 2;     // waves of blocks that sums over frames are split into

// What one warp of the gathering kernels holds: joints in tiles of eight, so many scales and m16 tiles of C at once.
struct GatherTile {
  int joint_tiles, scales, channel_tiles, weight_scales;
};
constexpr GatherTile kGatherTiles[] = {{3, 3, 6, 2}, {4, 2, 6, 2}, {8, 1, 3, 1}};

// What one warp of grad_A holds: m16 tiles of (scale, w', u) and n8 tiles of (w, v).
struct OuterTile {
  int row_tiles, node_tiles, project_tiles;
};
constexpr OuterTile kOuterTiles[] = {{4, 4, 6}, {3, 11, 3}, {2, 16, 2}};

// Frames f = phases*i + r, which see slots w' = set + j*slot_step, in windows window_step apart.
struct FramePhases {
  int phases, window_step, slot_step;
  int sets, most_slots;  // sets of slots, and the slots of the largest
};

inline FramePhases frame_phases(const Problem& p) {
  int64_t a = p.stride, b = p.dilation;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  FramePhases f{};
  f.window_step = static_cast<int>(p.dilation / a), f.slot_step = static_cast<int>(p.stride / a);
  f.phases = static_cast<int>(p.stride * f.window_step);
  f.sets = static_cast<int>(std::min<int64_t>(f.slot_step, p.window));
  f.most_slots = static_cast<int>((p.window - 1) / f.slot_step + 1);
  return f;
}

// The same sums with fewer special cases: without slots there is no dilation, and every frame is a clip's.
inline Problem simplified(Problem p) {
  if (p.window == 1) p.dilation = 1;
  if (p.window == 1 && p.stride == 1) p.T *= p.N, p.N = 1;
  return p;
}

// The forward pass that computes grad_x of a problem without windows.
inline Problem transposed(Problem p) {
  std::swap(p.C, p.O);
  return p;
}

struct GatherPlan {
  int tile;                   // index into kGatherTiles
  int warps, team;            // of a block; that share a frame and cut the channels of x among them (grad_x)
  int frames;                 // of a block
  int scales;                 // of a warp at once
  int chunk_steps;            // steps of A in shared memory at once
  int set_steps;              // steps of a set of slots
  int channel_tiles, slices;  // tiles of C of a warp: m16 for grad_x, n8 for grad_weight; slices of C
  int pitch;                  // grad_weight: chunks of 16 bytes of a row of x
  int weight_buffers;         // grad_x
  int A_offset, weight_offset, x_offset, shared_bytes;
  int exchange_offset;                    // of H; grad_weight: -1 if it lies over gy
  int gy_bytes, x_bytes;                  // grad_weight: from one buffer of gy, of x, to the next; 0 if there is one
  int frame_tiles;                        // of a phase
  int64_t tiles;                          // of all clips and phases
  int64_t splits;                         // grad_weight: runs of tiles
  int64_t parts_bytes;                    // of the sums
  int64_t adjacency_bytes, weight_bytes;  // packed once a call
  double clocks;

  int64_t workspace_bytes() const {
    return detail::aligned(adjacency_bytes) + detail::aligned(weight_bytes) + detail::aligned(parts_bytes);
  }
};

struct OuterPlan {
  int tile;  // index into kOuterTiles
  int warps, scales, windows;
  int window_groups;       // warps that take turns with the windows; the others cut the rows
  int slots, piece;        // frames of Z in shared memory; frames that are projected at once
  int pitch, node_slices;  // chunks of 16 bytes of a row of x; runs of 8*node_tiles destination nodes
  int gy_offset, z_offset, weight_offset, shared_bytes;
  int window_tiles;              // of a phase
  int64_t tiles, splits, parts;  // parts: sums that are added up
  int64_t parts_bytes, weight_bytes;
  double clocks;

  int64_t workspace_bytes() const { return detail::aligned(weight_bytes) + detail::aligned(parts_bytes); }
};

struct BackwardPlan {
  std::string input_refused, parameters_refused;  // why the plain path runs; empty: a tensor-core kernel does
  GatherPlan grad_x, grad_weight;
  OuterPlan grad_A;
  // Frame by frame grad_x is a forward pass of gy with A and weight transposed: the plan of that, kPlain if the
  // gathering kernel is modelled faster.
  ForwardPlan as_forward;
  int64_t input_workspace_bytes, parameters_workspace_bytes;
};

namespace detail {

inline bool fits(int bytes, const Device& device) { return bytes <= device.shared_bytes; }

inline int64_t blocks_per_sm(int warps, int shared_bytes, const Device& device) {
  return std::max<int64_t>(
      1, std::min((device.shared_bytes + kSharedReserve) / (shared_bytes + kSharedReserve), kMostWarps / warps));
}

// Runs of tiles that each of `groups` sums is split into.
inline int64_t splits_of(int64_t groups, int64_t tiles, int warps, int shared_bytes, const Device& device) {
  const int64_t blocks = kSplitWaves * device.multiprocessors * blocks_per_sm(warps, shared_bytes, device);
  return std::clamp<int64_t>(blocks / groups, 1, std::max<int64_t>(1, tiles));
}

// Clocks of all blocks: what one interval between barriers costs is Interval's; a block's start is not hidden.
inline double all_clocks(int64_t block_clocks, int64_t blocks, int warps, int shared_bytes, const Device& device) {
  const int64_t per_sm = blocks_per_sm(warps, shared_bytes, device);
  const double resident = static_cast<double>(warps * std::min(per_sm, ceil_div(blocks, device.multiprocessors)));
  return static_cast<double>(ceil_div(blocks, device.multiprocessors) * block_clocks) * (resident >= 8 ? 1.0 : 1.25);
}

// Rows that one product sums over.
inline int64_t rows_per_step(int64_t bytes) { return kStepBytes / bytes; }

// Chunks of 16 bytes of a row of `channels` elements and zeros up to a multiple of 32.
inline int64_t row_chunks(int64_t channels, int64_t bytes) { return ceil_div(channels, 32) * 2 * bytes; }

// Of `products` that `warps` warps share evenly.
inline Interval interval(int64_t products, int64_t warps, int64_t wavefronts) {
  return {ceil_div(products, std::min<int64_t>(warps, 4)), wavefronts};
}

inline void gather_sizes(GatherPlan& g, const Problem& p, int64_t bytes, const FramePhases& phases,
                         int64_t joint_tiles) {
  g.set_steps = static_cast<int>(ceil_div(phases.most_slots * p.nodes(), rows_per_step(bytes)));
  g.chunk_steps = std::min(g.chunk_steps, g.set_steps);
  g.frame_tiles = static_cast<int>(ceil_div(ceil_div(p.T, phases.phases), g.frames));
  g.tiles = p.N * std::min<int64_t>(phases.phases, p.T) * g.frame_tiles;
  g.adjacency_bytes = p.K * phases.sets * g.set_steps * joint_tiles * kTileBytes;
  const int64_t gy_rows = (g.frames + phases.most_slots - 1) * p.nodes() + 1;
  g.A_offset = static_cast<int>(aligned(gy_rows * kChannelChunk * bytes));
}

inline GatherPlan input_plan(const Problem& p, const Device& device, int64_t bytes, int tile, int warps, int team,
                             int scales, int chunk_steps) {
  const GatherTile& shape = kGatherTiles[tile];
  const FramePhases phases = frame_phases(p);
  GatherPlan g{};
  g.tile = tile, g.warps = warps, g.team = team, g.frames = warps / team, g.scales = scales;
  g.chunk_steps = chunk_steps;
  const int64_t all_tiles = ceil_div(p.C, 16);
  g.slices = static_cast<int>(ceil_div(all_tiles, team * shape.channel_tiles));
  g.channel_tiles = static_cast<int>(ceil_div(ceil_div(all_tiles, g.slices), team));
  gather_sizes(g, p, bytes, phases, shape.joint_tiles);
  const int64_t all_scales = team * scales, step_bytes = shape.joint_tiles * kTileBytes;
  const int64_t scale_bytes = team * g.channel_tiles * 16 * kChannelChunk * bytes;  // of weights
  const int64_t weight_bytes = all_scales * scale_bytes;
  const int64_t exchange_bytes = team > 1 ? g.frames * all_scales * step_bytes : 0;
  g.weight_offset = static_cast<int>(g.A_offset + 2 * all_scales * g.chunk_steps * step_bytes);
  for (g.weight_buffers = 2; g.weight_buffers >= 1; --g.weight_buffers) {
    g.exchange_offset = static_cast<int>(g.weight_offset + g.weight_buffers * weight_bytes);
    g.shared_bytes = static_cast<int>(g.exchange_offset + exchange_bytes);
    if (fits(g.shared_bytes, device) || g.weight_buffers == 1) break;
  }
  g.weight_bytes = g.slices * ceil_div(p.O, kChannelChunk) * p.K * scale_bytes;

  const int64_t steps = kChannelChunk / rows_per_step(bytes);
  int64_t clocks = 0;
  for (int64_t k = 0; k < p.K; k += all_scales) {
    const int64_t here = std::min(all_scales, p.K - k), own = ceil_div(here, team);
    const int64_t chunks = ceil_div(g.set_steps, g.chunk_steps), n = shape.joint_tiles;
    const Interval gathering = interval(warps * g.chunk_steps * 2 * own * n, warps,
                                        warps * g.chunk_steps * (8 + 2 * n * own) + here * g.chunk_steps * n * 2);
    const Interval projection =
        interval(warps * here * steps * n * g.channel_tiles, warps,
                 warps * here * steps * (4 * g.channel_tiles + (team > 1 ? 2 * n : 0)) + here * scale_bytes / 128);
    clocks += chunks * gathering.clocks() + projection.clocks() + (team > 1 ? 60 * steps : 0);
  }
  clocks += 600 + g.A_offset / 40;  // nothing hides the loads of gy
  g.clocks = all_clocks(ceil_div(p.O, kChannelChunk) * clocks, g.tiles * g.slices, warps, g.shared_bytes, device);
  return g;
}

// `most_tiles`: of C for a warp. `buffers`: 0 has one of gy with H and x over it, 1 gives x its room, 2 loads gy a tile
// ahead, 3 also x.
inline GatherPlan weight_plan(const Problem& p, const Device& device, int64_t bytes, int tile, int warps, int scales,
                              int chunk_steps, int most_tiles, int buffers) {
  const GatherTile& shape = kGatherTiles[tile];
  const FramePhases phases = frame_phases(p);
  GatherPlan g{};
  g.tile = tile, g.warps = warps, g.team = 1, g.frames = warps, g.scales = scales, g.chunk_steps = chunk_steps;
  const int64_t warps_per_scale = warps / scales, all_tiles = ceil_div(p.C, 8);
  const int64_t unit = std::max<int64_t>(1, 4 / warps_per_scale);  // slices are whole rows of 32 channels
  g.slices = static_cast<int>(all_tiles <= warps_per_scale * most_tiles
                                  ? 1
                                  : ceil_div(all_tiles, warps_per_scale * (most_tiles / unit * unit)));
  g.channel_tiles = static_cast<int>(ceil_div(ceil_div(all_tiles, g.slices), warps_per_scale));
  if (g.slices > 1) g.channel_tiles = static_cast<int>(ceil_div(g.channel_tiles, unit) * unit);
  g.pitch = static_cast<int>(row_chunks(warps_per_scale * g.channel_tiles * 8, bytes));
  gather_sizes(g, p, bytes, phases, shape.joint_tiles);
  const int64_t step_bytes = shape.joint_tiles * kTileBytes, gy_bytes = g.A_offset;
  const int64_t h_bytes = scales * g.frames * step_bytes * bytes;
  const int64_t x_bytes = aligned((g.frames * p.V + 1) * g.pitch * 16);
  const int64_t a_bytes = 2 * scales * g.chunk_steps * step_bytes;
  int64_t end = gy_bytes;
  const auto place = [&end](int64_t bytes) { return static_cast<int>((end += bytes) - bytes); };
  if (buffers >= 2) place(g.gy_bytes = static_cast<int>(gy_bytes));
  g.exchange_offset = h_bytes <= gy_bytes || buffers == 0 ? -1 : place(h_bytes);
  if (buffers == 0) g.x_offset = static_cast<int>(h_bytes), end = std::max(end, h_bytes + x_bytes);
  g.A_offset = place(a_bytes);
  if (buffers >= 1) g.x_offset = place(x_bytes);
  if (buffers >= 3) place(g.x_bytes = static_cast<int>(x_bytes));
  g.shared_bytes = static_cast<int>(end);
  const int64_t groups = ceil_div(p.K, scales) * ceil_div(p.O, kChannelChunk) * g.slices;
  g.splits = splits_of(groups, g.tiles, warps, g.shared_bytes, device);
  g.parts_bytes = g.splits * p.K * ceil_div(p.O, kChannelChunk) * kChannelChunk * g.slices * g.pitch * (64 / bytes);

  const int64_t n = shape.joint_tiles, chunks = ceil_div(g.set_steps, g.chunk_steps);
  const int64_t steps = joint_steps(n, static_cast<int>(bytes)) * g.frames;
  const Interval chunk = interval(warps * g.chunk_steps * 2 * scales * n, warps,
                                  warps * g.chunk_steps * (8 + 2 * n * scales) + scales * g.chunk_steps * n * 2);
  const Interval multiply =
      interval(warps * steps * 2 * g.channel_tiles, warps, warps * steps * (8 + 2 * g.channel_tiles));
  const int64_t gathering = chunks * chunk.clocks(), product = multiply.clocks();
  const auto not_hidden = [](int64_t bytes, int64_t behind) { return std::max<int64_t>(0, 600 + bytes / 40 - behind); };
  const int64_t loads = buffers == 3   ? not_hidden(gy_bytes + x_bytes, product)
                        : buffers == 2 ? not_hidden(gy_bytes, product) + not_hidden(x_bytes, gathering)
                        : buffers == 1 ? not_hidden(gy_bytes, 0) + not_hidden(x_bytes, gathering)
                                       : not_hidden(gy_bytes, 0) + not_hidden(x_bytes, 0);
  g.clocks = all_clocks(ceil_div(g.tiles, g.splits) * (gathering + product + loads), groups * g.splits, warps,
                        g.shared_bytes, device);
  return g;
}

inline OuterPlan adjacency_plan(const Problem& p, const Device& device, int64_t bytes, int tile, int window_groups,
                                int windows, int piece) {
  const OuterTile& shape = kOuterTiles[tile];
  const FramePhases phases = frame_phases(p);
  OuterPlan a{};
  a.tile = tile, a.warps = kMostWarps, a.window_groups = window_groups, a.windows = windows, a.piece = piece;
  const int64_t R = p.nodes(), row_warps = a.warps / window_groups, most_rows = row_warps * shape.row_tiles * 16;
  const int64_t most = std::min<int64_t>(p.K, most_rows / R);
  if (most < 1) return a;  // scales = 0: does not fit
  a.scales = static_cast<int>(ceil_div(p.K, ceil_div(p.K, most)));
  a.node_slices = static_cast<int>(ceil_div(ceil_div(R, 8), shape.node_tiles));
  a.slots = static_cast<int>((windows - 1) * phases.slot_step + p.window);
  a.piece = std::min(a.piece, a.slots);
  a.pitch = static_cast<int>(row_chunks(p.C, bytes));
  const int64_t row_bytes = kChannelChunk * bytes;
  a.gy_offset = static_cast<int>(aligned(a.piece * p.V * a.pitch * 16));
  a.z_offset = static_cast<int>(a.gy_offset + aligned(windows * R * row_bytes));
  a.weight_offset = static_cast<int>(a.z_offset + aligned(a.scales * a.slots * p.V * row_bytes));
  a.shared_bytes = static_cast<int>(a.weight_offset + a.scales * kChannelChunk * a.pitch * 16);
  a.window_tiles = static_cast<int>(ceil_div(ceil_div(p.windows(), phases.window_step), windows));
  a.tiles = p.N * std::min<int64_t>(phases.window_step, p.windows()) * a.window_tiles;
  const int64_t slices = ceil_div(p.O, kChannelChunk), groups = ceil_div(p.K, a.scales) * slices * a.node_slices;
  a.splits = splits_of(groups, a.tiles, a.warps, a.shared_bytes, device);
  a.parts = a.splits * slices * window_groups;
  a.parts_bytes = a.parts * p.K * R * ceil_div(R, 8) * 8 * 4;
  a.weight_bytes = p.K * slices * kChannelChunk * a.pitch * 16;

  const int64_t frames = std::min<int64_t>(windows * phases.slot_step, a.slots), k = a.pitch / 2;
  const int64_t row_tiles = ceil_div(a.piece * p.V, 16), pieces = ceil_div(frames, a.piece);
  const int64_t blocks_of_rows = ceil_div(row_tiles, shape.project_tiles);
  const int64_t units = ceil_div(blocks_of_rows * a.scales, 4) * 4;
  const Interval projection = interval(
      units * k * 4 * std::min<int64_t>(shape.project_tiles, row_tiles), a.warps,
      units * k * (4 * shape.project_tiles + 8) + a.scales * a.piece * p.V * bytes / 2 + a.piece * p.V * a.pitch / 8);
  const int64_t m = ceil_div(ceil_div(a.scales * R, 16), row_warps);
  const int64_t n = std::min<int64_t>(shape.node_tiles, ceil_div(R, 8)), turns = ceil_div(windows, window_groups);
  const Interval product = interval(a.warps * turns * bytes * m * n, a.warps,
                                    a.warps * turns * bytes * (4 * m + 2 * n) + windows * R * row_bytes / 128);
  const int64_t clocks = pieces * (projection.clocks() + 40) + product.clocks() + 300;
  a.clocks = all_clocks(ceil_div(a.tiles, a.splits) * clocks, groups * a.splits, a.warps, a.shared_bytes, device);
  return a;
}

}  // namespace detail

// `forced`: "plain" refuses the tensor cores; anything else is no word for a backward pass.
inline BackwardPlan plan_backward(const Problem& given, Type type, const Device& device,
                                  const std::string& forced = {}) {
  const Problem p = simplified(given);
  BackwardPlan best{};
  std::string why;
  const int64_t bytes = type == Type::kTf32 ? 4 : 2;
  if (type == Type::kFloat64)
    why = "float64 has no tensor-core path";
  else if (type == Type::kFloat32)
    why = "float32 runs in full precision";
  else if (device.arch < 80)
    why = "tensor cores for this need compute capability 8.0";
  else if (p.O % (16 / bytes) != 0)
    why = "O is not a multiple of " + std::to_string(16 / bytes);
  else if (p.V > 64)
    why = "V is over 64";
  else if (forced == "plain")
    why = "forced";
  best.input_refused = best.parameters_refused = why;
  if (!why.empty()) return best;

  best.as_forward.kernel = Kernel::kPlain;
  const auto consider = [&device](auto& plan, const auto& candidate) {
    if (!detail::fits(candidate.shared_bytes, device) || candidate.shared_bytes == 0) return;
    if (plan.shared_bytes == 0 || candidate.clocks < plan.clocks) plan = candidate;
  };
  int tile = 0;
  while (kGatherTiles[tile].joint_tiles * 8 < p.V) ++tile;
  for (int warps : {8, 4, 2, 1}) {  // the last two only where many joints leave no room for more
    const bool last = warps <= 2;
    if (last && bytes == 4) break;  // one or two leave tensor cores idle for longer than multiply-adds take
    for (int chunk_steps : {8, 4, 2}) {
      for (int team : {1, 2, 4}) {
        for (int scales = kGatherTiles[tile].scales; scales >= 1; --scales) {
          if (team > warps || (team > 1 && (team - 1) * scales >= p.K) || (last && best.grad_x.warps > warps)) continue;
          consider(best.grad_x, detail::input_plan(p, device, bytes, tile, warps, team, scales, chunk_steps));
        }
      }
      for (int scales = kGatherTiles[tile].weight_scales; scales >= 1; --scales) {
        for (int buffers : {0, 1, 2, 3}) {
          if (scales > warps || (last && best.grad_weight.warps > warps)) continue;
          consider(best.grad_weight,
                   detail::weight_plan(p, device, bytes, tile, warps, scales, chunk_steps, kWeightTiles, buffers));
        }
      }
    }
  }
  if (best.grad_weight.shared_bytes == 0) {  // with fewer channels of x at once, gathering once more for each slice
    for (int buffers : {0, 1})
      consider(best.grad_weight, detail::weight_plan(p, device, bytes, tile, 4, 1, 2, 2, buffers));
  }
  for (int outer = 0; outer < static_cast<int>(std::size(kOuterTiles)); ++outer) {
    for (int window_groups : {1, 2, 4, 8}) {
      for (int windows : {8, 4, 3, 2, 1}) {
        for (int piece : {8, 4, 2, 1}) {
          if (windows < window_groups) continue;
          consider(best.grad_A, detail::adjacency_plan(p, device, bytes, outer, window_groups, windows, piece));
        }
      }
    }
  }
  const std::string small = std::string("no tile ") + (bytes == 4 ? "of four warps " : "") + "fits into " +
                            std::to_string(device.shared_bytes) + " bytes of shared memory";
  if (best.grad_x.shared_bytes == 0) best.input_refused = "grad_x: " + small;
  if (best.grad_weight.shared_bytes == 0) best.parameters_refused = "grad_weight: " + small;
  if (best.grad_A.shared_bytes == 0) best.parameters_refused = "grad_A: " + small;
  if (p.window == 1 && p.stride == 1) {
    const ForwardPlan plan = plan_forward(transposed(p), type, device);
    if (plan.kernel == Kernel::kFrames && plan.clocks < best.grad_x.clocks) best.as_forward = plan;
  }
  best.input_workspace_bytes = std::max(best.grad_x.workspace_bytes(), best.as_forward.workspace_bytes);
  best.parameters_workspace_bytes = best.grad_A.workspace_bytes() + best.grad_weight.workspace_bytes();
  return best;
}

}  // namespace msg3d::ms_g3d::cuda
