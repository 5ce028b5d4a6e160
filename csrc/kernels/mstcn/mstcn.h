// Training step of the multi-scale temporal convolution, x (N, T, V, C) -> y (N, T_out, V, O), T_out = ceil(T /
// stride):
//
//     p = W_in x                                                  five kinds of branch enter through one product
//     z = [ conv_d(relu(bn(p_d))) for every dilation d | maxpool(relu(bn(p_pool))) | W_last x[::stride] ]
//     r = W_residual x[::stride],  or x itself
//     y = act( bn(z) + bn(r) )
//
// A branch has b = O / (dilations + 2) columns, the last one the remainder too; p has E = (dilations + 1) * b columns.
// Biases of convolutions are missing: a batch normalisation follows each of them and takes them away again.
// p, z, r before their normalisation and the statistics are what backward needs besides x and y; the rest it
// recomputes.
#pragma once

#include <cstdint>
#include <vector>

#include "../normalization.h"
#include "../parallel.h"

namespace msg3d::mstcn {

struct Problem {
  int64_t N, T, V, C, O;
  int64_t stride, taps;
  std::vector<int64_t> dilations;
  bool identity, act;  // the residual is x itself (no r); y ends with a ReLU
  double eps;

  int64_t convolutions() const { return static_cast<int64_t>(dilations.size()); }
  int64_t branch() const { return O / (convolutions() + 2); }
  int64_t entry() const { return (convolutions() + 1) * branch(); }
  int64_t last() const { return O - entry(); }
  int64_t frames_out() const { return (T + stride - 1) / stride; }
};

// gamma_beta are (2, columns): all gammas, then all betas. weight_residual is null without r.
template <typename T>
struct Inputs {
  const T* x;
  const T *weight_in, *weight_time, *weight_residual;  // (O, C), (dilations, b, b, taps), (O, C)
  const T *norm_p, *norm_z, *norm_r;                   // (2, E), (2, O), (2, O)
  const T* multiplicity;                               // (N,) or null: all 1
};

template <typename T>
struct Saved {
  T *p, *z, *r;                                        // (N, T, V, E), (N, T_out, V, O), the same
  double *statistics_p, *statistics_z, *statistics_r;  // mean and biased variance: (2, E), (2, O), (2, O)
};

template <typename T>
struct Gradients {
  T* x;
  T *weight_in, *weight_time, *weight_residual;
  T *norm_p, *norm_z, *norm_r;
};

template <typename T>
struct Call {
  const Problem& problem;
  const Inputs<T>& in;
  const Gemm<T>& gemm;
  const Pool& pool;
};

template <typename T>
void forward(const Call<T>& call, const Saved<T>& saved, T* y);

template <typename T>
void backward(const Call<T>& call, const Saved<T>& saved, const T* y, const T* gy, const Gradients<T>& gradients);

}  // namespace msg3d::mstcn
