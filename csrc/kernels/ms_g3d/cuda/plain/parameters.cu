// The plain path's backward pass for A, weight and bias:
//
//     grad_weight[o,k,c] = sum over windows and nodes   gy[t, (w,v), o] (A_k x)[t, (w,v), c]
//     grad_A[k, r, j]    = sum over windows and c       G_k[t, r, c] x[t, j, c],   G_k = gy[t, r, :] weight[:, k, c]
//     grad_bias[o]       = sum over windows and nodes   gy[t, (w,v), o]
//
// Every part of the windows is summed by blocks of its own, in registers; the parts are added up in their order.
#include "tile.h"

namespace msg3d::ms_g3d::plain {

// A run of `all` steps: the part that block `index` of `parts` has.
struct Run {
  int first, last;
};
SIMT_DEVICE Run run_of(int all, int parts, int index) {
  const int each = (all + parts - 1) / parts, first = each * index, end = first + each;
  return {first, end < all ? end : all};
}

template <typename T>
struct WeightCall {
  Gather gather;  // of the forward pass
  ColumnTiles tiles;
  StepSizes<typename Accumulator<T>::type> step;
  const T* x;
  const T* A;
  const T* gy;
  typename Accumulator<T>::type* parts;  // (parts, O, K, C)
  int O;
  int row_tiles;
};

template <typename Acc, int kWidth>
constexpr int weight_shared_bytes() {
  const int step = StepSizes<Acc>::kElements, gy = kRows * kWidth;
  return (kRows * (kColumns + 2) + (step > gy ? step : gy)) * static_cast<int>(sizeof(Acc));
}

// Block (tile of (k, c) columns, tile of output channels, part): H of one row tile after the other times gy. Thread
// (ty, tx) sums columns 2*tx + {0, 1} and channels 2*ty + {0, 1} + 32*i.
template <typename T, int kWidth>
SIMT_KERNEL(kThreads, sizeof(T) == 8 ? 1 : 2)
void weight_kernel(WeightCall<T> call) {
  using Acc = typename Accumulator<T>::type;
  constexpr int kPairs = kWidth / 32, kColumnPitch = kColumns + 2;
  const Gather& g = call.gather;
  Acc* const H = shared_memory<Acc>();           // (row, column)
  Acc* const memory = H + kRows * kColumnPitch;  // a step of the aggregation, then gy: (row, o)
  const int tid = thread_index(), tx = tid % 16, ty = tid / 16;
  const int first_o = block_y() * kWidth;
  const Run run = run_of(call.row_tiles, grid_z(), block_z());

  Acc sum[2][2 * kPairs];
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) sum[0][i] = sum[1][i] = Acc(0);
#pragma unroll 1
  for (int tile = run.first; tile < run.last; ++tile) {
    const Place place = place_of(g, tile, ty);
    Acc h[4][2];
    aggregate<T, false, Acc>(g, call.tiles, call.step, call.x, call.A, place, tile, block_x(), memory, h);
    block_barrier();  // the last step has been read, and so has H of the tile before
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const bool real = place.group >= 0 && place.row + q < g.rows;
#pragma unroll
      for (int i = 0; i < 2; ++i) H[(ty * 4 + q) * kColumnPitch + 2 * tx + i] = real ? h[q][i] : Acc(0);
    }
#pragma unroll 1
    for (int i = tid; i < kRows * kWidth; i += kThreads) {
      const int row = i / kWidth, o = i % kWidth;
      const Place from = place_of(g, tile, row / 4);
      const int node = from.row + row % 4;
      Acc value = Acc(0);
      if (from.group >= 0 && node < g.rows && first_o + o < call.O) {
        value = widen<Acc>(call.gy[(static_cast<int64_t>(from.group) * g.rows + node) * call.O + first_o + o]);
      }
      memory[i] = value;
    }
    block_barrier();
    Acc part[2][2 * kPairs];  // of this tile: a long sum in float keeps fewer digits
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) part[0][i] = part[1][i] = Acc(0);
#pragma unroll 4
    for (int row = 0; row < kRows; ++row) {
      Acc left[2];
      load2(H + row * kColumnPitch + 2 * tx, left);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        Acc right[2];
        load2(memory + row * kWidth + 2 * ty + 32 * i, right);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          part[0][2 * i + j] += left[0] * right[j];
          part[1][2 * i + j] += left[1] * right[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) sum[0][i] += part[0][i], sum[1][i] += part[1][i];
  }
