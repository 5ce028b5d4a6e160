// Batch normalisation alone, x (N, rows, C) -> y = act(bn(x)), for where no product can take it along.
#pragma once

#include "../normalization.h"
#include "../parallel.h"

namespace msg3d::batch_norm {

struct Problem {
  int64_t N, rows, C;
  bool act;
  double eps;
};

// norm (2, C): gamma, beta; multiplicity (N,) or null; statistics (2, C): mean and biased variance.
template <typename T>
void forward(const Problem& p, const T* x, const T* norm, const T* multiplicity, const Gemm<T>& gemm, const Pool& pool,
             double* statistics, T* y);

template <typename T>
void backward(const Problem& p, const T* x, const T* norm, const T* multiplicity, const double* statistics, const T* y,
              const T* gy, const Gemm<T>& gemm, const Pool& pool, T* grad_x, T* grad_norm);

}  // namespace msg3d::batch_norm
