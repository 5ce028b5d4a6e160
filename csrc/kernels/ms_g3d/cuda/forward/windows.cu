// MS-G3D on tensor cores, operands of 16 bits or tf32, sums in float. For every scale in turn, two phases:
//
//     1  Z_k[(f,u), o] = sum_c x[f,u,c] weight[o,k,c]                 for all frames of the block, into shared memory
//     2  y^T[o, (w,v)] += sum_{w',u} Z_k^T[o, (w',u)] A[k,(w,v),(w',u)]        a warp: 48 channels of its windows
//
// x of the block's frames stays in shared memory, y in registers over all scales. Phase 2 reads Z through ldmatrix (in
// tf32, whose elements it cannot transpose, by plain loads) with an address of its own for every row (w',u), so windows
// overlap, stride and dilate at no cost and (w',u) needs no padding; rows behind the last node repeat a row of the same
// window, whose A is zero, so nothing foreign is read. W_k and A_k pass through two buffers in turn, whole or in chunks
// along the summed dimension (of W_k also along the other one): one arrives while the other is used.
//
// Warp (group, part, set): channels [48 group, ...), the run `part` of destination nodes, windows of `set`.
#include "collapse.h"
#include "moments.h"
#include "projection.h"

namespace msg3d::ms_g3d::cuda {
namespace windows {

using namespace simt;

// What a block computes. Found again where it is needed: 128 nodes a warp leave no register to keep it in.
struct Place {
  int clip, first_window, windows;
};

SIMT_DEVICE Place place_of_block(const ForwardCall& call) {
  const int block = opaque(block_x()), tiles = (call.windows + call.tile_windows - 1) / call.tile_windows;
  const int clip = block / tiles, first = (block - clip * tiles) * call.tile_windows, left = call.windows - first;
  return {clip, first, left < call.tile_windows ? left : call.tile_windows};
}

// Not by the pointer, and anew each time: what is asked would be kept in a register over all scales, and 128 nodes a
// warp leave none.
SIMT_DEVICE bool with_collapse(const ForwardCall& call) { return opaque(call.out_channels) > 0; }

template <int kIndex>
struct Tile {
  static constexpr int kNodeTiles = kWindowTiles[kIndex].node_tiles, kWindows = kWindowTiles[kIndex].windows;
  static constexpr int kWideTiles = kWindowTiles[kIndex].wide_tiles;
  static constexpr bool kChunks = kWideTiles > 0;  // else no register is left to count them
  // Nodes of a warp's part and windows of its set.
  SIMT_DEVICE static int nodes_of(const ForwardCall& call, int warp) {
    return at_most(kNodeTiles * 8, call.nodes - warp / opaque(call.groups) % opaque(call.parts) * kNodeTiles * 8);
  }
  SIMT_DEVICE static int windows_of(const ForwardCall& call, int warp) {
    return at_most(kWindows, place_of_block(call).windows - warp / opaque(call.groups * call.parts) * kWindows);
  }
};

// One step of y^T += Z^T A_k^T for the windows of a warp: A_k has two node tiles side by side.
template <typename T, typename P>
SIMT_DEVICE void multiply_nodes(float (&y)[P::kWindows][3][P::kNodeTiles][4], const uint32_t (&a)[P::kWindows][3][4],
                                const unsigned char* adjacency, int lane) {
#pragma unroll
  for (int n = 0; n < P::kNodeTiles; n += 2) {
    if (n + 1 < P::kNodeTiles) {
      const Bits128 b = load_vector<Bits128>(adjacency + n * 2 * kFragmentBytes + lane * 16);
#pragma unroll
      for (int w = 0; w < P::kWindows; ++w) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          multiply_step<T>(y[w][i][n], a[w][i], b.x, b.y);
          multiply_step<T>(y[w][i][n + 1], a[w][i], b.z, b.w);
        }
      }
    } else {
      const Bits64 b = load_vector<Bits64>(adjacency + n * 2 * kFragmentBytes + lane * 8);
#pragma unroll
      for (int w = 0; w < P::kWindows; ++w) {
#pragma unroll
        for (int i = 0; i < 3; ++i) multiply_step<T>(y[w][i][n], a[w][i], b.x, b.y);
      }
    }
  }
}

