// Vectors of 16 bytes: SSE2 on x86-64, NEON on aarch64, whatever the compiler makes of them elsewhere.
#include "fused_microkernel.h"

namespace msg3d {
namespace {

struct Target {
  static constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
  static constexpr int kRegisters = 32;
  static constexpr int kMaxRows = 12;  // 32 registers
#else
  static constexpr int kRegisters = 16;
  static constexpr int kMaxRows = 6;
#endif
};

}  // namespace

extern const Isa kPortable = {"portable", all_products<Target, float>(), all_products<Target, double>()};

}  // namespace msg3d
