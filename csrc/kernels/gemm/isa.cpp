// The choice of the instruction set: the fastest that the machine has, or the one that was asked for.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

// Zen 4 runs a 64-byte operation as two halves: wider vectors bring it no arithmetic, and its one 64-byte load a cycle
// holds up the tiles that are one vector wide, by a fifth.
bool halves_wide_vectors() {
#if defined(__x86_64__)
  unsigned eax, vendor_b, vendor_c, vendor_d, ebx, ecx, edx;
  if (!__get_cpuid(0, &eax, &vendor_b, &vendor_c, &vendor_d) || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned family = ((eax >> 8) & 15) + ((eax >> 20) & 255);
  return vendor_b == signature_AMD_ebx && family == 0x19;  // Zen 3, which has no AVX-512, and Zen 4
#else
  return false;
#endif
}

const Isa* fastest() {
  const Candidate* candidate = kCandidates;
  if (halves_wide_vectors()) ++candidate;
  while (!candidate->supported()) ++candidate;
  return candidate->isa;
}

// Zen 4 gains from AVX-512 only where a tile is two vectors wide: its larger tiles load less.
const Isa* fastest_wide() {
#if defined(__x86_64__)
  if (halves_wide_vectors() && kCandidates[0].supported()) return kCandidates[0].isa;
#endif
  return fastest();
}

std::atomic<const Isa*> chosen{nullptr}, chosen_wide{nullptr};

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
  if (!isa) chosen.store(isa = fastest());
  return *isa;
}

const Isa& current_wide_isa() {
  const Isa* isa = chosen_wide.load();
  if (!isa) chosen_wide.store(isa = fastest_wide());
  return *isa;
}

bool set_isa(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen.store(fastest());
    chosen_wide.store(fastest_wide());
    return true;
  }
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.isa->name, name) == 0 && candidate.supported()) {
      chosen.store(candidate.isa);
      chosen_wide.store(candidate.isa);
      return true;
    }
  }
  return false;
}

}  // namespace msg3d
