// What every binding needs: tensors in the library's memory format, torch's threads, and words for errors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/parallel.h"

namespace msg3d::binding {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Words>
void require(bool condition, const Words&... words) {
  if (condition) return;
  std::ostringstream line;
  (line << ... << words);
  throw std::runtime_error(line.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

inline void require_shape(const char* op, const char* argument, const Tensor& tensor, const std::vector<int64_t>& sizes,
                          ScalarType type) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (std::size_t i = 0; same && i < sizes.size(); ++i) same = tensor.size(i) == sizes[i];
  std::string expected;
  for (const int64_t size : sizes) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  require(same, op, ": ", argument, " has shape ", shape_of(tensor), "; expected (", expected, ")");
  require(tensor.is_cpu() && tensor.scalar_type() == type, op, ": ", argument, " is ",
          torch::headeronly::toString(tensor.scalar_type()), "; expected ", torch::headeronly::toString(type),
          " on the CPU");
}

inline bool is_channels_last(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  const int64_t dense[4] = {height * width * channels, 1, width * channels, channels};
  for (int64_t i = 0; i < 4; ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) != dense[i]) return false;
  }
  return true;
}

inline Tensor channels_last(const Tensor& tensor) {
  return is_channels_last(tensor) ? tensor : torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

inline Tensor empty_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

inline Tensor empty_like_type(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device());
}

// Means and variances of so many columns, in double whatever the type of the data.
inline Tensor empty_statistics(const Tensor& like, int64_t columns) {
  return torch::stable::empty({2 * columns}, ScalarType::Double, std::nullopt, like.device());
}

// Calls run with a value of the element type.
template <typename Run>
void with_type(ScalarType type, const Run& run) {
  type == ScalarType::Float ? run(float()) : run(double());
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}
template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// torch's own pool. Each worker is one index of a parallel_for, so nested calls run one after the other.
inline Pool torch_pool() {
  return {static_cast<int>(torch::stable::get_num_threads()), [](int workers, void (*body)(void*, int), void* context) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
            });
          }};
}

}  // namespace msg3d::binding
