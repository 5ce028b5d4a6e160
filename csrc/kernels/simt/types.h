// bf16 and half as bits, with conversions that round to nearest even, for host and device; no header of CUDA or torch.
// T is the storage type (float, bf16, half); arithmetic happens in float. Pairs sit in 32 bits, the first in the low
// half. tf32 is float in memory whose products take ten bits of its mantissa.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) && !defined(MSG3D_EMULATED)
#define SIMT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIMT_HOST_DEVICE inline
#endif

namespace msg3d::simt {

struct alignas(2) bf16 {
  uint16_t bits;
};
struct alignas(2) half {
  uint16_t bits;
};
struct tf32 {
  float value;
};

SIMT_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
SIMT_HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

namespace detail {

SIMT_HOST_DEVICE uint16_t round_to_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the NaN that the instruction makes
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

SIMT_HOST_DEVICE uint16_t round_to_half(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  uint32_t kept, rest, tie;
  if (magnitude >= 0x38800000u) {  // normal: 13 bits fewer, the exponent's bias 112 less
    kept = (magnitude >> 13) - (112u << 10), rest = magnitude & 0x1fffu, tie = 0x1000u;
  } else {  // subnormal: units of 2^-24
    const uint32_t shift = 126u - (magnitude >> 23);
    if (shift > 24u) return static_cast<uint16_t>(sign);
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
  }
  if (rest > tie || (rest == tie && (kept & 1u))) ++kept;
  return static_cast<uint16_t>(sign | kept);
#endif
}

SIMT_HOST_DEVICE float half_to_float(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31u) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent) return bits_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -value : value;
#endif
}

}  // namespace detail

// The bits of a tf32 operand: to nearest, ties away from zero, 13 bits fewer.
SIMT_HOST_DEVICE uint32_t to_tf32(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  if ((bits & 0x7fffffffu) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;
#endif
}

SIMT_HOST_DEVICE float to_float(float value) { return value; }
SIMT_HOST_DEVICE float to_float(bf16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }
SIMT_HOST_DEVICE float to_float(half value) { return detail::half_to_float(value.bits); }
SIMT_HOST_DEVICE float to_float(tf32 value) { return value.value; }

// from_float<T>(value), rounded to nearest even.
template <typename T>
SIMT_HOST_DEVICE T from_float(float value);
template <>
SIMT_HOST_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
SIMT_HOST_DEVICE bf16 from_float<bf16>(float value) {
  return {detail::round_to_bf16(value)};
}
template <>
SIMT_HOST_DEVICE half from_float<half>(float value) {
  return {detail::round_to_half(value)};
}

template <>
SIMT_HOST_DEVICE tf32 from_float<tf32>(float value) {
  return {bits_float(to_tf32(value))};
}

// Two floats rounded to T in one register, `low` in the low half: what an mma fragment holds.
template <typename T>
SIMT_HOST_DEVICE uint32_t pack_pair(float low, float high);
template <>
SIMT_HOST_DEVICE uint32_t pack_pair<bf16>(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return detail::round_to_bf16(low) | static_cast<uint32_t>(detail::round_to_bf16(high)) << 16;
#endif
}
template <>
SIMT_HOST_DEVICE uint32_t pack_pair<half>(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return detail::round_to_half(low) | static_cast<uint32_t>(detail::round_to_half(high)) << 16;
#endif
}
template <typename T>
SIMT_HOST_DEVICE float pair_low(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <typename T>
SIMT_HOST_DEVICE float pair_high(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

}  // namespace msg3d::simt
