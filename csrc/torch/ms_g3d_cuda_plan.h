// The plan of MS-G3D on a GPU, for any device and without one: the code that a call on that device runs.
#pragma once

#include <cstdint>
#include <string>

#include "../kernels/ms_g3d/cuda/backward/plan.h"

namespace msg3d::binding::gpu {

// "auto", "plain" or a part of a tile's name: what plans are held to, from now on, where a tile that fits has that
// name.
void ms_g3d_set_cuda_plan(std::string name);

// What a call runs as. Looking at every tile takes the host longer than a small launch: plans are kept.
ms_g3d::cuda::ForwardPlan planned_forward(const ms_g3d::Problem& p, ms_g3d::cuda::Type type,
                                          const ms_g3d::cuda::Device& device, int64_t out_channels);
ms_g3d::cuda::BackwardPlan planned_backward(const ms_g3d::Problem& p, ms_g3d::cuda::Type type,
                                            const ms_g3d::cuda::Device& device);

// JSON: `kernel` and `tile` or why it was `refused`, `forced`, sizes of the launch, the modelled clocks, the `rejected`
// tiles each with a reason; `backward`, which of its kernels run on tensor cores, or why not. `out_channels`: of the
// collapse behind it, 0 for none. Errors name what is no problem, type or device.
std::string ms_g3d_cuda_plan(std::string dtype, int64_t N, int64_t C, int64_t T, int64_t V, int64_t K, int64_t O,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, int64_t out_channels,
                             int64_t arch, int64_t multiprocessors, int64_t shared_bytes);

}  // namespace msg3d::binding::gpu
