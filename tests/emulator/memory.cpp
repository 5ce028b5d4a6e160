// What kernels may touch, and what they do to it. Bounds and alignment are checked on every access that is seen; with
// options().checks every two bytes (single bytes have none) have a shadow: who wrote last, who has read since, ordered
// by the vector clocks that barriers advance (scheduler.cpp). An access that nothing orders behind another thread's
// write, or a write behind a read, is a race, whatever order happened to run.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "runtime.h"

namespace msg3d::simt::emulator {

namespace {

constexpr int kGranule = 2;
constexpr size_t kArenaBytes = size_t{4} << 30, kGuardBytes = 4096, kAlignment = 256;

enum class State : uint8_t { kUndefined, kDefined, kPending };  // pending: a cp.async is under way to it

struct SharedShadow {
  uint16_t writer, write_time, reader[2], read_time[2];
  State state;
};

struct GlobalShadow {
  uint32_t launch, writer, reader;  // block * kMaxThreads + thread + 1; 0: nobody
  uint16_t write_time, read_time;
};
constexpr uint32_t kSeveralBlocks = 0x80000000u;  // in reader: blocks other than the one named have read too

struct Buffer {
  std::string name;
  unsigned char* base = nullptr;
  size_t bytes = 0;
  bool initialised = true;
  std::vector<bool> defined;  // per granule, unless initialised
  std::unique_ptr<GlobalShadow[]> shadow;
};

SharedShadow shared_shadow[kMaxSharedBytes / kGranule];
std::vector<Buffer> buffers;
int last_buffer = 0;
uint32_t launch_number = 0;
unsigned char* arena = nullptr;
size_t arena_used = 0, arena_live = 0;

std::string accessor_name(uint16_t accessor) {
  return accessor & kWholeWarp ? "warp " + std::to_string(accessor & 31) : "thread " + std::to_string(accessor);
}

bool ordered(const Warp& warp, uint16_t accessor, uint16_t time, uint16_t self) {
  if (accessor == self && !(self & kWholeWarp)) return true;
  return time <= warp.known[accessor & kWholeWarp ? accessor & 31 : accessor / kLanes];
}

[[noreturn]] void fail_race(uint32_t offset, bool write, uint16_t other, bool other_wrote) {
  fail("race", std::string(write ? "writes" : "reads") + " shared+" + hexadecimal(offset) + ", which " +
                   accessor_name(other) + (other_wrote ? " wrote" : " read") + " with no barrier between");
}

void read_shared(const Warp& warp, uint32_t offset, SharedShadow& cell, uint16_t self) {
  if (cell.state == State::kUndefined) fail("uninitialised read", "shared+" + hexadecimal(offset));
  if (cell.state == State::kPending) {
    fail("copy not waited for", "reads shared+" + hexadecimal(offset) + " while a cp.async of " +
                                    accessor_name(cell.writer) + " is under way");
  }
  if (!ordered(warp, cell.writer, cell.write_time, self)) fail_race(offset, false, cell.writer, true);
  // Two readers are kept: one of this warp takes its own place, else that of one who is ordered before.
  const auto warp_of_reader = [](uint16_t a) { return a & kWholeWarp ? a & 31 : a / kLanes; };
  for (int i = 0; i < 2; ++i) {
    if (cell.read_time[i] == 0 || (warp_of_reader(cell.reader[i]) == warp.index && cell.reader[i] == self) ||
        ordered(warp, cell.reader[i], cell.read_time[i], self)) {
      cell.reader[i] = self, cell.read_time[i] = warp.time;
      return;
    }
  }
  cell.reader[1] = self, cell.read_time[1] = warp.time;
}

void write_shared(const Warp& warp, uint32_t offset, SharedShadow& cell, uint16_t self) {
  if (cell.state == State::kPending) {
    fail("copy not waited for", "writes shared+" + hexadecimal(offset) + " while a cp.async of " +
                                    accessor_name(cell.writer) + " is under way");
  }
  if (cell.state == State::kDefined && !ordered(warp, cell.writer, cell.write_time, self)) {
    fail_race(offset, true, cell.writer, true);
  }
  for (int i = 0; i < 2; ++i) {
    if (cell.read_time[i] && !ordered(warp, cell.reader[i], cell.read_time[i], self)) {
      fail_race(offset, true, cell.reader[i], false);
    }
  }
  cell = {self, warp.time, {0, 0}, {0, 0}, State::kDefined};
}

void require_shared(uint32_t offset, int bytes, const char* what) {
  if (offset > static_cast<uint32_t>(block.shared_bytes) ||
      block.shared_bytes - offset < static_cast<uint32_t>(bytes)) {
    fail("out of bounds", std::string(what) + " of " + std::to_string(bytes) + " bytes at shared+" +
                              hexadecimal(offset) + " of " + std::to_string(block.shared_bytes) +
                              " bytes of shared memory");
  }
  if (offset % static_cast<uint32_t>(bytes)) {
    fail("misaligned", std::string(what) + " of " + std::to_string(bytes) + " bytes at shared+" + hexadecimal(offset));
  }
}

// The buffer of an access; -1 for memory that is nobody's business.
int require_global(uint64_t address, int bytes, int aligned_to, const char* what) {
  const int buffer = find_buffer(reinterpret_cast<const void*>(address), static_cast<size_t>(bytes));
  const void* const pointer = reinterpret_cast<const void*>(address);
  if (buffer < 0 && !running().fiber.holds(pointer) && (options().strict || in_arena(pointer))) {
    fail("out of bounds",
         std::string(what) + " of " + std::to_string(bytes) + " bytes at " + describe_address(address));
  }
  if (address % static_cast<uint64_t>(aligned_to)) {
    fail("misaligned", std::string(what) + " of " + std::to_string(bytes) + " bytes at " + describe_address(address));
  }
  return buffer;
}

void land(Lane& lane, Copy& copy) {
  if (!copy.landed) {
    unsigned char* target = block.shared + copy.offset;
    std::memcpy(target, copy.source, copy.source_bytes);
    std::memset(target + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    copy.landed = true;
  }
  if (!checking) return;
  const Warp& warp = warp_of(lane);
  for (int i = 0; i < copy.bytes / kGranule; ++i) {
    shared_shadow[copy.offset / kGranule + i] = {
        static_cast<uint16_t>(lane.index), warp.time, {0, 0}, {0, 0}, State::kDefined};
  }
}

}  // namespace

void check_shared(uint32_t offset, int bytes, bool write, uint16_t accessor) {
  if (bytes < kGranule) {  // neighbouring bytes may be two threads': only whether they are defined is known
    SharedShadow& cell = shared_shadow[offset / kGranule];
    if (write && cell.state == State::kUndefined) cell = {accessor, 0, {0, 0}, {0, 0}, State::kDefined};
    return;
  }
  const Warp& warp = warp_of(running());
  for (uint32_t at = offset / kGranule; at < (offset + bytes + kGranule - 1) / kGranule; ++at) {
    if (write) {
      write_shared(warp, at * kGranule, shared_shadow[at], accessor);
    } else {
      read_shared(warp, at * kGranule, shared_shadow[at], accessor);
    }
  }
}

void check_global(int index, size_t offset, int bytes, bool write) {
  Buffer& buffer = buffers[index];
  if (bytes < kGranule) {
    if (write && !buffer.initialised) buffer.defined[offset / kGranule] = true;
    return;
  }
  if (!buffer.shadow) buffer.shadow.reset(new GlobalShadow[buffer.bytes / kGranule + 1]());
  const Lane& lane = running();
  const Warp& warp = warp_of(lane);
  const uint32_t self = static_cast<uint32_t>(block.number) * kMaxThreads + lane.index + 1;
  const auto block_of = [](uint32_t who) { return ((who & ~kSeveralBlocks) - 1) / kMaxThreads; };
  const auto place = [&](size_t at) { return buffer.name + "+" + hexadecimal(at * kGranule); };
  const auto before = [&](uint32_t who, uint16_t time) {
    return who == self || time <= warp.known[((who & ~kSeveralBlocks) - 1) % kMaxThreads / kLanes];
  };
  for (size_t at = offset / kGranule; at < (offset + bytes + kGranule - 1) / kGranule; ++at) {
    GlobalShadow& cell = buffer.shadow[at];
    if (cell.launch != launch_number) cell = {launch_number, 0, 0, 0, 0};
    if (cell.writer) {
      if (block_of(cell.writer) != block_of(self)) {
        fail("block race", std::string(write ? "writes " : "reads ") + place(at) + ", which block " +
                               std::to_string(block_of(cell.writer)) + " writes too");
      }
      if (!before(cell.writer, cell.write_time)) {
        fail("race", std::string(write ? "writes " : "reads ") + place(at) + ", which thread " +
                         std::to_string((cell.writer - 1) % kMaxThreads) + " wrote with no barrier between");
      }
    }
    if (write) {
      if (cell.reader) {
        if (block_of(cell.reader) != block_of(self) || (cell.reader & kSeveralBlocks)) {
          fail("block race",
               "writes " + place(at) + ", which block " + std::to_string(block_of(cell.reader)) + " reads");
        }
        if (!before(cell.reader, cell.read_time)) {
          fail("race", "writes " + place(at) + ", which thread " + std::to_string((cell.reader - 1) % kMaxThreads) +
                           " read with no barrier between");
        }
      }
      cell.writer = self, cell.write_time = warp.time, cell.reader = 0;
      if (!buffer.initialised) buffer.defined[at] = true;
    } else {
      if (!buffer.initialised && !buffer.defined[at]) fail("uninitialised read", place(at));
      const bool others = cell.reader && (block_of(cell.reader) != block_of(self) || (cell.reader & kSeveralBlocks));
      cell.reader = self | (others ? kSeveralBlocks : 0), cell.read_time = warp.time;
    }
  }
}

bool is_shared(const void* address) { return address >= block.shared && address < block.shared + kMaxSharedBytes; }

unsigned char* shared_base() { return block.shared; }

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - block.shared) + kSharedBase;
}

