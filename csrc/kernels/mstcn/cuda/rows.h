// What both kernels of the temporal branches share: which frames of h a row of `out` reads, and the blocks behind the
// last branch, which take the max-pool and the channels that only the ReLU is for. A block has some rows (clip, frame,
// joint) of one branch. A row reads frames of its own clip and joint only, never another's times zero: what is not a
// number stays where it is.
#pragma once

#include <type_traits>

#include "../../chunks.h"
#include "../../simt/simt.h"
#include "temporal.h"

namespace msg3d::mstcn::cuda {
namespace temporal_kernels {

using namespace simt;

struct TemporalCall {
  const void* h;
  const void* weight;
  const void* scale;
  const void *h_bias, *out_bias;  // null: h and out have them
  void* out;
  int rows, T, V, windows;
  int width, O;
  int branches, taps, stride;
  int dilations[kMostBranches];
  bool relu;
};

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
SIMT_DEVICE Accumulator<T> widen(T value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return to_float(value);
  }
}
template <typename T>
SIMT_DEVICE T narrow(Accumulator<T> value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return from_float<T>(value);
  }
}
template <typename Acc>
SIMT_DEVICE Acc rectified(Acc value, bool relu) {
  return relu && value < Acc(0) ? Acc(0) : value;  // what is not a number stays
}

// Channel c of h or out as it stands above the sums: with its bias, of h with its ReLU.
template <typename T>
SIMT_DEVICE Accumulator<T> entry(const TemporalCall& call, T value, int c) {
  if (!call.h_bias) return widen<T>(value);
  return rectified(widen<T>(value) + widen<T>(load_readonly(static_cast<const T*>(call.h_bias) + c)), true);
}
template <typename T>
SIMT_DEVICE Accumulator<T> summand(const TemporalCall& call, T value, int c) {
  if (!call.out_bias) return widen<T>(value);
  return widen<T>(value) + widen<T>(load_readonly(static_cast<const T*>(call.out_bias) + c));
}

// Where a row of `out` finds its frames: the frame of its middle tap, and the element of h where that row starts.
struct Source {
  int frame;
  int64_t at;
  bool real;
};

SIMT_DEVICE Source source_of(const TemporalCall& call, int row) {
  const bool real = row < call.rows;
  const int window = real ? row / call.V : 0, frame = window % call.windows * call.stride;
  const int64_t source = (static_cast<int64_t>(window / call.windows) * call.T + frame) * call.V + row % call.V;
  return {frame, real ? source * (call.branches + 1) * call.width : 0, real};
}

// Without an index into the parameters, which would put them into local memory.
SIMT_DEVICE int dilation_of(const TemporalCall& call, int branch) {
  int dilation = 0;
#pragma unroll
  for (int b = 0; b < kMostBranches; ++b) dilation = b == branch ? call.dilations[b] : dilation;
  return dilation;
}

SIMT_DEVICE bool inside(const TemporalCall& call, const Source& source, int shift) {
  return source.real && source.frame + shift >= 0 && source.frame + shift < call.T;
}

// One value, or four of 16 bits in one load.
template <typename T, int kCount>
SIMT_DEVICE void load_some(T (&values)[kCount], const T* from) {
  static_assert(kCount == 1 || (kCount == 4 && sizeof(T) == 2));
  if constexpr (kCount == 4) {
    const Bits64 words = load_vector<Bits64>(from);
    memcpy(values, &words, sizeof(words));
  } else {
    values[0] = *from;
  }
}

// The max-pool of kCount neighbouring channels a thread, and of all others the ReLU.
template <typename T, int kThreads, int kRows, int kCount>
SIMT_DEVICE void pool(const TemporalCall& call) {
  using Acc = Accumulator<T>;
  const int before = call.branches * call.width;
  const int units = (call.relu || call.out_bias ? call.O - before : call.width) / kCount;
  const int64_t frame_step = static_cast<int64_t>(call.V) * (call.branches + 1) * call.width;
#pragma unroll 1
  for (int i = thread_index(); i < kRows * units; i += kThreads) {
    const int row = block_x() * kRows + i / units, c = i % units * kCount;
    if (row >= call.rows) continue;
    T* const to = static_cast<T*>(call.out) + static_cast<int64_t>(row) * call.O + before + c;
    T old[kCount];
    load_some(old, to);
    if (c < call.width) {
      const Source source = source_of(call, row);
      const T* const from = static_cast<const T*>(call.h) + source.at + before + c;
      T values[kCount], scale[kCount];
      Acc most[kCount];
      load_some(values, from), load_some(scale, static_cast<const T*>(call.scale) + c);
#pragma unroll
      for (int e = 0; e < kCount; ++e) most[e] = entry<T>(call, values[e], before + c + e);
#pragma unroll
      for (int shift = -1; shift <= 1; shift += 2) {
        if (!inside(call, source, shift)) continue;
        load_some(values, from + shift * frame_step);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          const Acc other = entry<T>(call, values[e], before + c + e);
          most[e] = other > most[e] || other != other ? other : most[e];
        }
      }
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const Acc added = summand<T>(call, old[e], before + c + e) + widen<T>(scale[e]) * most[e];
        old[e] = narrow<T>(rectified(added, call.relu));
      }
    } else {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        old[e] = narrow<T>(rectified(summand<T>(call, old[e], before + c + e), call.relu));
      }
    }
    if constexpr (kCount == 4) {
      Bits64 words;
      memcpy(&words, old, sizeof(words));
      store_vector(to, words);
    } else {
      *to = old[0];
    }
  }
}

}  // namespace temporal_kernels

// The multiply-adds' launch, for any sizes and types.
int temporal_by_multiply_adds(const temporal_kernels::TemporalCall& call, Type type, simt::Stream stream);

}  // namespace msg3d::mstcn::cuda
