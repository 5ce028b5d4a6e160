// What the tensor-core kernels ask of an element: bf16, half, or tf32, of which everything is twice as long and half as
// many.
#pragma once

#include <type_traits>

#include "../../simt/simt.h"
#include "tiles.h"

namespace msg3d::ms_g3d::cuda {

template <typename T>
constexpr bool kIsTf32 = std::is_same_v<T, simt::tf32>;
template <typename T>
constexpr int kPerChunk = 16 / sizeof(T);  // elements of a 16-byte chunk
template <typename T>
constexpr int kPerStep = kStepBytes / sizeof(T);  // elements that one product sums over

// d += A B over kStepBytes of A's rows and of B's columns.
template <typename T>
SIMT_DEVICE void multiply_step(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsTf32<T>) {
    simt::mma_m16n8k8_tf32(d, a, b0, b1);
  } else {
    simt::mma_m16n8k16<T>(d, a, b0, b1);
  }
}

// Operands of a product as memory has them: of tf32 they are rounded here.
template <typename T, int COUNT>
SIMT_DEVICE void round_operands(uint32_t (&words)[COUNT]) {
  if constexpr (kIsTf32<T>) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) words[i] = simt::to_tf32(simt::bits_float(words[i]));
  }
}

// A result as memory holds it: tf32 is not rounded.
template <typename T>
SIMT_DEVICE T stored(float value) {
  if constexpr (kIsTf32<T>) {
    return {value};
  } else {
    return simt::from_float<T>(value);
  }
}

// Two neighbours in memory, of a result.
template <typename T>
SIMT_DEVICE void store_pair(T* to, float first, float second) {
  if constexpr (kIsTf32<T>) {
    simt::store_vector(to, simt::Bits64{simt::float_bits(first), simt::float_bits(second)});
  } else {
    *reinterpret_cast<uint32_t*>(to) = simt::pack_pair<T>(first, second);
  }
}

// The channel that row `r` of an m16 tile holds where a lane shall own neighbouring channels.
SIMT_HOST_DEVICE int channel_of_row(int r) { return r < 8 ? 2 * r : 2 * (r - 8) + 1; }

}  // namespace msg3d::ms_g3d::cuda
