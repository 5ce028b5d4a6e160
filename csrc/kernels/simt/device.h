// What CUDA devices there are and whether this binary holds code for them. Raw C++: no CUDA header, no torch.
#pragma once

namespace msg3d {

constexpr int kMaxDevices = 64;

struct DeviceReport {
  char name[256];
  int major, minor;  // compute capability
  bool has_code;     // this binary runs on it
};

// Every member stays valid without a GPU or a driver: `error` is then CUDA's code (35: driver missing or too old; 100:
// no device).
struct CudaReport {
  int runtime_version, driver_version;  // 13000 is 13.0; the driver's is 0 without a driver
  int error;
  const char* error_name;
  int device_count;
  DeviceReport devices[kMaxDevices];
};

void cuda_report(CudaReport& report);

// What a plan must know of a device.
struct DeviceLimits {
  int arch;             // compute capability times ten
  int multiprocessors;  // SMs
  int shared_bytes;     // that one block may ask for
};

// CUDA's error code, 0 if there is none. Devices are asked once.
int device_limits(int index, DeviceLimits& limits);

const char* cuda_error_text(int status);

}  // namespace msg3d
