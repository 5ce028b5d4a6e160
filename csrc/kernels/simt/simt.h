// The primitives that CUDA kernels are written with: the only file with PTX. Compiled by nvcc they are the device's
// instructions; with MSG3D_EMULATED defined, any C++ compiler gets host twins (emulated.h) that tests/emulator runs.
//
// How a kernel is written
//   struct Parameters { const bf16* x; bf16* y; int rows; };             // one plain struct, by value; sizes are int
//   template <class Tile>                                                // what tests must shrink is a Tile constant
//   SIMT_KERNEL(Tile::kThreads, Tile::kBlocksPerSM) void scale(Parameters p) { ... }
// in a named namespace: its mangled name is what ties source, PTX and cubin together. Helpers are SIMT_DEVICE. Rules:
//   * shared memory is shared_memory<T>(byte offset) only, no static __shared__; its content starts undefined
//   * every thread of the block reaches every block_barrier(), all 32 lanes every warp collective (shuffle_*, vote_*,
//     ldmatrix_*, mma_*, warp_barrier): no early return; predicate the loads and stores instead
//   * no __CUDA_ARCH__, cooperative groups, textures, constant memory, atomics; loops take `#pragma unroll [1]`
//   * lanes of one warp that exchange data through memory put warp_barrier() between; warps, block_barrier()
//   * cp_async data is there for its own thread after cp_async_wait, for others after a barrier behind that wait
//
// How it is launched, from host code of the same .cu file
//   return launch(scale<Tile>, Grid{blocks}, Tile::kThreads, Tile::kSharedBytes, stream, Parameters{...});
// It raises the limit on dynamic shared memory, skips an empty grid, launches and returns a CUDA status: 0 is success,
// error_text() explains the others.
#pragma once

#include <cstdint>

#include "types.h"

namespace msg3d::simt {

using Stream = void*;  // a cudaStream_t

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// What 64 and 128 bits of memory are moved as; addresses must be multiples of the size.
struct alignas(8) Bits64 {
  uint32_t x, y;
};
struct alignas(16) Bits128 {
  uint32_t x, y, z, w;
};

}  // namespace msg3d::simt

#if defined(MSG3D_EMULATED)

#include "emulated.h"

#else

#include <cuda_runtime.h>

#include <type_traits>

#define SIMT_KERNEL(threads, blocks_per_sm) __global__ __launch_bounds__(threads, blocks_per_sm)
#define SIMT_DEVICE __device__ __forceinline__

namespace msg3d::simt {

extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];

// ---- indices. Blocks are one-dimensional: thread_index() counts 0 .. threads-1, warp w holds threads 32w .. 32w+31.
SIMT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SIMT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31); }
SIMT_DEVICE int warp_index() { return static_cast<int>(threadIdx.x >> 5); }
SIMT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
SIMT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
SIMT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
SIMT_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
SIMT_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
SIMT_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }

