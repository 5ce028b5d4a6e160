// Mean and variance of the channels of y over clips, windows and nodes, which a batch normalisation behind it takes:
// gathered by the forward pass while y is still in registers, so that nobody reads y for them.
//
// They are those of y as it is stored, rounded to its type: what is normalised with them, and what the gradient of that
// reads. Every block leaves mean and sum of squared deviations from it of its own rows; a second kernel merges them in
// a fixed order (Chan, Golub and LeVeque 1979: no difference of large sums), so results repeat bit for bit.
#pragma once

#include "../../simt/types.h"
#include "ms_g3d.h"

namespace msg3d::ms_g3d {

// How many rows (window, node) of y the block that leaves part i has. Units of `step` rows follow each other,
// `per_group` of them for every `rows` rows; the last one of a group has what is left.
struct PartRows {
  int units;  // of a part
  int all;    // units there are
  int per_group, step, rows;
  int values;  // that a row stands for

  SIMT_HOST_DEVICE int parts() const { return (all + units - 1) / units; }
  SIMT_HOST_DEVICE int before(int unit) const { return unit / per_group * rows + unit % per_group * step; }
  SIMT_HOST_DEVICE int count(int part) const {
    const int first = part * units, last = first + units < all ? first + units : all;
    return (before(last) - before(first)) * values;
  }
};

namespace cuda {

inline PartRows part_rows(const Problem& p, const ForwardPlan& plan) {
  const bool frames = plan.kernel == Kernel::kFrames;  // which are blocks' whatever clip they are of
  const int64_t groups = frames ? 1 : p.N, rows = frames ? p.N * p.T : p.windows();
  const int tiles = static_cast<int>(ceil_div(rows, plan.windows));
  return {
      1, static_cast<int>(groups * tiles), tiles, plan.windows, static_cast<int>(rows), static_cast<int>(p.nodes())};
}

}  // namespace cuda

namespace plain {

// Of parts (ceil(O / 4), rows.parts(), 4 channels, mean and squares), in float, for float64 in double.
inline int64_t moments_bytes(const PartRows& rows, int64_t O, cuda::Type type) {
  return ceil_div(O, 4) * rows.parts() * 8 * (type == cuda::Type::kFloat64 ? 8 : 4);
}

// statistics (2, O), of the type of the parts: means, then variances (the mean of squared deviations).
int merge_statistics(const PartRows& rows, int64_t O, cuda::Type type, const void* moments, void* statistics,
                     void* stream);

}  // namespace plain
}  // namespace msg3d::ms_g3d