unsigned char* access_shared(uint32_t address, int bytes, bool write, AccessClass access) {
  const uint32_t offset = address - kSharedBase;
  require_shared(offset, bytes, write ? "write" : "read");
  if (checking) check_shared(offset, bytes, write, static_cast<uint16_t>(running().index));
  if (counting) record_access(offset, -1, bytes, write, access, 0);
  return block.shared + offset;
}

unsigned char* access_global(uint64_t address, int bytes, bool write) {
  const int buffer = require_global(address, bytes, bytes, write ? "write" : "read");
  if (buffer >= 0) {
    if (checking) check_global(buffer, buffer_offset(buffer, address), bytes, write);
    if (counting) record_access(address, buffer, bytes, write, kLoadShared, 0);
  }
  return reinterpret_cast<unsigned char*>(address);
}

void cp_async(uint32_t shared, const void* global, int bytes, int source_bytes) {
  const uint32_t offset = shared - kSharedBase;
  const uint64_t address = reinterpret_cast<uint64_t>(global);
  if (source_bytes < 0 || source_bytes > bytes) {
    fail("launch", "cp.async of " + std::to_string(source_bytes) + " out of " + std::to_string(bytes) + " bytes");
  }
  require_shared(offset, bytes, "cp.async");
  if (address % static_cast<uint64_t>(bytes)) {
    fail("misaligned", "cp.async of " + std::to_string(bytes) + " bytes from " + describe_address(address));
  }
  Lane& lane = running();
  if (source_bytes > 0) {
    const int buffer = require_global(address, source_bytes, bytes, "cp.async source");
    if (checking && buffer >= 0) check_global(buffer, buffer_offset(buffer, address), source_bytes, false);
    if (counting && buffer >= 0) record_access(address, buffer, source_bytes, false, kCopyShared, 1);
  }
  if (counting) record_access(offset, -1, bytes, true, kCopyShared, 0);
  if (checking) {
    check_shared(offset, bytes, true, static_cast<uint16_t>(lane.index));
    for (int i = 0; i < bytes / kGranule; ++i) shared_shadow[offset / kGranule + i].state = State::kPending;
  }
  const Landing landing = options().landing;
  Copy copy{offset, static_cast<const unsigned char*>(global), bytes, source_bytes, lane.committed_groups, false};
  if (landing == Landing::kEarly || (landing == Landing::kRandom && random_order.below(2))) {
    std::memcpy(block.shared + offset, copy.source, source_bytes);
    std::memset(block.shared + offset + source_bytes, 0, bytes - source_bytes);
    copy.landed = true;
  }
  lane.copies.push_back(copy);
}

