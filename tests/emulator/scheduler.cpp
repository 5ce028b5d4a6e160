// Launches, and who runs next. Blocks come in random order, one at a time; among the warps of a block one is drawn for
// a burst of random length; its lanes run one after another in a random order until each waits at a collective, where
// the last to come performs it for all. What cannot go on is a fault with a name, not a hang.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>

#include "runtime.h"

namespace msg3d::simt::emulator {

Thread* current = nullptr;
int site = 0;
uint64_t site_key = 0;
Block block;
Warp warps[kMaxWarps];
Lane lanes[kMaxThreads];
Random random_order;
Counters* counting = nullptr;
bool inside = false;
bool checking = false;

namespace {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;  // CUDA's numbers
constexpr int kSharedReserve = 4096;  // behind a block's shared memory: what host-compiled code writes there stays ours

struct PtxKernel {
  std::string name;
  const void* library;  // where it is loaded: mutants of a kernel have the same name
  void (*function)(void* const*);
  const char* const* sites;
};

Fiber main_fiber;
const Launch* launching = nullptr;
const PtxKernel* launching_ptx = nullptr;
std::string fault_text, launching_name;
int64_t launch_count = 0;
std::mutex one_launch;

Options& stored_options() {
  static Options stored;
  return stored;
}
std::vector<PtxKernel>& ptx_kernels() {
  static std::vector<PtxKernel> kernels;
  return kernels;
}
std::vector<Counters>& all_counters() {
  static std::vector<Counters> all;
  return all;
}

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::kMma:
      return "mma";
    case Kind::kLdmatrix:
      return "ldmatrix";
    case Kind::kShuffle:
      return "a shuffle";
    case Kind::kBallot:
      return "a vote";
    case Kind::kWarpBarrier:
      return "a warp barrier";
    case Kind::kBlockBarrier:
      return "the block barrier";
    case Kind::kNamedBarrier:
      return "a named barrier";
  }
  return "?";
}

std::string place(int at) {  // " at file.cu:123" on route P
  if (at == 0 || launching_ptx == nullptr || launching_ptx->sites[at][0] == 0) return "";
  return std::string(" at ") + launching_ptx->sites[at];
}

void leave_lane() {
  Lane& lane = running();
  Warp& warp = warp_of(lane);
  for (int i = 0; i < kLanes; ++i) {
    warp.cursor = (warp.cursor + 1) % kLanes;
    Lane& next = *warp.lanes[warp.order[warp.cursor]];
    if (next.state == LaneState::kReady) {
      if (&next == &lane) return;
      current = &next;
      Fiber::pass(lane.fiber, next.fiber);
      return;
    }
  }
  Fiber::pass(lane.fiber, main_fiber);
}

void leave_warp() { Fiber::pass(running().fiber, main_fiber); }

[[noreturn]] void lane_entry() {
  Fiber::entered(main_fiber);
  if (launching_ptx) {
    launching_ptx->function(launching->arguments);
  } else {
    launching->call(launching->kernel, launching->arguments);
  }
  Lane& lane = running();
  Warp& warp = warp_of(lane);
  lane.state = LaneState::kDone;
  if (warp.arrived > 0) {
    const auto waits = [](const Lane* l) { return l->state == LaneState::kWaiting; };
    const Lane& other = **std::find_if(warp.lanes, warp.lanes + kLanes, waits);
    fail("divergence", "the thread has returned, but lane " + std::to_string(other.index % kLanes) +
                           " of its warp waits at " + name_of(other.request.kind) + place(other.request.site));
  }
  if (++warp.done == kLanes) {
    ++block.warps_done;
    if (counting) flush_log(warp);
  }
  leave_lane();
  __builtin_unreachable();
}

void shuffle_lanes(Warp& warp) {
  for (int i = kLanes - 1; i > 0; --i) std::swap(warp.order[i], warp.order[random_order.below(i + 1)]);
}

void release(Warp& warp) {
  for (Lane* lane : warp.lanes) lane->state = LaneState::kReady;
  warp.arrived = 0;
}

// Everything that the given warps did before happens before everything that they do from now on.
void synchronise(const std::vector<Warp*>& members) {
  uint16_t known[kMaxWarps] = {};
  for (const Warp* warp : members) {
    for (int v = 0; v < block.warps; ++v) known[v] = std::max(known[v], warp->known[v]);
  }
  for (const Warp* warp : members) known[warp->index] = warp->time;
  for (Warp* warp : members) {
    std::memcpy(warp->known, known, sizeof(known));
    if (warp->time == 0xffff) fail("launch", "more than 65,534 barriers in one block");
    ++warp->time;
  }
}

