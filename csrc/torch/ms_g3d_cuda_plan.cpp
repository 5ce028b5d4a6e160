#include "ms_g3d_cuda_plan.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

#include "tensors.h"

namespace msg3d::binding::gpu {
namespace {

using ms_g3d::Problem;
using ms_g3d::cuda::BackwardPlan;
using ms_g3d::cuda::Device;
using ms_g3d::cuda::ForwardPlan;

constexpr std::size_t kMostKept = 4096;  // sizes that a process meets are few, unless every clip has its own length

using Key = std::array<int64_t, 14>;

Key key_of(const Problem& p, ms_g3d::cuda::Type type, const Device& device, int64_t out_channels) {
  return {p.N,
          p.C,
          p.T,
          p.V,
          p.K,
          p.O,
          p.window,
          p.stride,
          p.dilation,
          device.arch,
          device.multiprocessors,
          device.shared_bytes,
          out_channels,
          static_cast<int64_t>(type)};
}

struct Kept {
  std::mutex mutex;
  std::string forced;  // empty: auto
  std::map<Key, ForwardPlan> forward;
  std::map<Key, BackwardPlan> backward;
};

Kept& kept() {
  static Kept plans;
  return plans;
}

template <typename Plan, typename Make>
Plan keep(std::map<Key, Plan>& plans, const Key& key, const Make& make) {
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= kMostKept) plans.clear();
  return plans.emplace(key, make()).first->second;
}

ms_g3d::cuda::Type type_of(const std::string& name) {
  using ms_g3d::cuda::Type;
  if (name == "float32") return Type::kFloat32;
  if (name == "float64") return Type::kFloat64;
  if (name == "tf32") return Type::kTf32;
  if (name == "float16") return Type::kFloat16;
  require(name == "bfloat16", "plan: dtype is ", name, "; expected float32, tf32, float64, float16 or bfloat16");
  return Type::kBFloat16;
}

const char* name_of(ms_g3d::cuda::Kernel kernel) {
  constexpr const char* kNames[] = {"plain", "frames", "windows", "few_channels"};
  return kNames[static_cast<int>(kernel)];
}

}  // namespace

void ms_g3d_set_cuda_plan(std::string name) {
  Kept& plans = kept();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  plans.forced = name == "auto" ? "" : name;
  plans.forward.clear(), plans.backward.clear();
}

ForwardPlan planned_forward(const Problem& p, ms_g3d::cuda::Type type, const Device& device, int64_t out_channels) {
  Kept& plans = kept();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  return keep(plans.forward, key_of(p, type, device, out_channels),
              [&] { return ms_g3d::cuda::plan_forward(p, type, device, out_channels, nullptr, plans.forced); });
}

BackwardPlan planned_backward(const Problem& p, ms_g3d::cuda::Type type, const Device& device) {
  Kept& plans = kept();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  return keep(plans.backward, key_of(p, type, device, 0),
              [&] { return ms_g3d::cuda::plan_backward(p, type, device, plans.forced); });
}

std::string ms_g3d_cuda_plan(std::string dtype, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, int64_t out_channels,
                             int64_t arch, int64_t multiprocessors, int64_t shared_bytes) {
  const Problem p{N, C, T, V, K, O, window_size, window_stride, window_dilation};
  const int64_t span = window_dilation * (window_size - 1);
  require(std::min({N, C, T, V, K, O, window_size, window_stride, window_dilation}) >= 1 &&
              T + 2 * (span / 2) - span >= 1 && out_channels >= 0,
          "plan: sizes of no valid problem");
  require(arch >= 10 && multiprocessors >= 1 && shared_bytes >= 1, "plan: limits of no device: compute capability ",
          arch / 10.0, ", ", multiprocessors, " multiprocessors, ", shared_bytes, " bytes of shared memory");
  const ms_g3d::cuda::Type type = type_of(dtype);
  const Device device{static_cast<int>(arch), static_cast<int>(multiprocessors), static_cast<int>(shared_bytes)};
  std::string forced;
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    forced = kept().forced;
  }
  std::vector<ms_g3d::cuda::Rejected> rejected;
  const ForwardPlan plan = ms_g3d::cuda::plan_forward(p, type, device, out_channels, &rejected, forced);
  const BackwardPlan backward = ms_g3d::cuda::plan_backward(p, type, device, forced);
  std::ostringstream json;
  json << "{\"kernel\": \"" << name_of(plan.kernel) << "\", \"tile\": \"" << plan.tile_name << "\", \"refused\": \""
       << plan.refused << "\", \"forced\": " << (plan.forced ? "true" : "false") << ", \"warps\": " << plan.warps
       << ", \"blocks\": " << plan.blocks << ", \"waves\": " << plan.waves
       << ", \"shared_bytes\": " << plan.shared_bytes << ", \"workspace_bytes\": " << plan.workspace_bytes
       << ", \"modelled_clocks\": " << static_cast<int64_t>(plan.clocks) << ", \"rejected\": [";
  for (std::size_t i = 0; i < rejected.size(); ++i) {
    json << (i ? ", " : "") << "{\"tile\": \"" << rejected[i].tile << "\", \"why\": \"" << rejected[i].why << "\"}";
  }
  json << "], \"backward\": {\"input_refused\": \"" << backward.input_refused << "\", \"parameters_refused\": \""
       << backward.parameters_refused << "\"}}";
  return json.str();
}

}  // namespace msg3d::binding::gpu
