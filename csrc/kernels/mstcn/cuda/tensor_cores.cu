// The temporal branches on tensor cores: a warp makes 32 rows of up to 64 channels. Operands come straight from global
// memory, whose caches hold the weights and the rows of neighbouring taps: even at 64 channels a branch, h and out take
// more of an A100's memory time than the products take of its tensor cores. Two n8 tiles interleave their channels such
// that a lane has four neighbours of a row; so do the two halves of a k16 step, which makes whole sectors of all loads:
// columns 2t, 2t+1, 2t+8, 2t+9 of both operands are channels 4t to 4t+3.
#include "rows.h"

namespace msg3d::mstcn::cuda {
namespace temporal_kernels {

constexpr int kWarps = 4, kWarpRows = 32;

SIMT_DEVICE Bits64 load_four(const void* pointer) { return load_readonly(static_cast<const Bits64*>(pointer)); }

// Of 8*kTiles output channels. kTiles is even.
template <typename T, int kTiles>
SIMT_KERNEL(kWarps * 32, 2)
void tensor_core_kernel(TemporalCall call) {
  constexpr int kRows = kWarps * kWarpRows;
  const int branch = block_y();
  if (branch == call.branches) {
    if (block_z() == 0) pool<T, kWarps * 32, kRows, 4>(call);
  } else {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const int first_row = block_x() * kRows + warp_index() * kWarpRows + g, first_o = block_z() * kTiles * 8;
    Source sources[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sources[i] = source_of(call, first_row + i * 8);
    float sum[2][kTiles][4] = {};
    const int dilation = dilation_of(call, branch);
    const T* const h = static_cast<const T*>(call.h) + branch * call.width + 4 * t;
    // Column g of tile 2i is channel 16i + 4*(g/2) + g%2, of tile 2i+1 the second next.
    const T* weight =
        static_cast<const T*>(call.weight) +
        (static_cast<int64_t>(branch) * call.taps * call.width + first_o + g / 2 * 4 + g % 2) * call.width + 4 * t;
#pragma unroll 1
    for (int tap = 0; tap < call.taps; ++tap, weight += call.width * call.width) {
      const int shift = (tap - call.taps / 2) * dilation;
      const int64_t ahead = static_cast<int64_t>(shift) * call.V * (call.branches + 1) * call.width;
      bool reads[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) reads[i] = inside(call, sources[i], shift);
#pragma unroll 1
      for (int k = 0; k < call.width; k += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Bits64 four = reads[i] ? load_four(h + sources[i].at + ahead + k) : Bits64{0, 0};
          a[i / 2][i % 2] = four.x, a[i / 2][i % 2 + 2] = four.y;
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const Bits64 b = load_four(weight + (tile / 2 * 16 + tile % 2 * 2) * call.width + k);
          mma_m16n8k16<T>(sum[0][tile], a[0], b.x, b.y);
          mma_m16n8k16<T>(sum[1][tile], a[1], b.x, b.y);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!sources[i].real) continue;
      T* const to = static_cast<T*>(call.out) + static_cast<int64_t>(first_row + i * 8) * call.O + branch * call.width +
                    first_o + 4 * t;
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
        const Bits64 old = load_vector<Bits64>(to + pair * 16);
        const float (&low)[4] = sum[i / 2][2 * pair];
        const float (&high)[4] = sum[i / 2][2 * pair + 1];
        const int d = i % 2 * 2;
        const Bits64 fresh{pack_pair<T>(rectified(pair_low<T>(old.x) + low[d], call.relu),
                                        rectified(pair_high<T>(old.x) + low[d + 1], call.relu)),
                           pack_pair<T>(rectified(pair_low<T>(old.y) + high[d], call.relu),
                                        rectified(pair_high<T>(old.y) + high[d + 1], call.relu))};
        store_vector(to + pair * 16, fresh);
      }
    }
  }
}

template <typename T, int kTiles>
int launch_tensor_cores(const TemporalCall& call, Stream stream) {
  const Grid grid{static_cast<unsigned>(ceil_div(call.rows, kWarps * kWarpRows)),
                  static_cast<unsigned>(call.branches + 1), static_cast<unsigned>(call.width / (kTiles * 8))};
  return launch(tensor_core_kernel<T, kTiles>, grid, kWarps * 32, 0, stream, call);
}

}  // namespace temporal_kernels

bool temporal_on_tensor_cores(const TemporalProblem& p, Type type, int arch) {
  const bool short_type = type == Type::kFloat16 || type == Type::kBFloat16;
  return short_type && arch >= 80 && p.width % 16 == 0 && p.O % 4 == 0;
}

int temporal(const TemporalProblem& p, Type type, int arch, const void* h, const void* weight, const void* scale,
             void* out, simt::Stream stream, const void* h_bias, const void* out_bias) {
  using namespace temporal_kernels;
  TemporalCall call{};
  call.h = h, call.weight = weight, call.scale = scale, call.out = out;
  call.h_bias = h_bias, call.out_bias = out_bias;
  call.rows = static_cast<int>(p.rows()), call.T = static_cast<int>(p.T), call.V = static_cast<int>(p.V);
  call.windows = static_cast<int>(p.windows()), call.width = static_cast<int>(p.width), call.O = static_cast<int>(p.O);
  call.branches = p.branches, call.taps = p.taps, call.stride = p.stride, call.relu = p.relu;
  for (int b = 0; b < p.branches; ++b) call.dilations[b] = p.dilations[b];
  if (call.rows == 0) return 0;
  const auto on_tensor_cores = [&](auto zero) {
    using T = decltype(zero);
    if (call.width % 64 == 0) return launch_tensor_cores<T, 8>(call, stream);
    if (call.width % 32 == 0) return launch_tensor_cores<T, 4>(call, stream);
    return launch_tensor_cores<T, 2>(call, stream);
  };
  if (h_bias || !temporal_on_tensor_cores(p, type, arch)) return temporal_by_multiply_adds(call, type, stream);
  return type == Type::kFloat16 ? on_tensor_cores(simt::half()) : on_tensor_cores(simt::bf16());
}

}  // namespace msg3d::mstcn::cuda
