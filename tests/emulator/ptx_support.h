// What transpiled PTX calls: memory by state space, and the instructions that C++ has no operator for. Registers are
// plain integers of their width; as<T>() reads one as what the instruction says it is.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "collectives.h"
#include "runtime.h"

namespace msg3d::simt::emulator::ptx {

template <typename To, typename From>
inline To as(From from) {
  if constexpr (sizeof(To) < sizeof(From)) {  // the low part of a wider register
    using Wide =
        std::conditional_t<sizeof(From) == 8, uint64_t, std::conditional_t<sizeof(From) == 4, uint32_t, uint16_t>>;
    using Narrow =
        std::conditional_t<sizeof(To) == 4, uint32_t, std::conditional_t<sizeof(To) == 2, uint16_t, uint8_t>>;
    Wide wide;
    memcpy(&wide, &from, sizeof(From));
    const Narrow narrow = static_cast<Narrow>(wide);
    To to;
    memcpy(&to, &narrow, sizeof(To));
    return to;
  } else {
    static_assert(sizeof(To) == sizeof(From), "register and instruction differ in width");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
  }
}

// ---- memory. Generic addresses are host addresses; those of shared memory lie within the block's.
inline unsigned char* at_shared(uint64_t address, int bytes, bool write) {
  return access_shared(static_cast<uint32_t>(address), bytes, write, write ? kStoreShared : kLoadShared);
}
inline unsigned char* at_global(uint64_t address, int bytes, bool write) {
  return access_global(address, bytes, write);
}
inline unsigned char* at_local(uint64_t address, int, bool) { return reinterpret_cast<unsigned char*>(address); }
inline unsigned char* at_generic(uint64_t address, int bytes, bool write) {
  const void* const pointer = reinterpret_cast<const void*>(address);
  return is_shared(pointer) ? at_shared(shared_address(pointer), bytes, write) : at_global(address, bytes, write);
}
inline uint64_t shared_to_generic(uint64_t address) {
  return reinterpret_cast<uint64_t>(shared_base()) + (address - kSharedBase);
}
inline uint64_t generic_to_shared(uint64_t address) {
  return address - reinterpret_cast<uint64_t>(shared_base()) + kSharedBase;
}

inline uint32_t transpose_matrix(uint32_t pair) { return movmatrix_trans(pair); }

// A loop that goes on for ever would hang the tests.
inline void count_step() {
  if (++running().steps > 200'000'000) fail("deadlock", "200 million rounds of loops");
}

// ---- integers
inline uint32_t mul_hi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
inline int32_t mul_hi(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<int64_t>(a) * b >> 32); }
inline uint16_t mul_hi(uint16_t a, uint16_t b) { return static_cast<uint16_t>(static_cast<uint32_t>(a) * b >> 16); }
inline int16_t mul_hi(int16_t a, int16_t b) { return static_cast<int16_t>(static_cast<int32_t>(a) * b >> 16); }
inline uint64_t mul_hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int64_t mul_hi(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<__int128>(a) * b >> 64); }

template <typename T>
inline T divide(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) fail("launch", "integer division by zero");
    if (std::is_signed_v<T> && b == static_cast<T>(-1))
      return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
  return a / b;
}
template <typename T>
inline T remainder(T a, T b) {
  if (b == 0) fail("launch", "integer division by zero");
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}
inline uint32_t funnel_shift(bool left, bool clamp, uint32_t low, uint32_t high, uint32_t by) {
  const uint32_t n = clamp ? (by < 32 ? by : 32) : by & 31;
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<uint32_t>(left ? both << n >> 32 : both >> n);
}
template <typename T>
inline T extract_bits(T a, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  constexpr int kTop = sizeof(T) * 8 - 1;
  const int first = static_cast<int>(position & 0xff), bits = static_cast<int>(length & 0xff);
  U result = 0;
  const int sign_at = first + bits - 1 < kTop ? first + bits - 1 : kTop;
  const U sign = std::is_signed_v<T> && bits != 0 ? static_cast<U>(a) >> sign_at & 1 : 0;
  for (int i = 0; i <= kTop; ++i) {
    const U bit = i < bits && first + i <= kTop ? static_cast<U>(a) >> (first + i) & 1 : sign;
    result |= bit << i;
  }
  return static_cast<T>(result);
}
template <typename U>
inline U insert_bits(U a, U b, uint32_t position, uint32_t length) {
  const int first = static_cast<int>(position & 0xff), bits = static_cast<int>(length & 0xff);
  U result = b;
  for (int i = 0; i < bits && first + i < static_cast<int>(sizeof(U)) * 8; ++i) {
    result = (result & ~(U{1} << (first + i))) | (a >> i & 1) << (first + i);
  }
  return result;
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t select = selector >> (4 * i) & 0xf;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (select & 7))) & 0xff;
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t row = 0; row < 8; ++row) {
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  }
  return result;
}
inline uint32_t reverse_bits(uint32_t a) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (a >> i & 1) << (31 - i);
  return result;
}
inline uint32_t count_leading_zeros(uint32_t a) { return a ? static_cast<uint32_t>(__builtin_clz(a)) : 32; }
inline uint32_t count_leading_zeros(uint64_t a) { return a ? static_cast<uint32_t>(__builtin_clzll(a)) : 64; }
inline uint32_t count_bits(uint64_t a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }

// ---- floats
template <typename T>
inline T canonical_nan() {
  if constexpr (sizeof(T) == 4) return as<T>(uint32_t{0x7fffffff});
  return as<T>(uint64_t{0x7fffffffffffffff});
}
template <typename T>
inline T minimum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {  // a NaN gives way; -0 is less than +0
    if (std::isnan(a)) return std::isnan(b) ? canonical_nan<T>() : b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return a < b ? a : b;
}
template <typename T>
inline T maximum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a)) return std::isnan(b) ? canonical_nan<T>() : b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a > b ? a : b;
}

enum class Round { kNearest, kZero, kDown, kUp };
template <typename F>
inline F round_to_integer(F value, Round how) {
  switch (how) {
    case Round::kNearest:
      return std::nearbyint(value);
    case Round::kZero:
      return std::trunc(value);
    case Round::kDown:
      return std::floor(value);
    case Round::kUp:
      return std::ceil(value);
  }
  return value;
}
// An integral float as an integer: clamped to what that holds; a NaN is 0, or the top bit alone where 64 bits take
// part.
template <typename I, typename F>
inline I to_integer(F value) {
  using Limits = std::numeric_limits<I>;
  if (std::isnan(value)) {
    return sizeof(I) == 8 || sizeof(F) == 8 ? static_cast<I>(std::make_unsigned_t<I>{1} << (sizeof(I) * 8 - 1)) : I{0};
  }
  const F limit = std::ldexp(F{1}, Limits::digits);  // one more than the largest
  if (value >= limit) return Limits::max();
  if (value < (std::is_signed_v<I> ? -limit : F{0})) return Limits::min();
  return static_cast<I>(value);
}

}  // namespace msg3d::simt::emulator::ptx