// What gather does, in tf32: steps of eight nodes.
template <typename P>
SIMT_DEVICE void gather_tf32(float (&y)[P::kWindows][3][P::kNodeTiles][4], const PairedRows& z_rows,
                             const unsigned char* z, const int (&first_row)[P::kWindows], int gap, int V, int nodes,
                             int column, int q, int last, const unsigned char* adjacency) {
  const int lane = opaque(lane_index()), reciprocal = (65536 + V - 1) / V;
  const int chunk = column + lane / 8, byte = lane / 4 % 2 * 8;
#pragma unroll 1
  for (; q < last; ++q, adjacency += P::kNodeTiles * 2 * kFragmentBytes) {
    const int node = q * 8 + lane % 4;
    const int j0 = node < nodes ? node : nodes - 1, j1 = node + 4 < nodes ? node + 4 : nodes - 1;
    const int moved0 = j0 + (j0 * reciprocal >> 16) * gap, moved1 = j1 + (j1 * reciprocal >> 16) * gap;
    uint32_t a[P::kWindows][3][4];
#pragma unroll
    for (int w = 0; w < P::kWindows; ++w) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Bits64 low = load_vector<Bits64>(z + z_rows.offset(first_row[w] + moved0, chunk + 4 * i) + byte);
        const Bits64 high = load_vector<Bits64>(z + z_rows.offset(first_row[w] + moved1, chunk + 4 * i) + byte);
        a[w][i][0] = low.x, a[w][i][1] = low.y, a[w][i][2] = high.x, a[w][i][3] = high.y;
      }
    }
    multiply_nodes<tf32, P>(y, a, adjacency, lane);
  }
}

// y^T += Z^T A_k^T for the windows of a warp, over steps [q, last) of the source nodes. `first_row` is the row of Z
// at which each window's first frame starts, `gap` how many more rows than V lie between two slots of a window.
template <typename T, typename P>
SIMT_DEVICE void gather(float (&y)[P::kWindows][3][P::kNodeTiles][4], const Rows& z_rows, uint32_t z,
                        const int (&first_row)[P::kWindows], int gap, int V, int nodes, int column, int q, int last,
                        const unsigned char* adjacency) {
  const int lane = opaque(lane_index());
  const int source_tiles = (nodes + 7) / 8, reciprocal = (65536 + V - 1) / V, whole = source_tiles / 2;
  const int j0 = lane % 8 + lane / 16 * 8, bit = lane / 8 % 2;
#pragma unroll 1
  for (; q < last && q < whole; ++q, adjacency += P::kNodeTiles * 2 * kFragmentBytes) {
    const int j = j0 + q * 16 < nodes ? j0 + q * 16 : nodes - 1;
    const int moved = j + (j * reciprocal >> 16) * gap;
    uint32_t a[P::kWindows][3][4];
#pragma unroll
    for (int w = 0; w < P::kWindows; ++w) {
      const int row = first_row[w] + moved, turn = z_rows.turn(row);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        ldmatrix_x4_trans(a[w][i], z + (row * z_rows.chunks + ((column + 2 * i + bit) ^ turn)) * 16);
      }
    }
    multiply_nodes<T, P>(y, a, adjacency, lane);
  }
  if (q == last) return;  // else eight rows are left
  const int j = j0 + source_tiles * 8 - 8 < nodes ? j0 + source_tiles * 8 - 8 : nodes - 1;
  const int moved = j + (j * reciprocal >> 16) * gap;
  uint32_t a[P::kWindows][3][2];
#pragma unroll
  for (int w = 0; w < P::kWindows; ++w) {
    const int row = first_row[w] + moved, turn = z_rows.turn(row);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      ldmatrix_x2_trans(a[w][i], z + (row * z_rows.chunks + ((column + 2 * i + bit) ^ turn)) * 16);
    }
  }
