// What every device's binding of MS-G3D does with its arguments: check them, and bring them into the memory format that
// the kernels take.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../kernels/ms_g3d/problem.h"
#include "tensors.h"

namespace msg3d::binding {

template <typename... Words>
void check(bool condition, const Words&... words) {
  if (condition) return;
  std::ostringstream line;
  line << "ms_g3d: ";
  (line << ... << words);
  throw std::runtime_error(line.str());
}

// The problem that the arguments describe. Errors name the argument, what was given, what was expected, what to do;
// ops.py says the same in the same words. `half_too`: float16 and bfloat16 beside float32 and float64.
ms_g3d::Problem check_inputs(const Tensor& x, const Tensor& A, const Tensor& weight, const std::optional<Tensor>& bias,
                             int64_t window_size, int64_t window_stride, int64_t window_dilation, bool half_too);
void check_gy(const Tensor& gy, const Tensor& x, const ms_g3d::Problem& p);

// The tensor itself if it is channels_last, else a copy, which is counted.
Tensor counted_channels_last(const Tensor& tensor);
// How many tensors of x's or gy's kind had to be copied since the library was loaded.
int64_t format_conversions();

}  // namespace msg3d::binding
