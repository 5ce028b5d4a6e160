// What a test says to the emulator and hears from it: how to run, which memory there is, what went wrong, what was
// counted. Plain data; runtime.h is the inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/kernels/simt/simt.h"

namespace msg3d::simt::emulator {

enum class Landing { kLate, kEarly, kRandom };  // when the data of cp.async arrives

struct Options {
  uint64_t seed = 0;  // of block, warp and lane order and burst lengths
  Landing landing = Landing::kRandom;
  bool checks = true;  // races, uninitialised reads; bounds and alignment are always checked where they are seen
  bool count = false;  // wavefronts, sectors, intervals
  bool ptx = false;    // run what nvcc made of the kernels, not what the host compiler did
  bool strict = true;  // only registered buffers are global memory
};

enum AccessClass { kLoadShared, kStoreShared, kLdmatrix, kCopyShared, kAccessClasses };

struct Wavefronts {
  int64_t count = 0, least = 0;  // least: without bank conflicts
};
struct Sectors {  // of 32 bytes, as requested by warps
  int64_t read = 0, written = 0, bytes_read = 0, bytes_written = 0;
};

// Of one launch. Tensor-core work is in clocks of one sub-partition of an A100: 8 for an m16n8k16 of 16-bit elements.
struct Counters {
  std::string kernel;
  Grid grid;
  int threads = 0, shared_bytes = 0;
  int64_t mma = 0;                       // instructions of a warp
  int64_t mma_clocks[4] = {0, 0, 0, 0};  // per sub-partition, warp % 4
  Wavefronts shared[kAccessClasses];
  std::map<std::string, Sectors> global;  // by buffer
  // Sums over all barrier intervals of all blocks: the busiest sub-partition's clocks, and the longer of them and the
  // wavefronts, on an A100 and on an H100, whose tensor cores are twice as fast.
  int64_t intervals = 0, interval_mma = 0, interval_a100 = 0, interval_h100 = 0;
};

Options& options();

// Memory that kernels may touch; `name` appears in messages and counters. Unless `initialised`, reading an element that
// no kernel has written is a fault.
void add_buffer(const std::string& name, void* base, size_t bytes, bool initialised);
void remove_buffer(const void* base);
// The same with memory of the emulator's own: 256-byte aligned, filled with NaN, and bytes between buffers that belong
// to none, so that leaving one is seen.
void* allocate(const std::string& name, size_t bytes, bool initialised);
void release(void* base);

// The fault that ended the last launch that failed, "kind: what happened"; empty if there was none since clear_fault().
const std::string& fault();
void clear_fault();

int64_t launches();                       // since the program began
const std::vector<Counters>& counters();  // of launches since clear_counters(), while options().count
void clear_counters();

// How route P's code makes itself known: `function` runs one thread. `sites` name the places in the source.
void add_ptx_kernel(const char* name, void (*function)(void* const* arguments), const char* const* sites);

}  // namespace msg3d::simt::emulator