#pragma unroll
  for (int n = 0; n < P::kNodeTiles; n += 2) {  // two tiles lie side by side
    uint32_t b[2];
    if (n + 1 < P::kNodeTiles) {
      const Bits64 pair = load_vector<Bits64>(adjacency + n * kFragmentBytes + lane * 8);
      b[0] = pair.x, b[1] = pair.y;
    } else {
      b[0] = *reinterpret_cast<const uint32_t*>(adjacency + n * kFragmentBytes + lane * 4), b[1] = 0;
    }
#pragma unroll
    for (int w = 0; w < P::kWindows; ++w) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        mma_m16n8k8<T>(y[w][i][n], a[w][i][0], a[w][i][1], b[0]);
        if (n + 1 < P::kNodeTiles) mma_m16n8k8<T>(y[w][i][n + 1], a[w][i][0], a[w][i][1], b[1]);
      }
    }
  }
}

// Hands every accumulator of y to `take(accumulator, window, node, channel, bias of it, bias of the next)` and clears
// it: zeros need no registers while the collapse runs.
template <typename T, typename P, typename Take>
SIMT_DEVICE void leave(const ForwardCall& call, float (&y)[P::kWindows][3][P::kNodeTiles][4], int slice,
                       const Take& take) {
  const int lane = opaque(lane_index()), warp = opaque(warp_index());
  const int group = warp % call.groups, part = warp / call.groups % call.parts;
  const int set = warp / (call.groups * call.parts);
  const int node = part * P::kNodeTiles * 8 + lane % 4 * 2;
  const int o = (slice * call.groups + group) * kGroup + lane / 4 * 2;
  const T* const bias = static_cast<const T*>(call.moments ? nullptr : call.bias);
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    const bool biased = bias && opaque(o) + 16 * m < call.O;  // not known before: 128 nodes leave no register for it
    const float bias0 = biased ? to_float(load_readonly(bias + o + 16 * m)) : 0.f;
    const float bias1 = biased ? to_float(load_readonly(bias + o + 16 * m + 1)) : 0.f;
#pragma unroll
    for (int w = 0; w < P::kWindows; ++w) {
#pragma unroll
      for (int n = 0; n < P::kNodeTiles; ++n) {
        take(y[w][m][n], set * P::kWindows + w, node + n * 8, o + 16 * m, bias0, bias1);
        y[w][m][n][0] = y[w][m][n][1] = y[w][m][n][2] = y[w][m][n][3] = 0;
      }
    }
  }
}

