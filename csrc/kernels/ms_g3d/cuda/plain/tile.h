// What the kernels of the plain path share: which row of the source a row of the target takes a column from, and the
// tile H[row, (k,c)] = sum_j A_k[row, j] source[j, c] that a block of 256 threads makes.
//
// Rows come in groups: the nodes of a window (forward), the joints of a frame (backward); groups are padded to quads of
// rows, and 16 quads are a tile, whatever groups they are of. Thread (ty, tx) owns quad ty and columns 2*tx, 2*tx + 1.
// A row reads frames of its own group only, never another's times zero: what is not a number stays where it is.
#pragma once

#include "../../../simt/simt.h"
#include "plain.h"

namespace msg3d::ms_g3d::plain {

using namespace simt;

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <typename Acc, typename T>
SIMT_DEVICE Acc widen(T value) {
  return to_float(value);
}
template <>
SIMT_DEVICE double widen<double, double>(double value) {
  return value;
}
template <typename T>
SIMT_DEVICE T narrow(float value) {
  return from_float<T>(value);
}
template <typename T>
SIMT_DEVICE T narrow(double value) {
  return value;
}

// Neighbours in shared memory; those of float are moved at once.
SIMT_DEVICE void load4(const float* from, float (&to)[4]) {
  const Bits128 v = load_vector<Bits128>(from);
  to[0] = bits_float(v.x), to[1] = bits_float(v.y), to[2] = bits_float(v.z), to[3] = bits_float(v.w);
}
SIMT_DEVICE void load2(const float* from, float (&to)[2]) {
  const Bits64 v = load_vector<Bits64>(from);
  to[0] = bits_float(v.x), to[1] = bits_float(v.y);
}
SIMT_DEVICE void load4(const double* from, double (&to)[4]) {
  to[0] = from[0], to[1] = from[1], to[2] = from[2], to[3] = from[3];
}
SIMT_DEVICE void load2(const double* from, double (&to)[2]) { to[0] = from[0], to[1] = from[1]; }

constexpr int kSharedElements = 3584;  // of the source in a step
constexpr int kPitch = kRows + 4;

// A times a source, seen from the target: forward x -> windows, backward gy -> frames.
struct Gather {
  int groups, per_clip;  // windows or frames: of all clips, of one
  int rows, quads;       // of a group
  int columns;           // that a row sums over
  int K, depth;          // scales; channels of the source
  int window, stride, dilation, padding;
  int V, R;
  int frames;  // frames or windows of a clip of the source
  int64_t A_k, A_row, A_column;
};

inline Gather forward_gather(const Problem& p, const int64_t (&A)[3]) {
  const int R = static_cast<int>(p.nodes());
  return {static_cast<int>(p.N * p.windows()),
          static_cast<int>(p.windows()),
          R,
          static_cast<int>(ceil_div(R, 4)),
          R,
          static_cast<int>(p.K),
          static_cast<int>(p.C),
          static_cast<int>(p.window),
          static_cast<int>(p.stride),
          static_cast<int>(p.dilation),
          static_cast<int>(p.padding()),
          static_cast<int>(p.V),
          R,
          static_cast<int>(p.T),
          A[0],
          A[1],
          A[2]};
}

inline Gather backward_gather(const Problem& p, const int64_t (&A)[3]) {
  Gather g = forward_gather(p, A);
  g.groups = static_cast<int>(p.N * p.T), g.per_clip = static_cast<int>(p.T);
  g.rows = g.V, g.quads = static_cast<int>(ceil_div(p.V, 4));
  g.columns = g.window * g.R;
  g.depth = static_cast<int>(p.O);
  g.frames = static_cast<int>(p.windows());
  return g;
}

// The row of the source, (clip, frame, joint) or (clip, window, node) numbered through, or -1: zero.
template <bool kBackward>
SIMT_DEVICE int64_t source_row(const Gather& g, int group, int column) {
  const int clip = group / g.per_clip, at = group % g.per_clip;
  if (kBackward) {
    const int slot = column / g.R, ahead = at + g.padding - slot * g.dilation;
    if (ahead < 0 || ahead % g.stride != 0 || ahead / g.stride >= g.frames) return -1;
    return (static_cast<int64_t>(clip) * g.frames + ahead / g.stride) * g.R + column % g.R;
  }
  const int frame = at * g.stride + column / g.V * g.dilation - g.padding;
  if (frame < 0 || frame >= g.frames) return -1;
  return (static_cast<int64_t>(clip) * g.frames + frame) * g.V + column % g.V;
}

template <bool kBackward>
SIMT_DEVICE int64_t coefficient_offset(const Gather& g, int k, int row, int column) {
  if (kBackward) {
    const int slot = column / g.R;
    return k * g.A_k + column % g.R * g.A_row + (static_cast<int64_t>(slot) * g.V + row) * g.A_column;
  }
  return k * g.A_k + row * g.A_row + column * g.A_column;
}

inline int row_tiles(const Gather& g) { return static_cast<int>(ceil_div(g.groups * g.quads, kQuads)); }

// Calls run with a zero of the storage type.
template <typename Run>
int with_type(Type type, const Run& run) {
  switch (type) {
    case Type::kFloat32:
      return run(float());
    case Type::kFloat64:
      return run(double());
    case Type::kFloat16:
      return run(half());
    default:
      return run(bf16());
  }
}

// The shared memory of one step: columns j of the source, and A's.
template <typename Acc>
struct StepSizes {
  int columns;   // j that fit
  int channels;  // of the source that the tile of columns needs, padded to pairs
  static constexpr int kCoefficients = sizeof(Acc) == 8 ? 16 : 32;  // j times scales
  static constexpr int kSource = sizeof(Acc) == 8 ? kSharedElements / 2 : kSharedElements;
  static constexpr int kElements = kCoefficients * kRows + kSource;
};

template <typename Acc>
inline StepSizes<Acc> step_sizes(const Gather& g, const ColumnTiles& tiles) {
  using Sizes = StepSizes<Acc>;
  const int channels = tiles.scales == 1 ? kColumns : 2 * tiles.pairs;
  const int touched = std::min((kQuads - 2 + g.quads) / g.quads + 1, kQuads);  // groups of a tile, at most
  const int fitting = Sizes::kSource / (touched * channels);
  return {std::max(1, std::min(Sizes::kCoefficients / tiles.scales, fitting)), channels};
}

// A thread's place in a tile of rows and of columns.
struct Place {
  int group, row;           // of its quad; group -1 beyond the last
  int first_group, groups;  // of the tile
};

SIMT_DEVICE Place place_of(const Gather& g, int tile, int quad_of_tile) {
  const int first = tile * kQuads, quads = g.groups * g.quads, quad = first + quad_of_tile;
  const int first_group = first / g.quads, last = (first + kQuads < quads ? first + kQuads : quads) - 1;
  Place place{-1, 0, first_group, last / g.quads - first_group + 1};
  if (quad < quads) place.group = quad / g.quads, place.row = quad % g.quads * 4;
  return place;
}

// h[q][i] = H[quad row q, column 2*tx + i]. `memory` holds StepSizes::kElements; it is free again after the next
// barrier.
template <typename T, bool kBackward, typename Acc>
SIMT_DEVICE void aggregate(const Gather& g, const ColumnTiles& tiles, const StepSizes<Acc>& step,
                           const T* __restrict__ source, const T* __restrict__ A, const Place& place, int tile,
                           int column_tile, Acc* memory, Acc (&h)[4][2]) {
  const int tid = thread_index(), tx = tid % 16, ty = tid / 16;
  Acc* const coefficients = memory;                                  // (scale, j, row)
  Acc* const from = memory + StepSizes<Acc>::kCoefficients * kRows;  // (group, j, channel)
  const bool one_scale = tiles.scales == 1;
  const int tiles_of_scale = one_scale ? (tiles.pairs + 15) / 16 : 1;
  const int first_k = one_scale ? column_tile / tiles_of_scale : column_tile * tiles.scales;
  const int first_c = one_scale ? column_tile % tiles_of_scale * kColumns : 0;
  const int scales = one_scale ? 1 : (tiles.scales < g.K - first_k ? tiles.scales : g.K - first_k);
  // Threads of pairs beyond the last compute on what is there and are never read.
  const int my_scale = one_scale ? 0 : (tx / tiles.pairs < scales ? tx / tiles.pairs : 0);
  const int my_channel = one_scale ? 2 * tx : 2 * (tx % tiles.pairs);
  const int my_group = place.group < 0 ? 0 : place.group - place.first_group;

  const Place staged = place_of(g, tile, tid % kRows / 4);  // whose A this thread loads
  const int staged_row = staged.row + tid % 4;
  const bool staged_real = staged.group >= 0 && staged_row < g.rows;
#pragma unroll
  for (int q = 0; q < 4; ++q) h[q][0] = h[q][1] = Acc(0);

#pragma unroll 1
  for (int first = 0; first < g.columns; first += step.columns) {
    const int count = step.columns < g.columns - first ? step.columns : g.columns - first;
    block_barrier();
#pragma unroll 1
    for (int i = tid / kRows; i < scales * count; i += kThreads / kRows) {
      const int scale = i / count, j = i % count;
      Acc value = Acc(0);
      if (staged_real) value = widen<Acc>(A[coefficient_offset<kBackward>(g, first_k + scale, staged_row, first + j)]);
      coefficients[(scale * count + j) * kRows + tid % kRows] = value;
    }
#pragma unroll 1
    for (int i = tid; i < place.groups * count * step.channels; i += kThreads) {
      const int c = i % step.channels, j = i / step.channels % count, group = i / step.channels / count;
      Acc value = Acc(0);
      if (first_c + c < g.depth) {
        const int64_t row = source_row<kBackward>(g, place.first_group + group, first + j);
        if (row >= 0) value = widen<Acc>(source[row * g.depth + first_c + c]);
      }
      from[i] = value;
    }
    block_barrier();
    const Acc* a = coefficients + my_scale * count * kRows + ty * 4;
    const Acc* b = from + my_group * count * step.channels + my_channel;
#pragma unroll 4
    for (int j = 0; j < count; ++j, a += kRows, b += step.channels) {
      Acc left[4], right[2];
      load4(a, left), load2(b, right);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        h[q][0] += left[q] * right[0];
        h[q][1] += left[q] * right[1];
      }
    }
  }
}

// The scale and channel of a column of a tile, and whether there is one.
struct Column {
  int k, c;
  bool real;
};

SIMT_DEVICE Column column_of(const ColumnTiles& tiles, int K, int depth, int column_tile, int column) {
  Column found;
  if (tiles.scales == 1) {
    const int tiles_of_scale = (tiles.pairs + 15) / 16;
    found.k = column_tile / tiles_of_scale;
    found.c = column_tile % tiles_of_scale * kColumns + column;
    found.real = found.c < depth;
  } else {
    const int pair = column / 2;
    found.k = column_tile * tiles.scales + pair / tiles.pairs;
    found.c = 2 * (pair % tiles.pairs) + column % 2;
    found.real = pair / tiles.pairs < tiles.scales && found.k < K && found.c < depth;
  }
  return found;
}

}  // namespace msg3d::ms_g3d::plain
