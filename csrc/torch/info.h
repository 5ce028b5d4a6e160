// What this binary is and what it finds on this machine.
#pragma once

#include <string>

namespace msg3d::binding {

// JSON: isa in use, isas supported, compiler, cuda (null where it was not built, else versions, error, devices).
std::string info();

// Chooses the instruction set of the CPU kernels; "auto" is the fastest. False: unknown here, or this machine lacks it.
bool set_isa(std::string name);

}  // namespace msg3d::binding