template <typename T, int kIndex>
SIMT_KERNEL(kMostWarps * 32, 1)
void windows_kernel(ForwardCall call) {
  using P = Tile<kIndex>;
  const int threads = call.warps * 32, rows = call.slots * call.V;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());

  {  // x of the slots; frames outside the clip, and channels behind the last, are zero
    const Place place = place_of_block(call);
    const T* const x = static_cast<const T*>(call.x) + static_cast<int64_t>(place.clip) * call.T * call.V * call.C;
    const int first_frame = place.first_window * call.stride - call.padding;
#pragma unroll 1
    for (int i = thread_index(); i < rows * call.x_rows.chunks; i += threads) {
      const int row = i / call.x_rows.chunks, chunk = i % call.x_rows.chunks;
      const int slot = row / call.V, frame = first_frame + slot * call.frame_step;
      const bool inside = frame >= 0 && frame < call.T && chunk < call.C / kPerChunk<T>;
      const int64_t at = static_cast<int64_t>(frame * call.V + row - slot * call.V) * call.C + chunk * kPerChunk<T>;
      cp_async<16>(shared + call.x_rows.offset(row, chunk), inside ? x + at : x, inside ? 16 : 0);
    }
    if (kIsTf32<T>) cp_async_commit();
  }
  const int scales = call.slices_per_block * call.K;  // slice by slice
  constexpr int kPerStep = kStepBytes / sizeof(T);
  const int steps = (call.nodes + kPerStep - 1) / kPerStep;  // of A
  const int adjacency_steps = P::kChunks ? call.adjacency_steps : steps;
  const int deep = P::kChunks ? (call.channel_steps + call.weight_steps - 1) / call.weight_steps : 1;
  const int chunks = P::kChunks ? call.groups * (kGroup / kColumnStep) / call.weight_columns * deep : 1;  // of W
  const int items = chunks + (P::kChunks ? (steps + adjacency_steps - 1) / adjacency_steps : 1);  // of a scale: W, A
  const auto buffer = [&](int item) { return item % 2 ? call.adjacency_at : call.weight_at; };
  const auto fetch_item = [&](int item) {
    const int scale = item / items, index = item % items;
    if (scale == scales) return;
    const int columns = call.groups * (kGroup / kColumnStep), at_once = P::kChunks ? call.weight_columns : columns;
    const int pieces = index < chunks ? at_once : call.parts;
    const int pitch = index < chunks ? call.weight_chunk_bytes : call.adjacency_chunk_bytes;
    const int piece_bytes = index < chunks ? call.channel_steps * kUnitBytes : call.adjacency_part_bytes;
    const int skipped = index < chunks ? index % deep * call.weight_steps * kUnitBytes
                                       : (index - chunks) * adjacency_steps * P::kNodeTiles * 2 * kFragmentBytes;
    const int bytes = piece_bytes - skipped < pitch ? piece_bytes - skipped : pitch;
    const char* from = static_cast<const char*>(index < chunks ? call.weight : call.adjacency) + skipped;
    const int64_t piece = index < chunks ? static_cast<int64_t>(opaque(block_y())) * scales + scale : scale % call.K;
    from += (index < chunks ? piece * columns + index / deep * at_once : piece * pieces) * piece_bytes;
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      fetch(shared + buffer(item) + i * pitch, from + static_cast<int64_t>(i) * piece_bytes, bytes, threads);
    }
    cp_async_commit();
  };
  fetch_item(0);
  round_in_place<T>(call.z_at, threads);

  float y[P::kWindows][3][P::kNodeTiles][4] = {};
  int item = 0;
