// The plain path's forward pass and its backward pass for the input, which are one kernel:
//
//     y[window, (w,v), o]   = bias[o] + sum_(k,c) weight[o,k,c] (A_k x)[window, (w,v), c]
//     grad_x[frame, u, c]   =           sum_(k,o) weight[o,k,c] (A_k^T gy)[frame, u, o]
//
// A block makes 64 rows (tile.h) of `kWidth` output channels: for each tile of (scale, channel) columns it aggregates
// H (64 x 32) into shared memory and adds H times that part of the weight to its registers. Thread (ty, tx) owns 4 rows
// and channels 2*tx + {0, 1} + 32*i.
#include "../moments.h"
#include "tile.h"

namespace msg3d::ms_g3d::plain {

template <typename T>
struct GatherCall {
  Gather gather;
  ColumnTiles tiles;
  StepSizes<typename Accumulator<T>::type> step;
  const T* source;
  const T* A;
  const T* weight;
  const T* bias;
  T* target;
  int width;                                       // output channels
  int64_t weight_target, weight_k, weight_source;  // strides
  bool relu;
  typename Accumulator<T>::type* moments;  // parts of y's statistics; null: not wanted
};

template <typename Acc, int kWidth>
constexpr int gather_shared_bytes() {
  const int step = StepSizes<Acc>::kElements, weight = kColumns * kWidth;
  return (kColumns * kPitch + (step > weight ? step : weight)) * static_cast<int>(sizeof(Acc));
}

// A thread's values as they will be stored: moments of the block's rows, for each of its channels, into their part.
// `memory` holds kThreads/32 * (2*kWidth + 1) sums.
template <typename T, int kWidth, typename Acc>
SIMT_DEVICE void gather_statistics(const GatherCall<T>& call, const Acc (&value)[4][kWidth / 16], int rows, int first_o,
                                   Acc* memory) {
  constexpr int kWarps = kThreads / 32;
  const int tid = thread_index(), tx = tid % 16, warp = warp_index();
  Acc* const counts = memory + kWarps * kWidth * 2;
  block_barrier();  // nobody reads H and the weight any more
#pragma unroll
  for (int i = 0; i < kWidth / 16; ++i) {
    Moments<Acc> of{Acc(rows), Acc(0), Acc(0)};
#pragma unroll
    for (int q = 0; q < 4; ++q) of.mean += q < rows ? value[q][i] : Acc(0);
    of.mean /= Acc(rows > 0 ? rows : 1);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const Acc apart = q < rows ? value[q][i] - of.mean : Acc(0);
      of.squares += apart * apart;
    }
    of.add(of.of_lane_xor(16));  // the other four rows of the warp
    if (lane_index() < 16) {
      Acc* const to = memory + (warp * kWidth + 2 * tx + 32 * (i / 2) + i % 2) * 2;
      to[0] = of.mean, to[1] = of.squares;
      if (i == 0 && tx == 0) counts[warp] = of.count;
    }
  }
  block_barrier();
  if (tid < kWidth && first_o + tid < call.width) {
    Moments<Acc> sum{Acc(0), Acc(0), Acc(0)};
#pragma unroll 1
    for (int from = 0; from < kWarps; ++from) {
      const Acc* const of = memory + (from * kWidth + tid) * 2;
      sum.add({counts[from], of[0], of[1]});
    }
    const int o = first_o + tid;
    Acc* const to = call.moments + ((static_cast<int64_t>(o / 4) * grid_x() + block_x()) * 4 + o % 4) * 2;
    to[0] = sum.mean, to[1] = sum.squares;
  }
}

template <typename T, int kWidth, bool kBackward>
SIMT_KERNEL(kThreads, sizeof(T) == 8 ? 1 : 2)
void gather_kernel(GatherCall<T> call) {
  using Acc = typename Accumulator<T>::type;
  constexpr int kPairs = kWidth / 32;  // of output channels of a thread
  const Gather& g = call.gather;
  Acc* const H = shared_memory<Acc>();        // (column, row)
  Acc* const memory = H + kColumns * kPitch;  // a step of the aggregation, then the weight
  const int tid = thread_index(), tx = tid % 16, ty = tid / 16;
  const int tile = block_x();
  const int first_o = block_y() * kWidth;
  const Place place = place_of(g, tile, ty);

  Acc sum[4][2 * kPairs];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) sum[q][i] = Acc(0);
  }
#pragma unroll 1
  for (int t = 0; t < call.tiles.count; ++t) {
    Acc h[4][2];
    aggregate<T, kBackward, Acc>(g, call.tiles, call.step, call.source, call.A, place, tile, t, memory, h);
    block_barrier();  // the last step has been read, and so has H of the tile before
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int q = 0; q < 4; ++q) H[(2 * tx + i) * kPitch + ty * 4 + q] = h[q][i];
    }
