// Two neighbouring windows of five or three frames, two frames apart, with 30 or 17 % fewer multiplications (Winograd's
// F(2,3) and F(2,2) on the even frames).
//
// With B_j the adjacency's columns of slot j, e_0..e_3 and o_0..o_2 the even and odd ones of the seven frames of Z:
//
//     y_0 = B_0 e_0 + B_1 o_0 + B_2 e_1 + B_3 o_1 + B_4 e_2
//     y_1 = B_0 e_1 + B_1 o_1 + B_2 e_2 + B_3 o_2 + B_4 e_3
//
//     P = (B_0+B_2+B_4)/2 (e_1+e_2) + (B_1+B_3) o_1                Q = (B_0-B_2+B_4)/2 (e_2-e_1)
//     y_0 = P + Q + B_0 (e_0-e_2) + B_1 (o_0-o_1)                  y_1 = P - Q + B_3 (o_2-o_1) + B_4 (e_3-e_1)
//
// and of three frames, from five of Z:
//
//     P = (B_0+B_2) e_1      y_0 = P + B_0 (e_0-e_1) + B_1 o_0      y_1 = P + B_1 o_1 + B_2 (e_2-e_1)
//
// `GraphConvolution::paired` holds [(B_0+B_2+B_4)/2 | B_1+B_3 | (B_0-B_2+B_4)/2], or B_0+B_2.
#pragma once

#include "graph_convolution.h"

namespace msg3d::folded {

// Values of scratch memory for one panel; 0 if the windows do not pair.
template <typename T>
int64_t paired_windows_scratch(const GraphConvolution<T>& conv, int64_t joints) {
  if (!conv.pairs()) return 0;
  const int64_t frames = conv.window == 5 ? 6 : 2, sums = conv.window == 5 ? 2 : 1;
  return (frames * conv.scales + sums * conv.window) * joints * kPanel;
}

// Z of one panel (frames, (k,u), 16), and how far the next panel's lies.
template <typename T>
struct Z {
  const T* first;
  int64_t panel;
};

// Z of window + 2 frames -> relu(y + bias) of two windows, (2, (w,v), out); y begins at the columns of `panels`.
template <typename T>
void paired_windows(const GraphConvolution<T>& conv, int64_t joints, const Z<T>& z, Panels panels, T* y, T* scratch,
                    ProductFunction<T> product);

}  // namespace msg3d::folded
