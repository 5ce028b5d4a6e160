// Host twins of simt.h: the same names and meanings for a C++ compiler, on the runtime of tests/emulator. Every CUDA
// thread is a fiber there; what needs other threads (collectives, barriers) or watching (cp.async) is a call into it.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#define SIMT_KERNEL(threads, blocks_per_sm) __attribute__((visibility("default")))
#define SIMT_DEVICE inline

namespace msg3d::simt {
namespace emulator {

// The CUDA thread that runs now.
struct Thread {
  int index, block[3], grid[3];
};
extern Thread* current;

enum class Element { kBf16, kHalf, kTf32 };
enum class Shuffle { kIndex, kXor, kUp, kDown };

unsigned char* shared_base();                  // of the running block
uint32_t shared_address(const void* pointer);  // the address within the shared window
void block_barrier();
void named_barrier(int id, int threads);
void warp_barrier();
void cp_async(uint32_t shared, const void* global, int bytes, int source_bytes);
void cp_async_commit();
void cp_async_wait(int pending);
void ldmatrix(uint32_t* r, int count, bool transposed, uint32_t shared);
void mma(Element element, int k, float* d, const uint32_t* a, const uint32_t* b);
uint32_t shuffle(uint32_t value, Shuffle mode, int lane);
uint32_t ballot(bool predicate);

// A launch as the runtime sees it: the kernel's address names it, `call` runs one thread on its arguments.
struct Launch {
  const void* kernel;
  void (*call)(const void* kernel, void* const* arguments);
  void* const* arguments;
  Grid grid;
  int threads, shared_bytes;
};
int launch(const Launch& launch);
const char* error_text(int status);

template <typename... Parameters, size_t... I>
int launch_with(void (*kernel)(Parameters...), Grid grid, int threads, int shared_bytes,
                std::tuple<Parameters...>& values, std::index_sequence<I...>) {
  void* arguments[] = {static_cast<void*>(&std::get<I>(values))..., nullptr};
  const auto call = [](const void* at, void* const* from) {
    reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(at))(*static_cast<Parameters*>(from[I])...);
  };
  return launch({reinterpret_cast<const void*>(kernel), call, arguments, grid, threads, shared_bytes});
}

template <typename T, typename Operation>
T by_words(T value, Operation operation) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) word = operation(word);
  memcpy(&value, words, sizeof(T));
  return value;
}

}  // namespace emulator

SIMT_DEVICE int thread_index() { return emulator::current->index; }
SIMT_DEVICE int lane_index() { return emulator::current->index & 31; }
SIMT_DEVICE int warp_index() { return emulator::current->index >> 5; }
SIMT_DEVICE int block_x() { return emulator::current->block[0]; }
SIMT_DEVICE int block_y() { return emulator::current->block[1]; }
SIMT_DEVICE int block_z() { return emulator::current->block[2]; }
SIMT_DEVICE int grid_x() { return emulator::current->grid[0]; }
SIMT_DEVICE int grid_y() { return emulator::current->grid[1]; }
SIMT_DEVICE int grid_z() { return emulator::current->grid[2]; }
SIMT_DEVICE int opaque(int value) { return value; }

template <typename T>
SIMT_DEVICE T* shared_memory(int byte_offset = 0) {
  return reinterpret_cast<T*>(emulator::shared_base() + byte_offset);
}
SIMT_DEVICE uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

SIMT_DEVICE void block_barrier() { emulator::block_barrier(); }
SIMT_DEVICE void warp_barrier() { emulator::warp_barrier(); }
SIMT_DEVICE void named_barrier(int id, int threads) { emulator::named_barrier(id, threads); }

template <int BYTES>
SIMT_DEVICE void cp_async(uint32_t shared, const void* global, int source_bytes = BYTES) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
  emulator::cp_async(shared, global, BYTES, source_bytes);
}
SIMT_DEVICE void cp_async_commit() { emulator::cp_async_commit(); }
template <int PENDING>
SIMT_DEVICE void cp_async_wait() {
  emulator::cp_async_wait(PENDING);
}