#pragma unroll
  for (int i = 0; i < 4 * kPairs; ++i) {
    const int column = i % 2, pair = i / 2 % kPairs, other = i / 2 / kPairs;
    const int o = first_o + 2 * ty + 32 * pair + other;
    const Column at = column_of(call.tiles, g.K, g.depth, block_x(), 2 * tx + column);
    if (at.real && o < call.O) {
      call.parts[((static_cast<int64_t>(block_z()) * call.O + o) * g.K + at.k) * g.depth + at.c] =
          sum[column][2 * pair + other];
    }
  }
}

template <typename T>
struct AdjacencyCall {
  Gather gather;  // of the forward pass
  const T* x;
  const T* gy;
  const T* weight;
  typename Accumulator<T>::type* parts;  // (parts, K, R, R)
  int O, tiles;                          // tiles of R
  int64_t weight_o, weight_k, weight_c;  // strides
};

constexpr int kAdjacencyElements = 4 * kColumns * kPitch;

// Block (k, tile of rows r, tile of columns j; windows of a part): kRows/kTile windows at once, each with kTile rows.
// Thread (ty, tx) holds rows 4*ty ... of its window; first G of channels 2*tx + {0, 1}, then the sum of columns
// 2*tx + {0, 1} + 32*i.
template <typename T, int kTile>
SIMT_KERNEL(kThreads, sizeof(T) == 8 ? 1 : 2)
void adjacency_kernel(AdjacencyCall<T> call) {
  using Acc = typename Accumulator<T>::type;
  constexpr int kWindows = kRows / kTile, kPairs = kTile / 32;
  const Gather& g = call.gather;
  Acc* const gy = shared_memory<Acc>();        // (o, row)
  Acc* const weight = gy + kColumns * kPitch;  // (o, c)
  Acc* const G = gy + 2 * kColumns * kPitch;   // (c, row)
  Acc* const x = G + kColumns * kPitch;        // (c, row): node j of every window
  const int tid = thread_index(), tx = tid % 16, ty = tid / 16;
  const int k = block_x() / (call.tiles * call.tiles), tile = block_x() % (call.tiles * call.tiles);
  const int first_row = tile / call.tiles * kTile, first_column = tile % call.tiles * kTile;
  const int window_of_thread = ty * 4 / kTile;
  const Run run = run_of((g.groups + kWindows - 1) / kWindows, grid_y(), block_y());

  Acc sum[4][2 * kPairs];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) sum[q][i] = Acc(0);
  }
#pragma unroll 1
  for (int step = run.first; step < run.last; ++step) {
    const int first_window = step * kWindows;
#pragma unroll 1
    for (int first_c = 0; first_c < g.depth; first_c += kColumns) {
      Acc here[4][2];
#pragma unroll
      for (int q = 0; q < 4; ++q) here[q][0] = here[q][1] = Acc(0);
#pragma unroll 1
      for (int first_o = 0; first_o < call.O; first_o += kColumns) {
        block_barrier();
#pragma unroll 1
        for (int i = tid; i < kRows * kColumns; i += kThreads) {
          const int o = first_o + i % kColumns, row = i / kColumns, window = first_window + row / kTile;
          const int node = first_row + row % kTile;
          Acc value = Acc(0);
          if (o < call.O && window < g.groups && node < g.rows) {
            value = widen<Acc>(call.gy[(static_cast<int64_t>(window) * g.rows + node) * call.O + o]);
          }
          gy[i % kColumns * kPitch + row] = value;
        }
#pragma unroll 1
        for (int i = tid; i < kColumns * kColumns; i += kThreads) {
          const int o = first_o + i / kColumns, c = first_c + i % kColumns;
          Acc value = Acc(0);
          if (o < call.O && c < g.depth) {
            value = widen<Acc>(call.weight[o * call.weight_o + k * call.weight_k + c * call.weight_c]);
          }
          weight[i] = value;
        }
        block_barrier();
#pragma unroll 4
        for (int o = 0; o < kColumns; ++o) {
          Acc left[4], right[2];
          load4(gy + o * kPitch + ty * 4, left), load2(weight + o * kColumns + 2 * tx, right);
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            here[q][0] += left[q] * right[0];
            here[q][1] += left[q] * right[1];
          }
        }
      }
      // The barriers above stand behind the last reads of G and x, too.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int q = 0; q < 4; ++q) G[(2 * tx + i) * kPitch + ty * 4 + q] = here[q][i];
      }
