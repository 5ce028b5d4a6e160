// The choice of the instruction set: the widest that the machine has, or the one that was asked for.
#include <atomic>
#include <cstring>
#include <string>

#include "gemm.h"

namespace msg3d {
namespace {

struct Candidate {
  const Isa* isa;
  bool (*supported)();
};

const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kAvx512, [] { return __builtin_cpu_supports("avx512f") != 0; }},
    {&kAvx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&kPortable, [] { return true; }},
};

const Isa* widest() {
  const Candidate* candidate = kCandidates;
  while (!candidate->supported()) ++candidate;
  return candidate->isa;
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const char* supported_isas() {
  static const std::string names = [] {
    std::string joined;
    for (const Candidate& candidate : kCandidates) {
      if (candidate.supported()) joined += (joined.empty() ? "" : " ") + std::string(candidate.isa->name);
    }
    return joined;
  }();
  return names.c_str();
}

const Isa& current_isa() {
  const Isa* isa = chosen.load();
  if (!isa) chosen.store(isa = widest());
  return *isa;
}

bool set_isa(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen.store(widest());
    return true;
  }
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.isa->name, name) == 0 && candidate.supported()) {
      chosen.store(candidate.isa);
      return true;
    }
  }
  return false;
}

}  // namespace msg3d
