// What every call on a GPU does: choose the device and its stream, look at what it is, and see that launches succeed.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <mutex>

#include "../kernels/simt/device.h"
#include "tensors.h"

namespace msg3d::binding::gpu {

// While it lives, x's device is the current one.
#ifdef MSG3D_EMULATED
class OnDevice {  // the emulator runs one kernel at a time
 public:
  explicit OnDevice(const Tensor&) : lock_(only_one()) {}
  int index() const { return 0; }
  void* stream() const { return nullptr; }

 private:
  static std::mutex& only_one() {
    static std::mutex mutex;
    return mutex;
  }
  std::lock_guard<std::mutex> lock_;
};
#else
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}
  int index() const { return index_; }
  void* stream() const { return torch::stable::accelerator::getCurrentStream(index_).nativeHandle(); }

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// No launch may fail unseen, and the message says where.
inline void launched(int status, const char* op, const char* what) {
  require(status == 0, op, ": ", what, " was not launched: CUDA error ", status, " (", cuda_error_text(status),
          "); msg3d-fast doctor says what this build holds for which device");
}

inline DeviceLimits limits_of(const OnDevice& device, const char* op) {
  DeviceLimits limits;
  launched(device_limits(device.index(), limits), op, "a query of the device");
  return limits;
}

// Kernels read 16 bytes at once, which a view into the middle of a tensor may not allow.
inline bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }
inline Tensor aligned(const Tensor& tensor) { return is_aligned(tensor) ? tensor : torch::stable::clone(tensor); }

}  // namespace msg3d::binding::gpu