#pragma unroll 1
      for (int i = tid; i < kRows * kColumns; i += kThreads) {
        const int c = first_c + i % kColumns, row = i / kColumns, window = first_window + row / kTile;
        const int node = first_column + row % kTile;
        Acc value = Acc(0);
        if (c < g.depth && window < g.groups && node < g.columns) {
          const int64_t from = source_row<false>(g, window, node);
          if (from >= 0) value = widen<Acc>(call.x[from * g.depth + c]);
        }
        x[i % kColumns * kPitch + row] = value;
      }
      block_barrier();
      Acc part[4][2 * kPairs];  // of these channels: a long sum in float keeps fewer digits
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int i = 0; i < 2 * kPairs; ++i) part[q][i] = Acc(0);
      }
      const int channels = kColumns < g.depth - first_c ? kColumns : g.depth - first_c;
#pragma unroll 2
      for (int c = 0; c < channels; ++c) {
        Acc left[4];
        load4(G + c * kPitch + ty * 4, left);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          Acc right[2];
          load2(x + c * kPitch + window_of_thread * kTile + 2 * tx + 32 * i, right);
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
  }
  const int64_t part = static_cast<int64_t>(block_y()) * kWindows + window_of_thread;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int r = first_row + ty * 4 % kTile + q;
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int j = first_column + 2 * tx + 32 * (i / 2) + i % 2;
      if (r < g.rows && j < g.rows) call.parts[((part * g.K + k) * g.rows + r) * g.rows + j] = sum[q][i];
    }
  }
}

// Block (32 output channels, part): the sum of the rows of gy; thread (row % 8, o).
template <typename T>
SIMT_KERNEL(kThreads, sizeof(T) == 8 ? 1 : 2)
void bias_kernel(const T* gy, int rows, int O, typename Accumulator<T>::type* parts) {
  using Acc = typename Accumulator<T>::type;
  Acc* const sums = shared_memory<Acc>();  // (8, 32)
  const int tid = thread_index(), o = block_x() * 32 + tid % 32;
  const Run run = run_of(rows, grid_y(), block_y());
  Acc sum = Acc(0);
  if (o < O) {
    for (int row = run.first + tid / 32; row < run.last; row += 8) {
      sum += widen<Acc>(gy[static_cast<int64_t>(row) * O + o]);
    }
  }
  sums[tid] = sum;
  block_barrier();
  if (tid < 32 && o < O) {
    for (int i = 1; i < 8; ++i) sum += sums[i * 32 + tid];
    parts[static_cast<int64_t>(block_y()) * O + o] = sum;
  }
}

// out[i] = the sum over parts, in their order.
template <typename T>
SIMT_KERNEL(kThreads, sizeof(T) == 8 ? 1 : 2)
void sum_kernel(const typename Accumulator<T>::type* parts, int count, int64_t elements, T* out) {
  const int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_index();
  if (i < elements) {
    typename Accumulator<T>::type sum = 0;
    for (int part = 0; part < count; ++part) sum += parts[part * elements + i];
    out[i] = narrow<T>(sum);
  }
}

template <typename T>
int sum_parts(const typename Accumulator<T>::type* parts, int64_t count, int64_t elements, void* out, Stream stream) {
  return launch(sum_kernel<T>, Grid{static_cast<unsigned>(ceil_div(elements, kThreads))}, kThreads, 0, stream, parts,
                static_cast<int>(count), elements, static_cast<T*>(out));
}

