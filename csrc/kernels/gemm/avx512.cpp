// AVX-512: 12 rows of two 64-byte vectors leave 8 of 32 registers for b and a. Compiled with -mavx512f.
#include "fused_microkernel.h"

namespace msg3d {
namespace {

struct Target {
  static constexpr int kVectorBytes = 64;
  static constexpr int kMaxRows = 12;
  static constexpr int kRegisters = 32;
};

}  // namespace

extern const Isa kAvx512 = {"avx512", all_products<Target, float>(), all_products<Target, double>()};

}  // namespace msg3d