void arrive_at_barrier(Warp& warp, int id, int threads) {
  if (counting) flush_log(warp);
  warp.at_barrier = true, warp.barrier_id = id, warp.barrier_threads = threads;
  std::vector<Warp*> members;
  for (int w = 0; w < block.warps; ++w) {
    if (!warps[w].at_barrier || warps[w].barrier_id != id) continue;
    if (warps[w].barrier_threads != threads) fail("divergence", "warps come to one barrier with different counts");
    members.push_back(&warps[w]);
  }
  if (static_cast<int>(members.size()) * kLanes < threads) return;
  synchronise(members);
  if (counting && id == 0) end_interval();
  for (Warp* member : members) member->at_barrier = false, release(*member);
}

[[noreturn]] void fail_deadlock() {
  std::string text;
  for (int w = 0; w < block.warps; ++w) {
    text += (w ? "; warp " : "warp ") + std::to_string(w);
    if (warps[w].done == kLanes) {
      text += " has returned";
    } else {
      text += " waits at barrier " + std::to_string(warps[w].barrier_id) + place(warps[w].lanes[0]->request.site);
    }
  }
  fail("deadlock", text);
}

bool run_block(int64_t number) {
  const Grid& grid = launching->grid;
  block.number = number, block.warps_done = 0, block.interval = {};
  std::memset(block.shared, 0xff, static_cast<size_t>(block.shared_bytes) + kSharedReserve);  // NaN in every format
  begin_block_memory();
  for (int t = 0; t < block.threads; ++t) {
    Lane& lane = lanes[t];
    lane.index = t;
    lane.block[0] = static_cast<int>(number % grid.x);
    lane.block[1] = static_cast<int>(number / grid.x % grid.y);
    lane.block[2] = static_cast<int>(number / grid.x / grid.y);
    lane.grid[0] = static_cast<int>(grid.x), lane.grid[1] = static_cast<int>(grid.y);
    lane.grid[2] = static_cast<int>(grid.z);
    lane.state = LaneState::kReady;
    lane.copies.clear(), lane.log.clear();
    lane.committed_groups = 0, lane.steps = 0;
    lane.fiber.start(lane_entry);
  }
  for (int w = 0; w < block.warps; ++w) {
    Warp& warp = warps[w];
    warp = {};
    warp.index = w, warp.time = 1;
    for (int l = 0; l < kLanes; ++l) warp.lanes[l] = &lanes[w * kLanes + l];
    std::iota(warp.order, warp.order + kLanes, uint8_t{0});
    shuffle_lanes(warp);
  }
  while (block.warps_done < block.warps) {
    int ready[kMaxWarps], count = 0;
    for (int w = 0; w < block.warps; ++w)
      if (!warps[w].at_barrier && warps[w].done < kLanes) ready[count++] = w;
    if (count == 0) {
      current = warps[0].lanes[0];
      for (int w = 0; w < block.warps; ++w)
        if (warps[w].at_barrier) current = warps[w].lanes[0];
      site = 0;
      fail_deadlock();
    }
    Warp& warp = warps[ready[random_order.below(count)]];
    warp.burst = 1 + static_cast<int>(random_order.below(64));
    if (random_order.below(8) == 0) shuffle_lanes(warp);
    const auto is_ready = [&](uint8_t l) { return warp.lanes[l]->state == LaneState::kReady; };
    warp.cursor = static_cast<int>(std::find_if(warp.order, warp.order + kLanes, is_ready) - warp.order);
    Lane& first = *warp.lanes[warp.order[warp.cursor]];
    current = &first;
    inside = true;
    Fiber::pass(main_fiber, first.fiber);
    inside = false;
    if (!fault_text.empty()) return false;
  }
  if (counting) end_interval();
  return true;
}

std::string symbol_of(const void* address, const void** library) {
  Dl_info info;
  if (!dladdr(address, &info)) return "";
  if (library) *library = info.dli_fbase;
  return info.dli_sname ? info.dli_sname : "";
}

const PtxKernel* find_ptx(const std::string& name, const void* library) {
  for (const PtxKernel& kernel : ptx_kernels())
    if (kernel.name == name && kernel.library == library) return &kernel;
  return nullptr;
}

struct Failed {};

}  // namespace

void arrive(Kind kind, int detail, void* data) {
  Lane& lane = running();
  Warp& warp = warp_of(lane);
  lane.request = {kind, site, detail, data};
  if (warp.done > 0) fail("divergence", std::string("lanes of the warp have returned before ") + name_of(kind));
  if (warp.arrived > 0) {
    const auto waits = [](const Lane* l) { return l->state == LaneState::kWaiting; };
    const Lane& other = **std::find_if(warp.lanes, warp.lanes + kLanes, waits);
    if (other.request.kind != kind || other.request.site != site || other.request.detail != detail) {
      fail("divergence", std::string("the thread comes to ") + name_of(kind) + ", but lane " +
                             std::to_string(other.index % kLanes) + " waits at " + name_of(other.request.kind) +
                             (other.request.kind == kind ? " elsewhere" : "") + place(other.request.site));
    }
  }
  lane.state = LaneState::kWaiting;
  if (++warp.arrived < kLanes) return leave_lane();
  if (kind == Kind::kBlockBarrier || kind == Kind::kNamedBarrier) {
    const int id = kind == Kind::kBlockBarrier ? 0 : detail >> 16;
    arrive_at_barrier(warp, id, kind == Kind::kBlockBarrier ? block.threads : detail & 0xffff);
    return leave_warp();
  }
  if (kind == Kind::kWarpBarrier) {
    synchronise({&warp});
  } else {
    perform(warp, kind, detail);
  }
  if (counting && lane.log.size() > 256) flush_log(warp);
  release(warp);
  if (--warp.burst <= 0) leave_warp();
}

