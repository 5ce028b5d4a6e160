// What a warp computes together, once all of its lanes have come: mma, ldmatrix, shuffles, votes. Fragment layouts are
// those of the PTX ISA; tests/test_emulator_fragments.py holds them to a table written independently.
#include "collectives.h"

#include <cstring>

#include "runtime.h"

namespace msg3d::simt::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8, kMaxDepth = 16;

float element_value(Element element, uint32_t word, int half_of) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * half_of));
  switch (element) {
    case Element::kBf16:
      return bits_float(static_cast<uint32_t>(bits) << 16);
    case Element::kHalf:
      return to_float(half{bits});
    case Element::kTf32:
      return bits_float(word & ~0x1fffu);
  }
  return 0;
}

// A word of a fragment holds `pair` elements along k; words are 8 bytes of k apart, that is 4 * pair elements.
void perform_mma(Warp& warp, Element element, int depth) {
  alignas(64) float a[kRows][kMaxDepth], b[kMaxDepth][kColumns], d[kRows][kColumns];
  const int pair = element == Element::kTf32 ? 1 : 2, words = depth / (4 * pair);
  for (int l = 0; l < kLanes; ++l) {
    const MmaOperands& from = *static_cast<const MmaOperands*>(warp.lanes[l]->request.data);
    const int g = l / 4, t = l % 4;
    for (int word = 0; word < words; ++word) {
      for (int p = 0; p < pair; ++p) {
        const int k = (word * 4 + t) * pair + p;
        a[g][k] = element_value(element, from.a[2 * word], p);
        a[g + 8][k] = element_value(element, from.a[2 * word + 1], p);
        b[k][g] = element_value(element, from.b[word], p);
      }
    }
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = from.d[i];
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const MmaOperands& to = *static_cast<const MmaOperands*>(warp.lanes[l]->request.data);
    for (int i = 0; i < 4; ++i) to.d[i] = d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
  }
  count_mma(warp, element == Element::kTf32 ? depth : depth / 2);
}

void perform_ldmatrix(Warp& warp, int matrices, bool transposed) {
  const uint16_t accessor = static_cast<uint16_t>(kWholeWarp | warp.index);
  uint16_t rows[4][8][8];
  uint32_t offsets[kLanes];
  for (int l = 0; l < 8 * matrices; ++l) {
    const LdmatrixOperands& from = *static_cast<const LdmatrixOperands*>(warp.lanes[l]->request.data);
    current = warp.lanes[l];  // whom a fault names
    const uint32_t offset = from.address - kSharedBase;
    if (from.address % 16)
      fail("misaligned", "ldmatrix row at shared+" + hexadecimal(offset) + ", not 16-byte aligned");
    if (offset > static_cast<uint32_t>(block.shared_bytes) || block.shared_bytes - offset < 16) {
      fail("out of bounds", "ldmatrix row at shared+" + hexadecimal(offset) + " of " +
                                std::to_string(block.shared_bytes) + " bytes of shared memory");
    }
    if (checking) check_shared(offset, 16, false, accessor);
    offsets[l] = offset;
    std::memcpy(rows[l / 8][l % 8], block.shared + offset, 16);
  }
  for (int l = 0; l < kLanes; ++l) {
    const LdmatrixOperands& to = *static_cast<const LdmatrixOperands*>(warp.lanes[l]->request.data);
    const int g = l / 4, t = l % 4;
    for (int m = 0; m < matrices; ++m) {
      const uint32_t low = transposed ? rows[m][2 * t][g] : rows[m][g][2 * t];
      const uint32_t high = transposed ? rows[m][2 * t + 1][g] : rows[m][g][2 * t + 1];
      to.r[m] = low | high << 16;
    }
  }
  if (counting) count_ldmatrix(offsets, matrices);
}

// The pseudocode of shfl in the PTX ISA.
void perform_shuffle(Warp& warp, Shuffle mode) {
  for (int l = 0; l < kLanes; ++l) {
    ShuffleOperands& to = *static_cast<ShuffleOperands*>(warp.lanes[l]->request.data);
    const int lanes_by = static_cast<int>(to.lanes & 31), clamp = static_cast<int>(to.clamp & 31);
    const int segment = static_cast<int>(to.clamp >> 8 & 31);
    const int last = (l & segment) | (clamp & ~segment), first = l & segment;
    int from = l;
    switch (mode) {
      case Shuffle::kUp:
        from = l - lanes_by, to.valid = from >= last;
        break;
      case Shuffle::kDown:
        from = l + lanes_by, to.valid = from <= last;
        break;
      case Shuffle::kXor:
        from = l ^ lanes_by, to.valid = from <= last;
        break;
      case Shuffle::kIndex:
        from = first | (lanes_by & ~segment), to.valid = from <= last;
        break;
    }
    if (!to.valid) from = l;
    to.result = static_cast<const ShuffleOperands*>(warp.lanes[from]->request.data)->value;
  }
}

void perform_ballot(Warp& warp) {
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (static_cast<const BallotOperands*>(warp.lanes[l]->request.data)->predicate) bits |= 1u << l;
  }
  for (Lane* lane : warp.lanes) static_cast<BallotOperands*>(lane->request.data)->bits = bits;
}

}  // namespace

void perform(Warp& warp, Kind kind, int detail) {
  Thread* const last = current;
  switch (kind) {
    case Kind::kMma:
      perform_mma(warp, static_cast<Element>(detail >> 8), detail & 0xff);
      break;
    case Kind::kLdmatrix:
      perform_ldmatrix(warp, detail & 0xff, detail >> 8 != 0);
      break;
    case Kind::kShuffle:
      perform_shuffle(warp, static_cast<Shuffle>(detail));
      break;
    case Kind::kBallot:
      perform_ballot(warp);
      break;
    default:
      break;
  }
  current = last;
}

void mma(Element element, int k, float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operands{d, a, b};
  arrive(Kind::kMma, static_cast<int>(element) << 8 | k, &operands);
}

void ldmatrix(uint32_t* r, int count, bool transposed, uint32_t shared) {
  LdmatrixOperands operands{r, shared};
  arrive(Kind::kLdmatrix, count | transposed << 8, &operands);
}

bool shuffle_ptx(uint32_t& result, uint32_t value, Shuffle mode, uint32_t lanes, uint32_t clamp) {
  ShuffleOperands operands{value, lanes, clamp, 0, false};
  arrive(Kind::kShuffle, static_cast<int>(mode), &operands);
  result = operands.result;
  return operands.valid;
}

uint32_t shuffle(uint32_t value, Shuffle mode, int lane) {
  uint32_t result;
  shuffle_ptx(result, value, mode, static_cast<uint32_t>(lane), mode == Shuffle::kUp ? 0 : 31);
  return result;
}

uint32_t ballot(bool predicate) {
  BallotOperands operands{predicate, 0};
  arrive(Kind::kBallot, 0, &operands);
  return operands.bits;
}

}  // namespace msg3d::simt::emulator
