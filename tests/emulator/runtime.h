// The inside of the emulator: a block at a time, one fiber per CUDA thread, on one system thread.
//
//   scheduler.cpp    launches, the order of blocks, warps and lanes, barriers, arrival at collectives
//   collectives.cpp  what mma, ldmatrix, shuffles and votes compute once all 32 lanes have come
//   memory.cpp       buffers, bounds, shadow memory, cp.async
//   counters.cpp     accesses of one instruction gathered over a warp: wavefronts, sectors
//   instrumented.cpp the hooks through which plain loads and stores of host-compiled kernels are seen
//   ptx_support.h    what transpiled PTX calls
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/kernels/simt/simt.h"
#include "control.h"
#include "fiber.h"

namespace msg3d::simt::emulator {

constexpr int kLanes = 32, kMaxWarps = 32, kMaxThreads = kLanes * kMaxWarps;
constexpr uint32_t kSharedBase = 1024;       // shared address of the first byte: 0 is never valid
constexpr int kMaxSharedBytes = 227 * 1024;  // what a block can have on the largest part
constexpr uint16_t kWholeWarp = 0x8000;      // in an accessor: all lanes of warp (accessor & 31) at once

// Where transpiled code is: an index into its table of sites, and a key that is the same for all lanes of one execution
// of an instruction. Host-compiled code leaves both 0.
extern int site;
extern uint64_t site_key;

enum class Kind { kMma, kLdmatrix, kShuffle, kBallot, kWarpBarrier, kBlockBarrier, kNamedBarrier };

// What a lane asks of a collective; `data` is an operand struct of collectives.cpp on its stack.
struct Request {
  Kind kind;
  int site, detail;  // detail must agree among the lanes
  void* data;
};

struct Copy {  // a cp.async under way
  uint32_t offset;
  const unsigned char* source;
  int bytes, source_bytes;
  int64_t group;
  bool landed;
};

struct AccessRecord {
  uint64_t key;
  uint64_t address;  // global address, or offset in shared memory
  int buffer;        // of global memory; -1: shared
  uint8_t bytes, access;
  bool write;
};

enum class LaneState { kReady, kWaiting, kDone };

struct Lane : Thread {
  Fiber fiber;
  LaneState state;
  Request request;
  std::vector<Copy> copies;
  int64_t committed_groups;
  std::vector<AccessRecord> log;
  int64_t steps;
};

struct Warp {
  Lane* lanes[kLanes];
  uint8_t order[kLanes];
  int index, cursor, arrived, done, burst;
  bool at_barrier;
  int barrier_id, barrier_threads;
  // Vector clock: everything that warp v did up to known[v] happened before what this warp does now.
  uint16_t time, known[kMaxWarps];
};

struct Interval {
  int64_t mma_clocks[4], wavefronts;
};

struct Block {
  int64_t number;  // in the grid
  int warps, threads, warps_done;
  unsigned char* shared;
  int shared_bytes;
  Interval interval;
};

struct Random {
  uint64_t state = 1;
  uint32_t next() {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return static_cast<uint32_t>((state * 0x2545f4914f6cdd1dull) >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(static_cast<uint64_t>(next()) * bound >> 32); }
};

extern Block block;
extern Warp warps[kMaxWarps];
extern Lane lanes[kMaxThreads];
extern Random random_order;
extern Counters* counting;  // of the running launch; null if nothing is counted
extern bool inside;         // a kernel's code runs now
extern bool checking;       // options().checks of the running launch

inline Lane& running() { return *static_cast<Lane*>(current); }
inline Warp& warp_of(const Lane& lane) { return warps[lane.index / kLanes]; }

// Ends the launch: does not return. The message gets the kernel, block, thread and site added.
[[noreturn]] void fail(const char* kind, const std::string& what);
std::string hexadecimal(uint64_t value);

// ---- scheduler.cpp
void arrive(Kind kind, int detail, void* data);

// ---- collectives.cpp
void perform(Warp& warp, Kind kind, int detail);

// ---- memory.cpp: every access goes through one of these; they return the host address after all checks.
unsigned char* access_shared(uint32_t address, int bytes, bool write, AccessClass access);
unsigned char* access_global(uint64_t address, int bytes, bool write);
bool is_shared(const void* address);
void check_shared(uint32_t offset, int bytes, bool write, uint16_t accessor);
void check_global(int buffer, size_t offset, int bytes, bool write);
int find_buffer(const void* address, size_t bytes);  // -1: none holds all of it
const std::string& buffer_name(int buffer);
uint64_t buffer_offset(int buffer, uint64_t address);
std::string describe_address(uint64_t address);
bool in_arena(const void* address);
void begin_block_memory();
void begin_launch_memory();

// ---- counters.cpp
void record_access(uint64_t address, int buffer, int bytes, bool write, AccessClass access, int part);
void flush_log(Warp& warp);
void count_ldmatrix(const uint32_t* offsets, int matrices);
void count_mma(const Warp& warp, int clocks);
void end_interval();

}  // namespace msg3d::simt::emulator
