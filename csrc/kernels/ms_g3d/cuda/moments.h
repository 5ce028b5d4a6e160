// How many values, their mean, and the sum of their squared deviations from it.
#pragma once

#include "../../simt/simt.h"

namespace msg3d::ms_g3d {

template <typename Acc>
struct Moments {
  Acc count, mean, squares;

  SIMT_DEVICE void add(const Moments& other) {
    if (other.count == Acc(0)) return;
    const Acc all = count + other.count, step = other.mean - mean, share = other.count / all;
    mean += step * share;
    squares += other.squares + step * step * count * share;
    count = all;
  }

  // Of the lane whose index differs by `lanes`.
  SIMT_DEVICE Moments of_lane_xor(int lanes) const {
    return {simt::shuffle_xor(count, lanes), simt::shuffle_xor(mean, lanes), simt::shuffle_xor(squares, lanes)};
  }
};

}  // namespace msg3d::ms_g3d