template <typename T, int kWidth>
int launch_weight(const WeightCall<T>& call, int64_t parts, Stream stream) {
  const Grid grid{static_cast<unsigned>(call.tiles.count), static_cast<unsigned>(ceil_div(call.O, kWidth)),
                  static_cast<unsigned>(parts)};
  using Acc = typename Accumulator<T>::type;
  return launch(weight_kernel<T, kWidth>, grid, kThreads, weight_shared_bytes<Acc, kWidth>(), stream, call);
}

template <typename T, int kTile>
int launch_adjacency(const AdjacencyCall<T>& call, int64_t parts, Stream stream) {
  const Grid grid{static_cast<unsigned>(call.gather.K * call.tiles * call.tiles),
                  static_cast<unsigned>(parts * kTile / kRows)};
  const int bytes = kAdjacencyElements * static_cast<int>(sizeof(typename Accumulator<T>::type));
  return launch(adjacency_kernel<T, kTile>, grid, kThreads, bytes, stream, call);
}

template <typename T>
int parameters(const Problem& p, const Pointers& in, const ParameterPlan& plan, void* workspace, void* grad_A,
               void* grad_weight, void* grad_bias, Stream stream) {
  using Acc = typename Accumulator<T>::type;
  Acc* parts = static_cast<Acc*>(workspace);
  const Gather g = forward_gather(p, in.A_stride);
  const T* x = static_cast<const T*>(in.x);
  const T* gy = static_cast<const T*>(in.gy);
  int status = 0;
  if (grad_weight) {
    WeightCall<T> call{g,     column_tiles(p.K, p.C), {},          x, static_cast<const T*>(in.A), gy,
                       parts, static_cast<int>(p.O),  row_tiles(g)};
    call.step = step_sizes<Acc>(g, call.tiles);
    if constexpr (sizeof(Acc) == 4) {
      status = plan.weight_width == 96 ? launch_weight<T, 96>(call, plan.weight_parts, stream)
                                       : launch_weight<T, 32>(call, plan.weight_parts, stream);
    } else {
      status = launch_weight<T, 32>(call, plan.weight_parts, stream);
    }
    const int64_t elements = p.O * p.K * p.C;
    if (!status) status = sum_parts<T>(parts, plan.weight_parts, elements, grad_weight, stream);
    parts += plan.weight_parts * elements;
  }
  if (grad_A && !status) {
    const AdjacencyCall<T> call{g,
                                x,
                                gy,
                                static_cast<const T*>(in.weight),
                                parts,
                                static_cast<int>(p.O),
                                static_cast<int>(ceil_div(p.nodes(), plan.adjacency_rows)),
                                in.weight_stride[0],
                                in.weight_stride[1],
                                in.weight_stride[2]};
    status = plan.adjacency_rows == 32 ? launch_adjacency<T, 32>(call, plan.adjacency_parts, stream)
                                       : launch_adjacency<T, 64>(call, plan.adjacency_parts, stream);
    const int64_t elements = p.K * p.nodes() * p.nodes();
    if (!status) status = sum_parts<T>(parts, plan.adjacency_parts, elements, grad_A, stream);
    parts += plan.adjacency_parts * elements;
  }
  if (grad_bias && !status) {
    const Grid grid{static_cast<unsigned>(ceil_div(p.O, 32)), static_cast<unsigned>(plan.bias_parts)};
    status = launch(bias_kernel<T>, grid, kThreads, kThreads * static_cast<int>(sizeof(Acc)), stream, gy,
                    static_cast<int>(p.N * p.windows() * p.nodes()), static_cast<int>(p.O), parts);
    if (!status) status = sum_parts<T>(parts, plan.bias_parts, p.O, grad_bias, stream);
  }
  return status;
}

int backward_parameters(const Problem& p, Type type, const Pointers& in, const ParameterPlan& plan, void* workspace,
                        void* grad_A, void* grad_weight, void* grad_bias, void* stream) {
  return with_type(type, [&](auto zero) {
    return parameters<decltype(zero)>(p, in, plan, workspace, grad_A, grad_weight, grad_bias, stream);
  });
}

}  // namespace msg3d::ms_g3d::plain