#pragma unroll 1
  for (int scale = 0; scale < scales; ++scale) {
    const bool complete = (opaque(scale) + 1) % call.K == 0;  // 128 nodes a warp leave no register to count slices
    const bool collapses = with_collapse(call) && (scale + 1) % (call.K * call.slices_at_once) == 0;
    const int last_item = collapses ? (scale + 1) * items - 1 : -1;  // behind it the buffers are not free
    const auto turn = [&]() {
      cp_async_wait<0>();
      block_barrier();  // this chunk has landed for everybody; nobody reads the one before, or what Z was
      if (item != last_item) fetch_item(item + 1);
      return buffer(item++);
    };
    if constexpr (P::kWideTiles > 0) {
      if (call.wide_units) project<T, 2, P::kWideTiles, true>(call, turn);
    }
    if (!call.wide_units) project<T, 1, 2, P::kChunks>(call, turn);
    int q = 0;
    do {
      const int at = turn();
      const int last = P::kChunks && q + adjacency_steps < steps ? q + adjacency_steps : steps;
      const int w = opaque(warp_index());
      const int group = w % call.groups, part = w / call.groups % call.parts, set = w / (call.groups * call.parts);
      if (set * P::kWindows < place_of_block(call).windows) {
        int first_row[P::kWindows];  // of Z
#pragma unroll
        for (int i = 0; i < P::kWindows; ++i) {
          first_row[i] = (set * P::kWindows + i) * call.stride / call.frame_step * call.V;
        }
        const int gap = (call.dilation / call.frame_step - 1) * call.V;
        const unsigned char* const a = shared_memory<unsigned char>(at + part * call.adjacency_chunk_bytes);
        if constexpr (kIsTf32<T>) {
          gather_tf32<P>(y, {call.z_rows}, shared_memory<unsigned char>(call.z_at), first_row, gap, call.V, call.nodes,
                         group * 12, q, last, a);
        } else {
          gather<T, P>(y, call.z_rows, shared + call.z_at, first_row, gap, call.V, call.nodes, group * 6, q, last, a);
        }
      }
      q = last;
    } while (P::kChunks && q < steps);
    if (!complete) continue;
    const int slice = block_y() * call.slices_per_block + scale / call.K;
    if (call.moments) {  // over Z
      const int warp = opaque(warp_index()), mine = P::windows_of(call, warp), nodes = P::nodes_of(call, warp);
      gather_moments<T>(call, y, slice, warp % call.groups, call.z_at, mine * nodes, [&](int w, int node) {
        return P::kWindows == 1 ? node < mine * nodes : w < mine && node < nodes;
      });
    }
    if (!with_collapse(call)) {
      const Place place = place_of_block(call);
      const int64_t first_window = static_cast<int64_t>(place.clip) * call.windows + place.first_window;
      T* const to = static_cast<T*>(call.y) + first_window * call.nodes * call.O;
      leave<T, P>(call, y, slice, [&](const auto& d, int window, int node, int o, float bias0, float bias1) {
        const bool stored = window < place.windows && o < call.O;
        store_nodes(to + (window * call.nodes + node) * call.O + o, call.O, d, bias0, bias1, call.relu,
                    stored && node < call.nodes, stored && node + 1 < call.nodes);
      });
      if (call.moments) {
        const auto rows_of = [&](int warp) { return P::windows_of(call, warp) * P::nodes_of(call, warp); };
        leave_part(call, slice, call.z_at, rows_of);
      }
      continue;
    }
    if (collapses) {
      block_barrier();  // nobody reads Z and A any more: y goes over them
      fetch_collapse<T>(call, slice + 1 - call.slices_at_once, 0);
    }
    const int y_at = y_of_slice(call, slice);
    leave<T, P>(call, y, slice, [&](const auto& d, int window, int node, int o, float bias0, float bias1) {
      stage_nodes<T>(shared_memory<unsigned char>(y_at), call.y_rows, opaque(window * call.y_pitch) + node,
                     o - slice * call.groups * kGroup, d, bias0, bias1, node < call.nodes, node + 1 < call.nodes);
    });
    if (collapses) {
      const Place place = place_of_block(call);
      collapse<T>(call, slice + 1 - call.slices_at_once,
                  static_cast<int64_t>(place.clip) * call.windows + place.first_window, place.windows);
      if (scale + 1 < scales) {
        block_barrier();  // nobody reads y and the collapse's weights any more
        fetch_item(item);
      }
    }
  }
}

template <typename T>
int launch_type(const ForwardCall& call, int tile, Grid grid, int shared_bytes, Stream stream) {
  const auto run = [&](auto kernel) { return launch(kernel, grid, call.warps * 32, shared_bytes, stream, call); };
  static_assert(sizeof(kWindowTiles) / sizeof(kWindowTiles[0]) == 7, "every tile has its kernel here");
  switch (tile) {
    case 0:
      return run(windows_kernel<T, 0>);
    case 1:
      return run(windows_kernel<T, 1>);
    case 2:
      return run(windows_kernel<T, 2>);
    case 3:
      return run(windows_kernel<T, 3>);
    case 4:
      return run(windows_kernel<T, 4>);
    case 5:
      return run(windows_kernel<T, 5>);
    default:
      return run(windows_kernel < T, kIsTf32<T> ? 3 : 6 >);  // no plan in tf32 has 128 nodes a warp: they spill
  }
}

}  // namespace windows

int launch_windows(const ForwardCall& call, Type type, int tile, int64_t blocks, int shared_bytes,
                   simt::Stream stream) {
  const simt::Grid grid{static_cast<unsigned>(blocks), static_cast<unsigned>(call.slices / call.slices_per_block)};
  const auto launch = type == Type::kBFloat16  ? windows::launch_type<simt::bf16>
                      : type == Type::kFloat16 ? windows::launch_type<simt::half>
                                               : windows::launch_type<simt::tf32>;
  return launch(call, tile, grid, shared_bytes, stream);
}

}  // namespace msg3d::ms_g3d::cuda
