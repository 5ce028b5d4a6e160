// The runtime for Python: memory, options, raw launches, faults and counters. Kernels live in libraries of their own
// that find the runtime in this module (build.py); their launchers are plain C functions.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "control.h"
#include "runtime.h"

namespace py = pybind11;
namespace emulator = msg3d::simt::emulator;

namespace {

py::dict as_dict(const emulator::Counters& c) {
  static const char* const classes[] = {"lds", "sts", "ldmatrix", "cp_async"};
  py::dict result, shared, global;
  for (int i = 0; i < emulator::kAccessClasses; ++i) {
    shared[classes[i]] = py::dict(py::arg("wavefronts") = c.shared[i].count, py::arg("least") = c.shared[i].least);
  }
  for (const auto& [name, sectors] : c.global) {
    global[name.c_str()] =
        py::dict(py::arg("read") = sectors.read, py::arg("written") = sectors.written,
                 py::arg("bytes_read") = sectors.bytes_read, py::arg("bytes_written") = sectors.bytes_written);
  }
  result["kernel"] = c.kernel;
  result["grid"] = py::make_tuple(c.grid.x, c.grid.y, c.grid.z);
  result["threads"] = c.threads;
  result["shared_bytes"] = c.shared_bytes;
  result["mma"] = c.mma;
  result["mma_clocks"] = py::make_tuple(c.mma_clocks[0], c.mma_clocks[1], c.mma_clocks[2], c.mma_clocks[3]);
  result["shared"] = shared;
  result["global"] = global;
  result["intervals"] = c.intervals;
  result["interval_mma"] = c.interval_mma;
  result["interval_a100"] = c.interval_a100;
  result["interval_h100"] = c.interval_h100;
  return result;
}

// A launch by the kernel's name in a loaded library, as route P can do it: arguments are bytes.
int launch_raw(const std::string& library, const std::string& name, std::tuple<unsigned, unsigned, unsigned> grid,
               int threads, int shared_bytes, const std::vector<std::string>& arguments) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  void* const kernel = handle ? dlsym(handle, name.c_str()) : nullptr;
  if (kernel == nullptr) throw std::invalid_argument("no kernel " + name + " in " + library);
  std::vector<std::vector<uint64_t>> aligned;
  std::vector<void*> pointers;
  for (const std::string& argument : arguments) {
    aligned.emplace_back(argument.size() / 8 + 1);
    memcpy(aligned.back().data(), argument.data(), argument.size());
  }
  for (auto& argument : aligned) pointers.push_back(argument.data());
  const auto call = [](const void*, void* const*) {};
  const auto [x, y, z] = grid;
  return emulator::launch({kernel, call, pointers.data(), {x, y, z}, threads, shared_bytes});
}

}  // namespace

PYBIND11_MODULE(emulator_runtime, m) {
  m.def("configure", [](uint64_t seed, const std::string& landing, bool checks, bool count, bool ptx, bool strict) {
    const auto when = landing == "late"    ? emulator::Landing::kLate
                      : landing == "early" ? emulator::Landing::kEarly
                                           : emulator::Landing::kRandom;
    emulator::options() = {seed, when, checks, count, ptx, strict};
  });
  m.def("allocate", [](const std::string& name, size_t bytes, bool initialised) {
    return reinterpret_cast<uintptr_t>(emulator::allocate(name, bytes, initialised));
  });
  m.def("release", [](uintptr_t base) { emulator::release(reinterpret_cast<void*>(base)); });
  m.def("load", [](const std::string& path) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<uintptr_t>(handle);
  });
  m.def("launch", launch_raw);
  m.def("fault", emulator::fault);
  m.def("clear_fault", emulator::clear_fault);
  m.def("error_text", emulator::error_text);
  m.def("launches", emulator::launches);
  m.def("clear_counters", emulator::clear_counters);
  m.def("counters", [] {
    py::list all;
    for (const emulator::Counters& c : emulator::counters()) all.append(as_dict(c));
    return all;
  });
}