#pragma unroll 1
    for (int i = tid; i < kColumns * kWidth; i += kThreads) {
      const int column = i % kColumns, o = i / kColumns;
      const Column at = column_of(call.tiles, g.K, g.depth, t, column);
      Acc value = Acc(0);
      if (at.real && first_o + o < call.width) {
        value = widen<Acc>(
            call.weight[(first_o + o) * call.weight_target + at.k * call.weight_k + at.c * call.weight_source]);
      }
      memory[column * kWidth + o] = value;
    }
    block_barrier();
    Acc part[4][2 * kPairs];  // summed by themselves: a long sum in float keeps fewer digits
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < 2 * kPairs; ++i) part[q][i] = Acc(0);
    }
#pragma unroll 2
    for (int column = 0; column < kColumns; ++column) {
      if (!column_of(call.tiles, g.K, g.depth, t, column).real) continue;  // H holds anything there
      Acc left[4];
      load4(H + column * kPitch + ty * 4, left);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        Acc right[2];
        load2(memory + column * kWidth + 2 * tx + 32 * i, right);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          part[q][2 * i] += left[q] * right[0];
          part[q][2 * i + 1] += left[q] * right[1];
        }
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < 2 * kPairs; ++i) sum[q][i] += part[q][i];
    }
  }
  if constexpr (!kBackward) {
    if (call.moments) {
      Acc value[4][2 * kPairs];
#pragma unroll
      for (int i = 0; i < 2 * kPairs; ++i) {
        const int o = first_o + 2 * tx + 32 * (i / 2) + i % 2;
        const Acc bias = call.bias && o < call.width ? widen<Acc>(call.bias[o]) : Acc(0);
#pragma unroll
        for (int q = 0; q < 4; ++q) value[q][i] = widen<Acc>(narrow<T>(sum[q][i] + bias));
      }
      const int left = place.group < 0 ? 0 : g.rows - place.row;
      gather_statistics<T, kWidth>(call, value, left < 4 ? left : 4, first_o, H);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int o = first_o + 2 * tx + 32 * (i / 2) + i % 2;
    const bool real = place.group >= 0 && o < call.width;
    const Acc bias = real && call.bias ? widen<Acc>(call.bias[o]) : Acc(0);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (!real || place.row + q >= g.rows) continue;
      Acc value = sum[q][i] + bias;
      if (call.relu) value = value < Acc(0) ? Acc(0) : value;  // what is not a number stays
      call.target[(static_cast<int64_t>(place.group) * g.rows + place.row + q) * call.width + o] = narrow<T>(value);
    }
  }
}

template <typename T, bool kBackward, int kWidth>
int launch_gather(const GatherCall<T>& call, Stream stream) {
  using Acc = typename Accumulator<T>::type;
  const Grid grid{static_cast<unsigned>(row_tiles(call.gather)), static_cast<unsigned>(ceil_div(call.width, kWidth))};
  return launch(gather_kernel<T, kWidth, kBackward>, grid, kThreads, gather_shared_bytes<Acc, kWidth>(), stream, call);
}

template <typename T, bool kBackward>
int gather(GatherCall<T> call, Stream stream) {
  call.tiles = column_tiles(call.gather.K, call.gather.depth);
  call.step = step_sizes<typename Accumulator<T>::type>(call.gather, call.tiles);
  return output_width(call.width) == 32 ? launch_gather<T, kBackward, 32>(call, stream)
                                        : launch_gather<T, kBackward, 96>(call, stream);
}

int forward(const Problem& p, Type type, const Pointers& in, bool relu, void* y, void* stream, void* moments) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    GatherCall<T> call{};
    call.gather = forward_gather(p, in.A_stride);
    call.source = static_cast<const T*>(in.x), call.A = static_cast<const T*>(in.A);
    call.weight = static_cast<const T*>(in.weight), call.bias = static_cast<const T*>(in.bias);
    call.target = static_cast<T*>(y), call.width = static_cast<int>(p.O), call.relu = relu;
    call.moments = static_cast<typename Accumulator<T>::type*>(moments);
    call.weight_target = in.weight_stride[0], call.weight_k = in.weight_stride[1];
    call.weight_source = in.weight_stride[2];
    return gather<T, false>(call, stream);
  });
}

int backward_input(const Problem& p, Type type, const Pointers& in, void* grad_x, void* stream) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    GatherCall<T> call{};
    call.gather = backward_gather(p, in.A_stride);
    call.source = static_cast<const T*>(in.gy), call.A = static_cast<const T*>(in.A);
    call.weight = static_cast<const T*>(in.weight);
    call.target = static_cast<T*>(grad_x), call.width = static_cast<int>(p.C);
    call.weight_target = in.weight_stride[2], call.weight_k = in.weight_stride[1];
    call.weight_source = in.weight_stride[0];
    return gather<T, true>(call, stream);
  });
}

}  // namespace msg3d::ms_g3d::plain
