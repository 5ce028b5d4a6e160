// Asks the CUDA runtime what there is. The probe kernel is compiled for the same targets as every other kernel: where
// its attributes can be had, so can theirs.
#include <cuda_runtime.h>

#include <cstdio>
#include <mutex>

#include "device.h"

namespace msg3d {

__global__ void probe() {}

void cuda_report(CudaReport& report) {
  report = {};
  report.runtime_version = CUDART_VERSION;
  cudaDriverGetVersion(&report.driver_version);
  cudaError_t status = cudaGetDeviceCount(&report.device_count);
  if (status != cudaSuccess) report.device_count = 0;
  if (report.device_count > kMaxDevices) report.device_count = kMaxDevices;
  int previous = 0;
  if (report.device_count > 0) status = cudaGetDevice(&previous);
  for (int i = 0; i < report.device_count && status == cudaSuccess; ++i) {
    DeviceReport& device = report.devices[i];
    cudaDeviceProp properties;
    if ((status = cudaGetDeviceProperties(&properties, i)) != cudaSuccess) break;
    std::snprintf(device.name, sizeof(device.name), "%s", properties.name);
    device.major = properties.major, device.minor = properties.minor;
    if ((status = cudaSetDevice(i)) != cudaSuccess) break;
    cudaFuncAttributes attributes;
    device.has_code = cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
  }
  if (report.device_count > 0) cudaSetDevice(previous);
  report.error = static_cast<int>(status);
  report.error_name = cudaGetErrorName(status);
  cudaGetLastError();  // leave no error behind for the next caller
}

int device_limits(int index, DeviceLimits& limits) {
  static std::mutex mutex;
  static DeviceLimits known[kMaxDevices];  // arch 0: not asked yet
  if (index < 0 || index >= kMaxDevices) return static_cast<int>(cudaErrorInvalidDevice);
  const std::lock_guard<std::mutex> lock(mutex);
  if (known[index].arch == 0) {
    int major = 0, minor = 0, count = 0, shared = 0;
    cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
      if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
    };
    ask(minor, cudaDevAttrComputeCapabilityMinor);
    ask(count, cudaDevAttrMultiProcessorCount);
    ask(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (status != cudaSuccess) {
      cudaGetLastError();
      return static_cast<int>(status);
    }
    known[index] = {10 * major + minor, count, shared};
  }
  limits = known[index];
  return 0;
}

const char* cuda_error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace msg3d