SIMT_DEVICE void ldmatrix_x1(uint32_t& r, uint32_t shared) { emulator::ldmatrix(&r, 1, false, shared); }
SIMT_DEVICE void ldmatrix_x1_trans(uint32_t& r, uint32_t shared) { emulator::ldmatrix(&r, 1, true, shared); }
SIMT_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared) { emulator::ldmatrix(r, 2, false, shared); }
SIMT_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared) { emulator::ldmatrix(r, 2, true, shared); }
SIMT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) { emulator::ldmatrix(r, 4, false, shared); }
SIMT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) { emulator::ldmatrix(r, 4, true, shared); }

namespace emulator {
template <typename T>
constexpr Element element_of() {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, half>, "mma takes bf16 and half");
  return std::is_same_v<T, bf16> ? Element::kBf16 : Element::kHalf;
}
}  // namespace emulator

template <typename T>
SIMT_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[] = {b0, b1};
  emulator::mma(emulator::element_of<T>(), 16, d, a, b);
}
template <typename T>
SIMT_DEVICE void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  const uint32_t a[] = {a0, a1};
  emulator::mma(emulator::element_of<T>(), 8, d, a, &b);
}
SIMT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[] = {b0, b1};
  emulator::mma(emulator::Element::kTf32, 8, d, a, b);
}

template <typename T>
SIMT_DEVICE T shuffle(T value, int source_lane) {
  return emulator::by_words(value,
                            [=](uint32_t w) { return emulator::shuffle(w, emulator::Shuffle::kIndex, source_lane); });
}
template <typename T>
SIMT_DEVICE T shuffle_xor(T value, int lane_mask) {
  return emulator::by_words(value,
                            [=](uint32_t w) { return emulator::shuffle(w, emulator::Shuffle::kXor, lane_mask); });
}
template <typename T>
SIMT_DEVICE T shuffle_up(T value, int lanes) {
  return emulator::by_words(value, [=](uint32_t w) { return emulator::shuffle(w, emulator::Shuffle::kUp, lanes); });
}
template <typename T>
SIMT_DEVICE T shuffle_down(T value, int lanes) {
  return emulator::by_words(value, [=](uint32_t w) { return emulator::shuffle(w, emulator::Shuffle::kDown, lanes); });
}
SIMT_DEVICE uint32_t movmatrix_trans(uint32_t pair) {
  const int lane = lane_index(), half = 16 * (lane >> 2 & 1), from = (lane & 3) * 8 + (lane >> 3);
  const uint32_t low = shuffle(pair, from), high = shuffle(pair, from + 4);
  return (low >> half & 0xffffu) | (high >> half & 0xffffu) << 16;
}

SIMT_DEVICE bool vote_any(bool predicate) { return emulator::ballot(predicate) != 0; }
SIMT_DEVICE bool vote_all(bool predicate) { return emulator::ballot(predicate) == 0xffffffffu; }
SIMT_DEVICE uint32_t vote_ballot(bool predicate) { return emulator::ballot(predicate); }

template <typename Bits>
SIMT_DEVICE Bits load_vector(const void* pointer) {
  static_assert(sizeof(Bits) == 8 || sizeof(Bits) == 16, "vectors have 8 or 16 bytes");
  return *static_cast<const Bits*>(pointer);
}
SIMT_DEVICE void store_vector(void* pointer, const Bits64& v) { *static_cast<Bits64*>(pointer) = v; }
SIMT_DEVICE void store_vector(void* pointer, const Bits128& v) { *static_cast<Bits128*>(pointer) = v; }
template <typename T>
SIMT_DEVICE T load_readonly(const T* pointer) {
  return *pointer;
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, int threads, int shared_bytes, Stream, Arguments... arguments) {
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  return emulator::launch_with(kernel, grid, threads, shared_bytes, values, std::index_sequence_for<Parameters...>{});
}
inline const char* error_text(int status) { return emulator::error_text(status); }

}  // namespace msg3d::simt