// Hides where a value came from: what is computed from it is computed here, not hoisted into registers far above.
SIMT_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- shared memory
template <typename T>
SIMT_DEVICE T* shared_memory(int byte_offset = 0) {
  return reinterpret_cast<T*>(dynamic_shared_memory + byte_offset);
}
// The 32-bit address that ldmatrix and cp_async take; add bytes to it freely.
SIMT_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers
SIMT_DEVICE void block_barrier() { __syncthreads(); }
SIMT_DEVICE void warp_barrier() { __syncwarp(); }
// Barrier `id` (1 .. 15) among `threads` threads, a multiple of 32: whole warps that all come with the same two values.
SIMT_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- cp.async: BYTES (4, 8 or 16) from global to shared memory; of the source only the first `source_bytes` are read,
// the rest is filled with zeros. Nothing is read if it is 0, but the pointer must still be a valid, aligned one.
template <int BYTES>
SIMT_DEVICE void cp_async(uint32_t shared, const void* global, int source_bytes = BYTES) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
  if constexpr (BYTES == 16) {  // past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(BYTES),
                 "r"(source_bytes)
                 : "memory");
  }
}
SIMT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's most recent groups are under way.
template <int PENDING>
SIMT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- ldmatrix: 8x8 matrices of 16-bit elements. Lanes 8i .. 8i+7 give the addresses of the rows of matrix i (16
// bytes, 16-byte aligned). Lane l receives elements (l/4, 2(l%4)) and (l/4, 2(l%4)+1) of every matrix, low half first;
// of the transposed matrix with ldmatrix_*_trans.
SIMT_DEVICE void ldmatrix_x1(uint32_t& r, uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(shared) : "memory");
}
SIMT_DEVICE void ldmatrix_x1_trans(uint32_t& r, uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(shared) : "memory");
}
SIMT_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}
SIMT_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}
SIMT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
SIMT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
// Lane l gives elements (l/4, 2(l%4)) and (l/4, 2(l%4)+1) of an 8x8 matrix and receives those of the transposed one.
SIMT_DEVICE uint32_t movmatrix_trans(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// ---- mma: d += A B with float accumulators, T = bf16 or half. With g = lane/4 and t = lane%4:
//   d[0..3]   rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1
//   a[0..3]   k16: (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8), each with its right neighbour; k8: the first two
//   b[0..1]   k16: (2t, g), (2t+8, g), each with the element below; k8: the first
template <typename T>
SIMT_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, half>, "mma_m16n8k16 takes bf16 and half");
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
template <typename T>
SIMT_DEVICE void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  } else {
    static_assert(std::is_same_v<T, half>, "mma_m16n8k8 takes bf16 and half");
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  }
}
// tf32, operands from to_tf32: a[0..3] are (g, t), (g+8, t), (g, t+4), (g+8, t+4); b are (t, g), (t+4, g).
SIMT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- warp collectives over all 32 lanes; T has 4 or 8 bytes
template <typename T>
SIMT_DEVICE T shuffle(T value, int source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}
template <typename T>
SIMT_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
template <typename T>
SIMT_DEVICE T shuffle_up(T value, int lanes) {
  return __shfl_up_sync(0xffffffffu, value, lanes);
}
template <typename T>
SIMT_DEVICE T shuffle_down(T value, int lanes) {
  return __shfl_down_sync(0xffffffffu, value, lanes);
}
SIMT_DEVICE bool vote_any(bool predicate) { return __any_sync(0xffffffffu, predicate) != 0; }
SIMT_DEVICE bool vote_all(bool predicate) { return __all_sync(0xffffffffu, predicate) != 0; }
SIMT_DEVICE uint32_t vote_ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// ---- vector loads and stores; load_readonly may go through the read-only cache: nobody writes there in this launch
template <typename Bits>
SIMT_DEVICE Bits load_vector(const void* pointer) {
  if constexpr (sizeof(Bits) == 16) {
    const uint4 v = *static_cast<const uint4*>(pointer);
    return {v.x, v.y, v.z, v.w};
  } else {
    const uint2 v = *static_cast<const uint2*>(pointer);
    return {v.x, v.y};
  }
}
SIMT_DEVICE void store_vector(void* pointer, const Bits64& v) { *static_cast<uint2*>(pointer) = make_uint2(v.x, v.y); }
SIMT_DEVICE void store_vector(void* pointer, const Bits128& v) {
  *static_cast<uint4*>(pointer) = make_uint4(v.x, v.y, v.z, v.w);
}
template <typename T>
SIMT_DEVICE T load_readonly(const T* pointer) {
  if constexpr (sizeof(T) == 2) {
    const uint16_t bits = __ldg(reinterpret_cast<const unsigned short*>(pointer));
    T value;
    memcpy(&value, &bits, 2);
    return value;
  } else {
    return __ldg(pointer);
  }
}
SIMT_DEVICE tf32 load_readonly(const tf32* pointer) { return {__ldg(&pointer->value)}; }
SIMT_DEVICE Bits64 load_readonly(const Bits64* pointer) {
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(pointer));
  return {v.x, v.y};
}
SIMT_DEVICE Bits128 load_readonly(const Bits128* pointer) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(pointer));
  return {v.x, v.y, v.z, v.w};
}

// ---- host: launching
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, int threads, int shared_bytes, Stream stream,
           Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != cudaSuccess) {
      cudaGetLastError();  // leave no error behind for the next caller
      return static_cast<int>(status);
    }
  }
  // clang-format off: it would split the chevrons
  kernel<<<dim3(grid.x, grid.y, grid.z), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(Parameters(arguments)...);
  // clang-format on
  return static_cast<int>(cudaGetLastError());
}
inline const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace msg3d::simt

#endif