void cp_async_commit() { ++running().committed_groups; }

void cp_async_wait(int pending) {
  Lane& lane = running();
  const int64_t kept = pending < 0 ? INT64_MAX : lane.committed_groups - pending;  // groups from here on may go on
  size_t left = 0;
  for (Copy& copy : lane.copies) {
    if (copy.group < kept) {
      land(lane, copy);
    } else {
      lane.copies[left++] = copy;
    }
  }
  lane.copies.resize(left);
}

void begin_block_memory() {
  if (!checking) return;
  std::memset(static_cast<void*>(shared_shadow), 0, sizeof(SharedShadow) * (block.shared_bytes / kGranule + 1));
}

void begin_launch_memory() { ++launch_number; }

// ---- global memory

int find_buffer(const void* address, size_t bytes) {
  const unsigned char* const at = static_cast<const unsigned char*>(address);
  const auto holds = [&](const Buffer& b) { return at >= b.base && at + bytes <= b.base + b.bytes; };
  if (last_buffer < static_cast<int>(buffers.size()) && holds(buffers[last_buffer])) return last_buffer;
  for (size_t i = 0; i < buffers.size(); ++i)
    if (holds(buffers[i])) return last_buffer = static_cast<int>(i);
  return -1;
}

const std::string& buffer_name(int buffer) { return buffers[buffer].name; }
uint64_t buffer_offset(int buffer, uint64_t address) {
  return address - reinterpret_cast<uint64_t>(buffers[buffer].base);
}

