// The plain path: every pass of MS-G3D on the GPU by fused multiply-adds, for float32 and float64 and for whatever the
// tensor-core plan refuses, of any size. It sums in float (double for double) and needs 48 KB of shared memory.
//
// All passes aggregate first: a block holds H = A_k x of 64 rows and 32 (scale, channel) columns in shared memory and
// multiplies it on, so nothing of the size scales x windows x joints reaches global memory. Gradients of parameters are
// summed in two stages, parts of the windows, then the parts in a fixed order: results repeat bit for bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../../chunks.h"
#include "../../problem.h"
#include "../plan.h"
#include "../statistics.h"

namespace msg3d::ms_g3d::plain {

using cuda::Type;

constexpr int kThreads = 256;
constexpr int kRows = 64;           // of a tile: 16 quads, each of one window (or frame)
constexpr int kQuads = kRows / 4;   // a thread owns one quad of rows
constexpr int kColumns = 32;        // (scale, channel) columns of a tile: 16 pairs, each of one scale
constexpr int kEnoughBlocks = 512;  // parts are made until there are so many blocks

inline int64_t accumulator_bytes(Type type) { return type == Type::kFloat64 ? 8 : 4; }

// How the columns (scale, channel) are cut into tiles of 16 pairs: few channels share a tile with other scales.
struct ColumnTiles {
  int pairs;   // of channels in a scale
  int scales;  // of a tile
  int count;   // of tiles
};

inline ColumnTiles column_tiles(int64_t K, int64_t C) {
  const int pairs = static_cast<int>(ceil_div(C, 2));
  if (pairs > 8) return {pairs, 1, static_cast<int>(K * ceil_div(pairs, 16))};
  const int scales = 16 / pairs;
  return {pairs, scales, static_cast<int>(ceil_div(K, scales))};
}

inline PartRows part_rows(const Problem& p) {
  const int nodes = static_cast<int>(p.nodes()), quads = static_cast<int>(ceil_div(nodes, 4));
  return {kQuads, static_cast<int>(p.N * p.windows() * quads), quads, 4, nodes, 1};
}

// Grids and workspace of the backward pass for the parameters.
struct ParameterPlan {
  int64_t weight_parts, adjacency_parts, bias_parts;  // 0: not wanted
  int adjacency_rows;                                 // of a tile of grad_A: 32 or 64
  int64_t windows_at_once;                            // of a tile of grad_A
  int64_t weight_width;                               // output channels of a tile of grad_weight
  int64_t workspace_bytes;
};

inline int64_t output_width(int64_t channels) { return channels <= 32 ? 32 : 96; }

inline ParameterPlan plan_parameters(const Problem& p, Type type, bool need_A, bool need_weight, bool need_bias) {
  const auto parts = [](int64_t blocks, int64_t steps) {
    return std::clamp<int64_t>(kEnoughBlocks / std::max<int64_t>(blocks, 1), 1, std::max<int64_t>(steps, 1));
  };
  ParameterPlan plan{};
  const int64_t windows = p.N * p.windows(), R = p.nodes();
  if (need_weight) {
    plan.weight_width = type == Type::kFloat64 ? 32 : output_width(p.O);
    const int64_t tiles = ceil_div(windows * ceil_div(R, 4), kQuads);
    plan.weight_parts = parts(column_tiles(p.K, p.C).count * ceil_div(p.O, plan.weight_width), tiles);
  }
  plan.adjacency_rows = R <= 32 ? 32 : 64;
  plan.windows_at_once = kRows / plan.adjacency_rows;
  if (need_A) {
    const int64_t tiles = ceil_div(R, plan.adjacency_rows);
    plan.adjacency_parts = plan.windows_at_once * parts(p.K * tiles * tiles, ceil_div(windows, plan.windows_at_once));
  }
  if (need_bias) plan.bias_parts = parts(ceil_div(p.O, 32), ceil_div(windows * R, 64));
  plan.workspace_bytes = accumulator_bytes(type) * (plan.weight_parts * p.O * p.K * p.C +
                                                    plan.adjacency_parts * p.K * R * R + plan.bias_parts * p.O);
  return plan;
}

// Device pointers; A and weight with their strides in elements, the others dense in memory as problem.h says.
struct Pointers {
  const void* x;
  const void* A;
  const void* weight;
  const void* bias;  // null: none
  const void* gy;    // null in the forward pass
  int64_t A_stride[3];
  int64_t weight_stride[3];
};

// Each returns CUDA's error code of its launches, 0 if there is none; nothing waits for the device.
// `moments`: parts of y's statistics (statistics.h), without relu; null: not wanted.
int forward(const Problem& p, Type type, const Pointers& in, bool relu, void* y, void* stream, void* moments = nullptr);
int backward_input(const Problem& p, Type type, const Pointers& in, void* grad_x, void* stream);
// Outputs that are null are not computed; workspace holds plan.workspace_bytes, of any content.
int backward_parameters(const Problem& p, Type type, const Pointers& in, const ParameterPlan& plan, void* workspace,
                        void* grad_A, void* grad_weight, void* grad_bias, void* stream);

}  // namespace msg3d::ms_g3d::plain
