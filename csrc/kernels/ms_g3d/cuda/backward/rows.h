// Rows of elements in shared memory: `pitch` chunks of 16 bytes each, a multiple of four. Chunks are permuted within
// groups of four or eight, so that ldmatrix over any eight consecutive rows and cp.async along a row both touch every
// bank once.
#pragma once

#include "../elements.h"

namespace msg3d::ms_g3d::cuda {

// Byte offset of chunk `chunk` of row `row`.
SIMT_DEVICE int row_offset(int row, int chunk, int pitch) {
  const int mask = pitch & 4 ? (row >> 1) & 3 : row & 7;
  return (row * pitch + (chunk ^ mask)) * 16;
}

// The same for rows of 32 elements.
template <typename T>
constexpr int kRow32Chunks = 32 / kPerChunk<T>;
template <typename T>
SIMT_DEVICE int row32_offset(int row, int chunk) {
  return row_offset(row, chunk, kRow32Chunks<T>);
}

}  // namespace msg3d::ms_g3d::cuda