void block_barrier() { arrive(Kind::kBlockBarrier, 0, nullptr); }
void warp_barrier() { arrive(Kind::kWarpBarrier, 0, nullptr); }
void named_barrier(int id, int threads) {
  if (id < 0 || id > 15) fail("launch", "barrier " + std::to_string(id) + " of 0 .. 15");
  if (threads <= 0 || threads > block.threads || threads % kLanes) {
    fail("launch", "barrier among " + std::to_string(threads) + " threads: a multiple of 32 up to the block's size");
  }
  arrive(Kind::kNamedBarrier, id << 16 | threads, nullptr);
}

void fail(const char* kind, const std::string& what) {
  fault_text = std::string(kind) + ": " + what;
  if (current) {
    char where[160];
    std::snprintf(where, sizeof(where), " (thread %d, warp %d, block %d,%d,%d", current->index, current->index / kLanes,
                  current->block[0], current->block[1], current->block[2]);
    fault_text += where + place(site) + ", " + launching_name + ")";
  }
  if (!inside) throw Failed{};
  Fiber::pass(running().fiber, main_fiber);
  __builtin_unreachable();
}

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

int launch(const Launch& launch) {
  const std::lock_guard<std::mutex> guard(one_launch);
  const Grid& grid = launch.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (launch.shared_bytes < 0 || launch.shared_bytes > kMaxSharedBytes) return kInvalidValue;
  if (launch.threads <= 0 || launch.threads > kMaxThreads || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return kInvalidConfiguration;
  }
  fault_text.clear();
  current = nullptr;
  const Options& wanted = stored_options();
  const void* library = nullptr;
  launching_name = symbol_of(launch.kernel, &library);
  launching = &launch, launching_ptx = nullptr, checking = wanted.checks, site = 0, site_key = 0;
  static std::vector<unsigned char> memory;
  memory.resize(kMaxSharedBytes + kSharedReserve + 256);
  block.shared = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
  block.shared_bytes = launch.shared_bytes;
  block.threads = launch.threads, block.warps = launch.threads / kLanes;
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  try {
    if (launch.threads % kLanes) fail("launch", std::to_string(launch.threads) + " threads: not a multiple of 32");
    if (wanted.ptx && !(launching_ptx = find_ptx(launching_name, library))) {
      fail("launch", "no PTX was transpiled for kernel '" + launching_name + "'");
    }
    ++launch_count;
    random_order.state = (wanted.seed + 1) * 0x9e3779b97f4a7c15ull;
    if (wanted.count) {
      all_counters().emplace_back();
      counting = &all_counters().back();
      counting->kernel = launching_name, counting->grid = grid;
      counting->threads = launch.threads, counting->shared_bytes = launch.shared_bytes;
    } else {
      counting = nullptr;
    }
    begin_launch_memory();
    // A random affine walk through the grid: every block once.
    int64_t stride = 1 + random_order.below(static_cast<uint32_t>(std::min<int64_t>(blocks, 1 << 30)));
    while (std::gcd(stride, blocks) != 1) ++stride;
    int64_t number = random_order.below(static_cast<uint32_t>(std::min<int64_t>(blocks, 1 << 30)));
    for (int64_t i = 0; i < blocks; ++i, number = (number + stride) % blocks) {
      if (!run_block(number)) break;
    }
  } catch (const Failed&) {
  }
  counting = nullptr, current = nullptr, launching = nullptr;
  return fault_text.empty() ? 0 : kLaunchFailure;
}

const char* error_text(int status) {
  switch (status) {
    case 0:
      return "no error";
    case kInvalidValue:
      return "invalid argument";
    case kInvalidConfiguration:
      return "invalid configuration argument";
    case kLaunchFailure:
      return fault_text.empty() ? "unspecified launch failure" : fault_text.c_str();
    default:
      return "unknown error";
  }
}

Options& options() { return stored_options(); }
const std::string& fault() { return fault_text; }
void clear_fault() { fault_text.clear(); }
int64_t launches() { return launch_count; }
const std::vector<Counters>& counters() { return all_counters(); }
void clear_counters() { all_counters().clear(); }

void add_ptx_kernel(const char* name, void (*function)(void* const*), const char* const* sites) {
  const void* library = nullptr;
  symbol_of(reinterpret_cast<const void*>(function), &library);
  ptx_kernels().push_back({name, library, function, sites});
}

}  // namespace msg3d::simt::emulator
