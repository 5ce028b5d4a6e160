// The registered functions of MS-G3D on a GPU: they check, allocate, plan and launch on torch's current stream. Nothing
// here waits for the device or touches the host's memory of it, so that CUDA graphs can capture every call.
//
// With MSG3D_EMULATED the same code runs the same kernels over tensors on the CPU (emulated.cpp).
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace msg3d::binding::gpu {

// What plans must know of a device, as JSON: `arch`, `multiprocessors`, `shared_bytes` of a block.
std::string device_limits_of(int64_t index);

// y (N, O, T_out, tau*V), channels_last; every type that there is: float32, float64, float16, bfloat16. With tf32,
// products of float32 take ten bits of a mantissa where there is a kernel for it, backwards too.
Tensor ms_g3d(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
              int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);

// y, and over clips, windows and nodes the mean and then the variance of its channels, (2, O) in float32, for float64
// in float64: gathered while y is written. At least one clip.
std::tuple<Tensor, Tensor> ms_g3d_statistics(const Tensor& x, const Tensor& A, const Tensor& weight,
                                             const std::optional<Tensor>& bias, int64_t window_size,
                                             int64_t window_stride, int64_t window_dilation, bool tf32);

// The order in which the tensor cores' kernel for x's sizes reads A and weight, and fold where it is a collapse: a
// number, 0 where no such kernel runs. ms_g3d_pack brings them into that order once: bytes for `packed` of the two
// functions below, which pack for themselves where their own `layout` is another one.
int64_t ms_g3d_layout(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& fold,
                      int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);
Tensor ms_g3d_pack(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& fold,
                   int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);

// max(ms_g3d(...), 0) in one kernel.
Tensor ms_g3d_relu(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                   int64_t window_size, int64_t window_stride, int64_t window_dilation,
                   const std::optional<Tensor>& packed, int64_t layout, bool tf32);

// Writes (or adds, with `accumulate`) into out (N, channels, T_out, V) what folds relu(ms_g3d(...)) over the slots of a
// window: sum_w fold[:, :, w] y[w] + fold_bias, and a ReLU of all that with `relu`. An error where no kernel does all
// of it for these sizes and types: ms_g3d_cuda_plan says so beforehand.
void ms_g3d_collapse(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& fold, const std::optional<Tensor>& fold_bias, Tensor& out, bool accumulate,
                     bool relu, int64_t window_size, int64_t window_stride, int64_t window_dilation,
                     const std::optional<Tensor>& packed, int64_t layout, bool tf32);

Tensor ms_g3d_backward_input(const Tensor& gy, const Tensor& x, const Tensor& A, const Tensor& weight,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool tf32);

std::tuple<Tensor, Tensor, Tensor> ms_g3d_backward_parameters(const Tensor& gy, const Tensor& x, const Tensor& A,
                                                              const Tensor& weight, int64_t window_size,
                                                              int64_t window_stride, int64_t window_dilation,
                                                              bool need_A, bool need_weight, bool need_bias, bool tf32);

}  // namespace msg3d::binding::gpu
