// Vectors of 16 bytes, which every machine has, for the loops that a compiler leaves as they are.
#pragma once

#include <cstdint>
#include <cstring>

namespace msg3d::folded {

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(16)));
  static constexpr int64_t kLanes = 16 / sizeof(T);

  static type load(const T* p) {
    type value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  static void store(T* p, type value) { std::memcpy(p, &value, sizeof(value)); }
};

}  // namespace msg3d::folded
