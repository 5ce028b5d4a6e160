// Every instruction set that the build holds, whatever this machine supports: AVX-512's tiles run anywhere when their
// file is compiled for less, since the vectors are then made of smaller ones.
#pragma once

#include "kernels/gemm/gemm.h"

inline const msg3d::Isa* const kIsas[] = {
    &msg3d::kPortable,
#if defined(__x86_64__)
    &msg3d::kAvx2,
    &msg3d::kAvx512,
#endif
};
