// The operands of one lane of a warp collective; they stand on the lane's stack while it waits for the others.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace msg3d::simt::emulator {

struct MmaOperands {
  float* d;  // accumulators in, results out
  const uint32_t *a, *b;
};
struct LdmatrixOperands {
  uint32_t* r;
  uint32_t address;
};
struct ShuffleOperands {
  uint32_t value, lanes, clamp;  // operands a, b and c of shfl.sync
  uint32_t result;
  bool valid;
};
struct BallotOperands {
  bool predicate;
  uint32_t bits;
};

// shfl.sync: the value in `result`, and whether its lane was in range.
bool shuffle_ptx(uint32_t& result, uint32_t value, Shuffle mode, uint32_t lanes, uint32_t clamp);

}  // namespace msg3d::simt::emulator
