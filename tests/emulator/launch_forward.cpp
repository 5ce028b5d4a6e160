// The doors of the forward pass as the emulator's Python calls them: sizes are int64_t, plans come back as numbers.
#include <cstring>

#include "../../csrc/kernels/ms_g3d/cuda/ms_g3d.h"
#include "../../csrc/kernels/ms_g3d/cuda/statistics.h"

using namespace msg3d::ms_g3d;

namespace {

struct Sizes {
  int64_t N, C, T, V, K, O, window, stride, dilation;
  Problem problem() const { return {N, C, T, V, K, O, window, stride, dilation}; }
};

cuda::Type type_of(int64_t tf32, int64_t half) {
  return tf32 ? cuda::Type::kTf32 : half ? cuda::Type::kFloat16 : cuda::Type::kBFloat16;
}

cuda::ForwardPlan plan_for(const Sizes& s, int64_t shared_kb, int64_t multiprocessors, int64_t out_channels,
                           int64_t tf32) {
  const cuda::Device device{80, static_cast<int>(multiprocessors), static_cast<int>(shared_kb * 1024)};
  return cuda::plan_forward(s.problem(), type_of(tf32, 0), device, out_channels);
}

}  // namespace

extern "C" {

int forward_plan(int64_t* out, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                 int64_t stride, int64_t dilation, int64_t shared_kb, int64_t multiprocessors, int64_t out_channels,
                 int64_t tf32) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const cuda::ForwardPlan plan = plan_for(s, shared_kb, multiprocessors, out_channels, tf32);
  const bool runs = plan.kernel != cuda::Kernel::kPlain;
  const int64_t moments_bytes =
      runs ? plain::moments_bytes(cuda::part_rows(s.problem(), plan), O, type_of(tf32, 0)) : 0;
  const int64_t values[] = {static_cast<int64_t>(plan.kernel),
                            plan.tile,
                            plan.warps,
                            plan.groups,
                            plan.parts,
                            plan.windows,
                            plan.slots,
                            plan.frame_step,
                            plan.weight_steps,
                            plan.weight_columns,
                            plan.channel_steps,
                            plan.slices,
                            plan.slices_per_block,
                            plan.slices_at_once,
                            plan.shared_bytes,
                            plan.blocks,
                            plan.waves,
                            plan.weight_bytes,
                            plan.adjacency_bytes,
                            plan.collapse_bytes,
                            plan.workspace_bytes,
                            moments_bytes,
                            static_cast<int64_t>(plan.clocks)};
  for (const int64_t value : values) *out++ = value;
  return 0;
}

// Why there is no tensor-core kernel (at most 255 bytes and a zero), or how many tiles lost.
int forward_refusal(char* text, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                    int64_t stride, int64_t dilation, int64_t shared_kb, int64_t multiprocessors, int64_t out_channels,
                    int64_t tf32) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const cuda::ForwardPlan plan = plan_for(s, shared_kb, multiprocessors, out_channels, tf32);
  std::strncpy(text, plan.refused.c_str(), 255);
  return 0;
}

// y is (N, T_out, tau*V, O), with out_channels (N, T_out, V, out_channels); statistics are (2, O), and null with
// moments where they are not wanted.
int forward_run(const void* x, const void* A, const void* A_res, const void* weight, const void* bias,
                const void* collapse_weight, const void* collapse_bias, void* y, void* workspace, void* moments,
                void* statistics, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O, int64_t window,
                int64_t stride, int64_t dilation, int64_t shared_kb, int64_t multiprocessors, int64_t out_channels,
                int64_t tf32, int64_t half, int64_t relu, int64_t transposed, int64_t accumulate) {
  const Sizes s{N, C, T, V, K, O, window, stride, dilation};
  const int64_t R = window * V;
  cuda::Pointers in{x, A, A_res, weight, bias, {R * R, R, 1}, {K * C, C, 1}};
  if (transposed) {  // A as (K, source, destination), weight as (C, K, O)
    in.A_stride[1] = 1, in.A_stride[2] = R;
    in.weight_stride[0] = 1, in.weight_stride[1] = O, in.weight_stride[2] = K * O;
  }
  cuda::Collapse collapse{collapse_weight, collapse_bias, {O * window, window, 1}, accumulate != 0};
  if (transposed) {  // as (slot, O, out_channels)
    collapse.weight_stride[0] = 1, collapse.weight_stride[1] = out_channels;
    collapse.weight_stride[2] = O * out_channels;
  }
  const Problem p = s.problem();
  const cuda::Type type = type_of(tf32, half);
  const cuda::ForwardPlan plan = plan_for(s, shared_kb, multiprocessors, out_channels, tf32);
  const int status =
      cuda::forward(p, type, plan, in, relu != 0, y, workspace, nullptr, out_channels ? &collapse : nullptr, moments);
  if (status || !statistics) return status;
  return plain::merge_statistics(cuda::part_rows(p, plan), O, type, moments, statistics, nullptr);
}
}
