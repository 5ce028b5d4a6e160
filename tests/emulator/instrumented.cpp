// How plain loads and stores of host-compiled kernels are seen: they are compiled with -fsanitize=thread, whose hooks
// are defined here instead of in libtsan. What touches shared memory or a buffer goes through the same checks as on
// route P; the stacks of lanes and everything that host code does outside of a launch is let pass.
#include "runtime.h"

namespace msg3d::simt::emulator {
namespace {

void touch(const void* pointer, int bytes, bool write, bool aligned) {
  if (!inside || running().fiber.holds(pointer)) return;
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  site = 0;
  if (is_shared(pointer)) {
    const uint32_t offset = shared_address(pointer) - kSharedBase;
    if (offset + static_cast<uint32_t>(bytes) > static_cast<uint32_t>(block.shared_bytes)) {
      fail("out of bounds", std::string(write ? "write" : "read") + " of " + std::to_string(bytes) +
                                " bytes at shared+" + hexadecimal(offset) + " of " +
                                std::to_string(block.shared_bytes) + " bytes of shared memory");
    }
    if (aligned && offset % static_cast<uint32_t>(bytes)) fail("misaligned", "shared+" + hexadecimal(offset));
    if (checking) check_shared(offset, bytes, write, static_cast<uint16_t>(running().index));
    return;
  }
  const int buffer = find_buffer(pointer, static_cast<size_t>(bytes));
  if (buffer >= 0) {
    if (aligned && address % static_cast<uint64_t>(bytes)) fail("misaligned", describe_address(address));
    if (checking) check_global(buffer, buffer_offset(buffer, address), bytes, write);
  } else if (in_arena(pointer)) {
    fail("out of bounds", std::string(write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " +
                              describe_address(address));
  }
}

}  // namespace
}  // namespace msg3d::simt::emulator

using msg3d::simt::emulator::touch;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define MSG3D_HOOKS(n)                                                  \
  void __tsan_read##n(void* p) { touch(p, n, false, true); }            \
  void __tsan_write##n(void* p) { touch(p, n, true, true); }            \
  void __tsan_unaligned_read##n(void* p) { touch(p, n, false, false); } \
  void __tsan_unaligned_write##n(void* p) { touch(p, n, true, false); } \
  void __tsan_volatile_read##n(void* p) { touch(p, n, false, true); }   \
  void __tsan_volatile_write##n(void* p) { touch(p, n, true, true); }
MSG3D_HOOKS(1)
MSG3D_HOOKS(2)
MSG3D_HOOKS(4)
MSG3D_HOOKS(8)
MSG3D_HOOKS(16)
#undef MSG3D_HOOKS
void __tsan_read_range(void* p, unsigned long n) { touch(p, static_cast<int>(n), false, false); }
void __tsan_write_range(void* p, unsigned long n) { touch(p, static_cast<int>(n), true, false); }
}
