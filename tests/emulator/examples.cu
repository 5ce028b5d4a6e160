// Small kernels that the emulators' own tests run: each uses a part of simt.h the way the real ones do.
#include "../../csrc/kernels/simt/simt.h"

namespace msg3d::examples {

using namespace msg3d::simt;

// ---- out[i] = a[i] + b[i], four at a time, the tail one by one
struct AddParameters {
  const float *a, *b;
  float* out;
  int n;
};

SIMT_KERNEL(128, 1) void add(AddParameters p) {
  const int first = 4 * (block_x() * 128 + thread_index());
  if (first + 4 <= p.n) {
    const Bits128 a = load_vector<Bits128>(p.a + first), b = load_vector<Bits128>(p.b + first);
    store_vector(p.out + first,
                 Bits128{float_bits(bits_float(a.x) + bits_float(b.x)), float_bits(bits_float(a.y) + bits_float(b.y)),
                         float_bits(bits_float(a.z) + bits_float(b.z)), float_bits(bits_float(a.w) + bits_float(b.w))});
  } else {
    for (int i = first; i < p.n; ++i) p.out[i] = p.a[i] + p.b[i];
  }
}

int launch_add(AddParameters p, Stream stream) {
  return launch(add, Grid{static_cast<unsigned>((p.n + 511) / 512)}, 128, 0, stream, p);
}

// ---- C (M, N) float = A (M, K) B (N, K)^T of T, all row-major, K and N multiples of 8; M and N may be ragged. A block
// owns 32 x 32 of C, warp (i, j) of its 2 x 2 warps 16 x 16; chunks of 16 along k are staged twice over by cp.async.
struct GemmParameters {
  const void *a, *b;
  float* c;
  int M, N, K;
};

struct GemmTile {
  static constexpr int kRows = 32, kColumns = 32, kDepth = 16, kThreads = 128;
  static constexpr int kPitch = kDepth + 8;  // an odd multiple of 16 bytes: ldmatrix without bank conflicts
  static constexpr int kStageBytes = (kRows + kColumns) * kPitch * 2, kSharedBytes = 2 * kStageBytes;
};

template <typename T>
SIMT_DEVICE void stage_chunk(const GemmParameters& p, int chunk, uint32_t stage) {
  using Tile = GemmTile;
  const int thread = opaque(thread_index());
  const int row = thread / 2, half_row = thread % 2;  // 64 rows of A and B, 2 times 16 bytes each
  const bool of_a = row < Tile::kRows;
  const int line = of_a ? block_x() * Tile::kRows + row : block_y() * Tile::kColumns + row - Tile::kRows;
  const int k = chunk * Tile::kDepth + half_row * 8;
  const bool inside = line < (of_a ? p.M : p.N) && k < p.K;
  const T* matrix = static_cast<const T*>(of_a ? p.a : p.b);
  const T* source = inside ? matrix + static_cast<int64_t>(line) * p.K + k : matrix;
  cp_async<16>(stage + (row * Tile::kPitch + half_row * 8) * 2, source, inside ? 16 : 0);
  cp_async_commit();
}

template <typename T>
SIMT_KERNEL(GemmTile::kThreads, 1)
void gemm(GemmParameters p) {
  using Tile = GemmTile;
  const uint32_t shared = shared_address(shared_memory<unsigned char>());
  const int lane = lane_index(), warp_row = warp_index() / 2, warp_column = warp_index() % 2;
  const int chunks = (p.K + Tile::kDepth - 1) / Tile::kDepth;
  float d[2][4] = {};
  stage_chunk<T>(p, 0, shared);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const uint32_t stage = shared + (chunk % 2) * Tile::kStageBytes;
    if (chunk + 1 < chunks) {
      stage_chunk<T>(p, chunk + 1, shared + ((chunk + 1) % 2) * Tile::kStageBytes);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    block_barrier();  // everybody's copies of this chunk have landed
    uint32_t a[4], b[4];
    ldmatrix_x4(a, stage + ((warp_row * 16 + lane % 16) * Tile::kPitch + lane / 16 * 8) * 2);
    ldmatrix_x4(
        b, stage + ((Tile::kRows + warp_column * 16 + lane % 8 + lane / 16 * 8) * Tile::kPitch + lane / 8 % 2 * 8) * 2);
    mma_m16n8k16<T>(d[0], a, b[0], b[1]);
    mma_m16n8k16<T>(d[1], a, b[2], b[3]);
    block_barrier();  // nobody reads this stage any more: the next round fills it
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) {
      const int row = block_x() * Tile::kRows + warp_row * 16 + lane / 4 + i / 2 * 8;
      const int column = block_y() * Tile::kColumns + warp_column * 16 + n * 8 + lane % 4 * 2 + i % 2;
      if (row < p.M && column < p.N) p.c[static_cast<int64_t>(row) * p.N + column] = d[n][i];
    }
}

int launch_gemm(GemmParameters p, bool is_half, Stream stream) {
  using Tile = GemmTile;
  const Grid grid{static_cast<unsigned>((p.M + Tile::kRows - 1) / Tile::kRows),
                  static_cast<unsigned>((p.N + Tile::kColumns - 1) / Tile::kColumns)};
  return launch(is_half ? gemm<half> : gemm<bf16>, grid, Tile::kThreads, Tile::kSharedBytes, stream, p);
}

}  // namespace msg3d::examples

extern "C" int examples_add(const float* a, const float* b, float* out, int64_t n) {
  return msg3d::examples::launch_add({a, b, out, static_cast<int>(n)}, nullptr);
}

extern "C" int examples_gemm(const void* a, const void* b, float* c, int64_t M, int64_t N, int64_t K, int64_t is_half) {
  const msg3d::examples::GemmParameters p{a, b, c, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K)};
  return msg3d::examples::launch_gemm(p, is_half != 0, nullptr);
}
