// Scratch memory, and the pieces of samples that tasks work on.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace msg3d {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that is not initialised, at a cache line's boundary.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t elements)
      : data_(static_cast<T*>(std::aligned_alloc(64, ceil_div(elements * sizeof(T) + 1, 64) * 64)), &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }
  T* operator+(int64_t offset) const { return data_.get() + offset; }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// Samples cut along time into pieces of `step` frames: the unit that a task works on and statistics are summed over.
struct Chunks {
  int64_t samples, frames, step;
  struct Piece {
    int64_t sample, first, last, index;  // frames [first, last)
    int64_t frames() const { return last - first; }
  };
  int64_t per_sample() const { return ceil_div(frames, step); }
  int64_t count() const { return samples * per_sample(); }
  Piece operator[](int64_t index) const {
    const int64_t first = index % per_sample() * step;
    return {index / per_sample(), first, first + step < frames ? first + step : frames, index};
  }
};

}  // namespace msg3d
