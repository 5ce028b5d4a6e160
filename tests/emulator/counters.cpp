// What a GPU's pipes would be asked for. Lanes run one after another here, so each logs its accesses under a key that
// all lanes of one execution of an instruction share; the log of a warp is gathered by that key.
//   shared memory  a wavefront serves 128 bytes: 32 lanes of 4 bytes, 16 of 8 or 8 of 16; lanes of one such group that
//                  want different words of one bank need one more each. ldmatrix: 8 rows of 16 bytes a wavefront.
//   global memory  the distinct 32-byte sectors that a warp's instruction touches
#include <algorithm>
#include <cstring>

#include "runtime.h"

namespace msg3d::simt::emulator {

namespace {

constexpr int kBanks = 32, kSectorBytes = 32;

struct Gathered {
  AccessRecord record;
  int lane;
};

// Wavefronts that these words, of one group of lanes, take.
int wavefronts(uint32_t* words, int count) {
  std::sort(words, words + count);
  const uint32_t* const end = std::unique(words, words + count);
  int per_bank[kBanks] = {}, most = 1;
  for (const uint32_t* word = words; word != end; ++word) most = std::max(most, ++per_bank[*word % kBanks]);
  return most;
}

void count_shared(const Gathered* group, int count) {
  Wavefronts& sum = counting->shared[group[0].record.access];
  const int bytes = group[0].record.bytes, lanes_at_once = bytes <= 4 ? kLanes : 128 / bytes;
  for (int i = 0; i < count;) {
    const int phase = group[i].lane / lanes_at_once;
    uint32_t words[64];
    int used = 0;
    for (; i < count && group[i].lane / lanes_at_once == phase; ++i) {
      const uint32_t first = static_cast<uint32_t>(group[i].record.address / 4);
      for (int w = 0; w < std::max(1, bytes / 4); ++w) words[used++] = first + w;
    }
    const int needed = wavefronts(words, used);
    sum.count += needed, sum.least += 1;
    block.interval.wavefronts += needed;
  }
}

void count_global(const Gathered* group, int count) {
  Sectors& sum = counting->global[buffer_name(group[0].record.buffer)];
  uint64_t sectors[2 * kLanes];
  int used = 0;
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    const AccessRecord& record = group[i].record;
    sectors[used++] = record.address / kSectorBytes;
    sectors[used++] = (record.address + record.bytes - 1) / kSectorBytes;
    bytes += record.bytes;
  }
  std::sort(sectors, sectors + used);
  const int64_t distinct = std::unique(sectors, sectors + used) - sectors;
  (group[0].record.write ? sum.written : sum.read) += distinct;
  (group[0].record.write ? sum.bytes_written : sum.bytes_read) += bytes;
}

}  // namespace

void record_access(uint64_t address, int buffer, int bytes, bool write, AccessClass access, int part) {
  if (site == 0) return;  // host-compiled code: its loads and stores are not those of a GPU
  const uint64_t key = site_key * 2 + static_cast<uint64_t>(part);
  running().log.push_back({key, address, buffer, static_cast<uint8_t>(bytes), static_cast<uint8_t>(access), write});
}

void flush_log(Warp& warp) {
  static std::vector<Gathered> all;
  all.clear();
  for (int l = 0; l < kLanes; ++l) {
    for (const AccessRecord& record : warp.lanes[l]->log) all.push_back({record, l});
    warp.lanes[l]->log.clear();
  }
  std::sort(all.begin(), all.end(), [](const Gathered& a, const Gathered& b) {
    if (a.record.key != b.record.key) return a.record.key < b.record.key;
    return a.record.buffer != b.record.buffer ? a.record.buffer < b.record.buffer : a.lane < b.lane;
  });
  for (size_t i = 0; i < all.size();) {
    size_t end = i + 1;
    while (end < all.size() && all[end].record.key == all[i].record.key &&
           all[end].record.buffer == all[i].record.buffer && all[end].lane != all[end - 1].lane) {
      ++end;
    }
    const int count = static_cast<int>(end - i);
    if (all[i].record.buffer < 0) {
      count_shared(&all[i], count);
    } else {
      count_global(&all[i], count);
    }
    i = end;
  }
}

void count_ldmatrix(const uint32_t* offsets, int matrices) {
  for (int m = 0; m < matrices; ++m) {
    uint32_t words[32];
    for (int row = 0; row < 8; ++row) {
      for (uint32_t w = 0; w < 4; ++w) words[row * 4 + w] = offsets[m * 8 + row] / 4 + w;
    }
    const int needed = wavefronts(words, 32);
    counting->shared[kLdmatrix].count += needed, counting->shared[kLdmatrix].least += 1;
    block.interval.wavefronts += needed;
  }
}

void count_mma(const Warp& warp, int clocks) {
  if (!counting) return;
  ++counting->mma;
  counting->mma_clocks[warp.index % 4] += clocks;
  block.interval.mma_clocks[warp.index % 4] += clocks;
}

void end_interval() {
  const Interval& done = block.interval;
  const int64_t busiest = *std::max_element(done.mma_clocks, done.mma_clocks + 4);
  ++counting->intervals;
  counting->interval_mma += busiest;
  counting->interval_a100 += std::max(busiest, done.wavefronts);
  counting->interval_h100 += std::max(busiest / 2, done.wavefronts);
  block.interval = {};
}

}  // namespace msg3d::simt::emulator
