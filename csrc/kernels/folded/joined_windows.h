// Neighbouring windows, two frames apart, that share enough frames to be computed together with fewer multiplications.
//
// Even and odd frames are two convolutions at stride 1 (Winograd's minimal filtering, over matrices). With B_j the
// adjacency's columns of slot j, e_i and o_i the even and odd frames of Z:
//
// Four windows of five, from eleven frames, 45 % fewer. F(4,3) on the even frames takes the points 0, 1, -1, 1/2, -2
// and infinity, F(4,2) on the odd ones all of these but -2. Points p at which both are needed have one product, of
// depth 2*K*V:
//
//     m_p = 1/n_p (B_0 + p B_2 + p^2 B_4) E_p(e_0..e_5) + 1/n'_p (B_1 + p B_3) O_p(o_0..o_4)    y_i = sum_p p^i m_p
//
// where n_p is the product of p - q over the other points q, and E_p, O_p are sums of frames (kInput in
// gemm/column_passes_impl.h). At infinity B_4 and B_3 stand alone, and m belongs to y_3. Rounding errors are 2.3 times
// those of the plain sum.
//
// Two windows of three, from five frames, 17 % fewer:
//
//     P = (B_0+B_2) e_1      y_0 = P + B_0 (e_0-e_1) + B_1 o_0      y_1 = P + B_1 o_1 + B_2 (e_2-e_1)
//
// `GraphConvolution::joined` holds the factors on the left: of four windows in the order 0, infinity, 1, -1, 1/2, -2,
// of two (B_0+B_2).
#pragma once

#include "graph_convolution.h"

namespace msg3d::folded {

// Values of scratch memory for one panel; 0 if no windows are joined.
template <typename T>
int64_t joined_windows_scratch(const GraphConvolution<T>& conv, int64_t joints) {
  if (conv.joins() == 1) return 0;
  const int64_t frames = conv.joins() == 4 ? 11 : 2, products = conv.joins() == 4 ? 6 : 1;
  return (frames * conv.scales + products * conv.window) * joints * kPanel;
}

// Z of one panel (frames, (k,u), 16), and how far the next panel's lies.
template <typename T>
struct Z {
  const T* first;
  int64_t panel;
};

// Z of 2 * joins() + window - 2 frames -> relu(y + bias) of joins() windows, (windows, (w,v), out); y begins at the
// columns of `panels`.
template <typename T>
void joined_windows(const GraphConvolution<T>& conv, int64_t joints, const Z<T>& z, Panels panels, T* y, T* scratch,
                    const Machine<T>& machine);

}  // namespace msg3d::folded