std::string describe_address(uint64_t address) {
  const Buffer* nearest = nullptr;
  int64_t best = INT64_MAX;
  for (const Buffer& buffer : buffers) {
    const int64_t offset = static_cast<int64_t>(address - reinterpret_cast<uint64_t>(buffer.base));
    const int64_t size = static_cast<int64_t>(buffer.bytes);
    const int64_t distance = offset < 0 ? -offset : offset < size ? 0 : offset - size;
    if (distance < best) best = distance, nearest = &buffer;
  }
  if (nearest == nullptr || best > (1 << 20)) return hexadecimal(address) + ", which is in no buffer";
  const int64_t offset = static_cast<int64_t>(address - reinterpret_cast<uint64_t>(nearest->base));
  return nearest->name + (offset < 0 ? "-" : "+") + hexadecimal(static_cast<uint64_t>(offset < 0 ? -offset : offset)) +
         " of " + std::to_string(nearest->bytes) + " bytes";
}

bool in_arena(const void* address) { return arena && address >= arena && address < arena + kArenaBytes; }

void add_buffer(const std::string& name, void* base, size_t bytes, bool initialised) {
  Buffer buffer;
  buffer.name = name, buffer.base = static_cast<unsigned char*>(base), buffer.bytes = bytes;
  buffer.initialised = initialised;
  if (!initialised) buffer.defined.assign(bytes / kGranule + 1, false);
  buffers.push_back(std::move(buffer));
}

void remove_buffer(const void* base) {
  buffers.erase(
      std::remove_if(buffers.begin(), buffers.end(), [&](const Buffer& buffer) { return buffer.base == base; }),
      buffers.end());
}

void* allocate(const std::string& name, size_t bytes, bool initialised) {
  if (arena == nullptr) {
    void* memory =
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena = static_cast<unsigned char*>(memory);
  }
  const size_t begin = (arena_used + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
  if (begin + bytes + kGuardBytes > kArenaBytes) throw std::bad_alloc();
  arena_used = begin + bytes, ++arena_live;
  std::memset(arena + begin, 0xff, bytes);
  add_buffer(name, arena + begin, bytes, initialised);
  return arena + begin;
}

void release(void* base) {
  const int buffer = find_buffer(base, 0);
  const size_t begin = static_cast<size_t>(static_cast<unsigned char*>(base) - arena);
  if (buffer >= 0 && begin + buffers[buffer].bytes == arena_used) arena_used = begin - kGuardBytes;  // the last one
  remove_buffer(base);
  if (--arena_live == 0) {
    madvise(arena, arena_used, MADV_DONTNEED);
    arena_used = 0;
  }
}

}  // namespace msg3d::simt::emulator
