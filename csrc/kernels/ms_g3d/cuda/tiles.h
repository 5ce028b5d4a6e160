// The tiles that the kernels of the forward pass have, and what a plan of one says.
#pragma once

#include <cstdint>
#include <string>

namespace msg3d::ms_g3d::cuda {

// kTf32: float32 whose products may take ten bits of a mantissa.
enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16, kTf32 };

struct Device {
  int arch;             // 80, 90, ...: compute capability times ten
  int multiprocessors;  // SMs
  int shared_bytes;     // that one block may ask for: 99, 163 or 227 KB
};

enum class Kernel { kPlain, kFrames, kWindows, kFewChannels };

constexpr int kGroup = 48;                // output channels of a warp: three m16 tiles
constexpr int kColumnStep = 24;           // output channels of a projection unit of the windows kernel
constexpr int kFewColumns = 24;           // windows times channels of the kernel for few input channels
constexpr int kCollapseColumns = 48;      // the same with the collapse behind it
constexpr int kCollapseTiles = 8;         // of eight rows of its output that a warp makes behind the windows kernel
constexpr int kFewOutputs = 96;           // output channels of that collapse which a warp makes at once
constexpr int kMostWarps = 8;             // of a block: leaves 255 registers to a thread
constexpr int kMostSets = 4;              // of packs of frames, of a block
constexpr int kStepBytes = 32;            // of a row, that one product sums over: 16 values of 16 bits, 8 of tf32
constexpr int kFragmentBytes = 128;       // one register of a warp: an 8 x 8 matrix of 16-bit values
constexpr int kMomentBytes = kGroup * 8;  // of a warp's channels: mean and squared deviations, see statistics.h
constexpr int kSharedReserve = 1024;      // what the system takes of an SM's shared memory for each block

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

// Destination nodes of one warp in tiles of eight, its windows, and the m16 tiles of rows for which it has registers
// left in projection units of 48 channels; units of 32 rows and 24 channels always fit. windows.cu instantiates them.
struct WindowTile {
  const char* name;
  int node_tiles, windows, wide_tiles;
};
constexpr WindowTile kWindowTiles[] = {
    {"48 nodes", 6, 1, 3},  {"56 nodes", 7, 1, 3},  {"56 nodes, 2 windows", 7, 2, 0}, {"64 nodes", 8, 1, 3},
    {"80 nodes", 10, 1, 2}, {"88 nodes", 11, 1, 2}, {"128 nodes", 16, 1, 0},
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
  int weight_steps;      // of a weight chunk
  int weight_columns;    // windows: of 24 output channels of a weight chunk
  int adjacency_steps;   // windows: of a chunk of A
  int unit_tiles;        // windows: m16 tiles of rows of a projection unit
  bool wide_units;       // windows: projection units are 48 channels wide instead of 24
  int slices;            // of all output channels
  int slices_per_block;  // that a block computes one after the other while it keeps x
  int out_channels;      // of the collapse behind it; 0: none
  int collapse_groups;   // windows: of 48 of them that a block makes at once
  int collapse_tiles;    // windows: of eight rows of them that a warp makes
  int slices_at_once;    // windows: that the collapse sums up in registers; all or one
  int64_t blocks;

  // Shared memory: x from its start on, then Z (or H), W, A. The collapse keeps y of all slices but the last from
  // kept_at on, and lays y of the last, and its weights, over what it can.
  int z_at, weight_at, adjacency_at, y_at, kept_at, kept_bytes, stage_at, shared_bytes;
  int weight_chunk_bytes;     // frames: a weight chunk; windows: of it 24 channels
  int adjacency_chunk_bytes;  // windows: a chunk of A for one part
  int adjacency_part_bytes;   // A_k for one part
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

}  // namespace msg3d::ms_g3d::cuda
