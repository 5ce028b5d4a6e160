#include "info.h"

#include <sstream>

#include "../kernels/gemm/gemm.h"
#ifdef MSG3D_WITH_CUDA
#include "../kernels/simt/device.h"
#endif

namespace msg3d::binding {
namespace {

#ifdef MSG3D_WITH_CUDA
std::string cuda_info() {
  CudaReport report;
  cuda_report(report);
  std::ostringstream json;
  json << "{\"runtime_version\": " << report.runtime_version << ", \"driver_version\": " << report.driver_version
       << ", \"error\": " << report.error << ", \"error_name\": \"" << report.error_name << "\", \"devices\": [";
  for (int i = 0; i < report.device_count; ++i) {
    const DeviceReport& device = report.devices[i];
    json << (i ? ", " : "") << "{\"name\": \"" << device.name << "\", \"capability\": \"" << device.major << "."
         << device.minor << "\", \"has_code\": " << (device.has_code ? "true" : "false") << "}";
  }
  json << "]}";
  return json.str();
}
#else
std::string cuda_info() { return "null"; }
#endif

}  // namespace

std::string info() {
  std::ostringstream json;
  json << "{\"isa\": \"" << current_isa().name << "\", \"wide_isa\": \"" << current_wide_isa().name
       << "\", \"supported_isas\": \"" << supported_isas() << "\", \"compiler\": \"" << __VERSION__
       << "\", \"cuda\": " << cuda_info() << "}";
  return json.str();
}

bool set_isa(std::string name) { return msg3d::set_isa(name.c_str()); }

}  // namespace msg3d::binding
