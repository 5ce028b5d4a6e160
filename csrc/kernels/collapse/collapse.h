// What follows the graph convolution over windows in a training step: x (N, T, tau*V, E) -> y (N, T, V, O),
//
//     c[n,t,v,o] = sum_{w,e} weight[o,e,w] relu(bn(x))[n,t,w*V+v,e],    y = bn(c) (+ other)
//
// and the same without the sum, y = relu(bn(x)), for the graph convolution per frame. The biases of the convolutions
// are missing: a batch normalisation follows each of them and takes them away again. Backward needs x, c and the
// statistics.
#pragma once

#include <cstdint>

#include "../normalization.h"
#include "../parallel.h"

namespace msg3d::collapse {

struct Problem {
  int64_t N, T, V, window, E, O;
  double eps;

  int64_t nodes() const { return window * V; }
};

// gamma_beta are (2, columns): all gammas, then all betas.
template <typename T>
struct Inputs {
  const T *x, *weight;       // weight (O, E, tau)
  const T *norm_x, *norm_c;  // (2, E), (2, O)
  const T* multiplicity;     // (N,) or null: all 1
};

template <typename T>
struct Call {
  const Problem& problem;
  const Inputs<T>& in;
  const Gemm<T>& gemm;
  const Pool& pool;
};

// statistics: mean and biased variance, (2, E) and (2, O).
template <typename T>
void forward(const Call<T>& call, const T* other, T* c, T* y, double* statistics_x, double* statistics_c);

template <typename T>
struct Gradients {
  T *x, *weight, *norm_x, *norm_c;
};

template <typename T>
void backward(const Call<T>& call, const T* c, const double* statistics_x, const double* statistics_c, const T* gy,
              const Gradients<T>& gradients);

}  // namespace msg3d::collapse
