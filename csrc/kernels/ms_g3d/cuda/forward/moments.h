// The epilogue that gathers statistics of y's channels (statistics.h) from a warp's accumulators: an exact mean of the
// warp's rows first, then the squares of what is left of them, both in registers. Warps of the same channels are merged
// through shared memory, and a block leaves one part.
#pragma once

#include "../moments.h"
#include "forward.h"

namespace msg3d::ms_g3d::cuda {

template <typename T>
SIMT_DEVICE void round_pair(float& low, float& high) {
  if constexpr (!kIsTf32<T>) {  // whose y is float32
    const uint32_t pair = simt::pack_pair<T>(low, high);
    low = simt::pair_low<T>(pair), high = simt::pair_high<T>(pair);
  }
}

SIMT_DEVICE int at_most(int most, int left) { return left < 0 ? 0 : left < most ? left : most; }

SIMT_DEVICE float sum_of_quad(float value) {
  value += simt::shuffle_xor(value, 1);
  return value + simt::shuffle_xor(value, 2);
}

// Of two neighbouring channels.
struct PairOfMoments {
  float mean[2], squares[2];
};

// Adds the bias to the accumulators y[..][m] of channels o, o + 1, rounds them to T as they will be stored, and returns
// the moments of those `count` of them for which `real(outer index, column)` holds; all others become zero.
template <typename T, int kOuter, int kTiles, typename Real>
SIMT_DEVICE PairOfMoments moments_of(const ForwardCall& call, float (&y)[kOuter][3][kTiles][4], int m, int o, int count,
                                     const Real& real) {
  const int column = simt::opaque(simt::lane_index()) % 4 * 2;
  const T* const bias = static_cast<const T*>(call.bias);
  const bool biased = bias && simt::opaque(o) < call.O;
  const float bias0 = biased ? simt::to_float(simt::load_readonly(bias + o)) : 0.f;
  const float bias1 = biased ? simt::to_float(simt::load_readonly(bias + o + 1)) : 0.f;
  PairOfMoments of{};
#pragma unroll
  for (int i = 0; i < kOuter; ++i) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float (&d)[4] = y[i][m][n];
      const bool first = real(i, column + n * 8), second = real(i, column + n * 8 + 1);
      d[0] = first ? d[0] + bias0 : 0.f, d[1] = second ? d[1] + bias0 : 0.f;
      d[2] = first ? d[2] + bias1 : 0.f, d[3] = second ? d[3] + bias1 : 0.f;
      round_pair<T>(d[0], d[1]), round_pair<T>(d[2], d[3]);
      of.mean[0] += d[0] + d[1], of.mean[1] += d[2] + d[3];
    }
  }
  const float share = count > 0 ? 1.f / static_cast<float>(count) : 0.f;
  of.mean[0] = sum_of_quad(of.mean[0]) * share, of.mean[1] = sum_of_quad(of.mean[1]) * share;
  const int again = simt::opaque(column);  // no register is left to keep what is real
#pragma unroll
  for (int i = 0; i < kOuter; ++i) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float (&d)[4] = y[i][m][n];
      const bool first = real(i, again + n * 8), second = real(i, again + n * 8 + 1);
#pragma unroll
      for (int channel = 0; channel < 2; ++channel) {
        const float low = first ? d[2 * channel] - of.mean[channel] : 0.f;
        const float high = second ? d[2 * channel + 1] - of.mean[channel] : 0.f;
        of.squares[channel] += low * low + high * high;
      }
    }
  }
  of.squares[0] = sum_of_quad(of.squares[0]), of.squares[1] = sum_of_quad(of.squares[1]);
  return of;
}

// Of `rows` rows so far, and of `count` more.
SIMT_DEVICE void merge(PairOfMoments& of, int rows, const PairOfMoments& more, int count) {
#pragma unroll
  for (int channel = 0; channel < 2; ++channel) {
    Moments<float> sum{static_cast<float>(rows), of.mean[channel], of.squares[channel]};
    sum.add({static_cast<float>(count), more.mean[channel], more.squares[channel]});
    of.mean[channel] = sum.mean, of.squares[channel] = sum.squares;
  }
}

// The calling warp's 48 channels of moments are kMomentBytes at `scratch` + its index * kMomentBytes.
SIMT_DEVICE void keep_moments(int scratch, int m, const PairOfMoments& of) {
  const int lane = simt::opaque(simt::lane_index());
  if (lane % 4 == 0) {
    const int at = scratch + simt::warp_index() * kMomentBytes + (16 * m + lane / 2) * 8;
    simt::store_vector(simt::shared_memory<unsigned char>(at),
                       simt::Bits128{simt::float_bits(of.mean[0]), simt::float_bits(of.squares[0]),
                                     simt::float_bits(of.mean[1]), simt::float_bits(of.squares[1])});
  }
}

// Behind all warps' keep_moments: the block's part of `slice`; a warp has had `rows_of(warp)` rows.
template <typename RowsOf>
SIMT_DEVICE void leave_part(const ForwardCall& call, int slice, int scratch, const RowsOf& rows_of) {
  simt::block_barrier();
  const int groups = simt::opaque(call.groups), warps = simt::opaque(call.warps);  // nothing is computed far above
#pragma unroll 1
  for (int c = simt::thread_index(); c < groups * kGroup; c += warps * 32) {
    const int o = slice * groups * kGroup + c;
    Moments<float> sum{0.f, 0.f, 0.f};
#pragma unroll 1
    for (int warp = c / kGroup; warp < warps; warp += groups) {
      const auto* from = simt::shared_memory<unsigned char>(scratch + warp * kMomentBytes + c % kGroup * 8);
      const simt::Bits64 words = simt::load_vector<simt::Bits64>(from);
      sum.add({static_cast<float>(rows_of(warp)), simt::bits_float(words.x), simt::bits_float(words.y)});
    }
    if (o < call.O) {
      float* const to =
          call.moments + ((static_cast<int64_t>(o / 4) * simt::grid_x() + simt::block_x()) * 4 + o % 4) * 2;
      simt::store_vector(to, simt::Bits64{simt::float_bits(sum.mean), simt::float_bits(sum.squares)});
    }
  }
}

// Keeps the moments of a warp's part of y, `rows` rows of the channels `group` of `slice`, which has its bias from here
// on. `scratch`: shared memory that is free once all warps have come here.
template <typename T, int kOuter, int kTiles, typename Real>
SIMT_DEVICE void gather_moments(const ForwardCall& call, float (&y)[kOuter][3][kTiles][4], int slice, int group,
                                int scratch, int rows, const Real& real) {
  const int o = (slice * call.groups + group) * kGroup + simt::opaque(simt::lane_index()) / 4 * 2;
  simt::block_barrier();
#pragma unroll
  for (int m = 0; m < 3; ++m) keep_moments(scratch, m, moments_of<T>(call, y, m, o + 16 * m, rows, real));
}

}  // namespace msg3d::ms_g3d::cuda
