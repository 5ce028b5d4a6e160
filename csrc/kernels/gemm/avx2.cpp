// AVX2 with FMA: 6 rows of two 32-byte vectors leave 2 of 16 registers for b and 1 for a. Compiled with -mavx2 -mfma.
#include "fused_microkernel.h"

namespace msg3d {
namespace {

struct Target {
  static constexpr int kVectorBytes = 32;
  static constexpr int kMaxRows = 6;
  static constexpr int kRegisters = 16;
};

}  // namespace

extern const Isa kAvx2 = {"avx2", all_products<Target, float>(), all_products<Target, double>()};

}  // namespace msg3d
