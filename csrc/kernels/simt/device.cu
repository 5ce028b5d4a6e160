// Asks the CUDA runtime what there is. The probe kernel is compiled for the same targets as every other kernel: where
// its attributes can be had, so can theirs.
#include <cuda_runtime.h>

#include <cstdio>

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

}  // namespace msg3d
