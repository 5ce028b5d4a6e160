#include "paired_windows.h"

namespace msg3d::folded {

namespace {

template <typename T>
void pair_of_five(const GraphConvolution<T>& conv, int64_t joints, const T* z, const T* bias, T* y, T* scratch,
                  void (*product)(const FusedProduct<T>&)) {
  const int64_t rows = conv.scales * joints, frame = rows * kPanel, nodes = conv.window * joints;
  const auto even = [&](int64_t i) { return z + 2 * i * frame; };
  const auto odd = [&](int64_t i) { return z + (2 * i + 1) * frame; };
  T* const sums = scratch;
  T *p = sums + 6 * frame, *q = p + nodes * kPanel;
  for (int64_t i = 0; i < frame; ++i) {
    const T e1 = even(1)[i], e2 = even(2)[i], o1 = odd(1)[i];
    sums[i] = e1 + e2;
    sums[i + frame] = e2 - e1;
    sums[i + 2 * frame] = even(0)[i] - e2;
    sums[i + 3 * frame] = odd(0)[i] - o1;
    sums[i + 4 * frame] = odd(2)[i] - o1;
    sums[i + 5 * frame] = even(3)[i] - e1;
  }
  const Segment<T> p_segments[] = {{conv.paired, 0, 3 * rows, sums, 0, kPanel, rows},
                                   {conv.paired + rows, 0, 3 * rows, odd(1), 0, kPanel, rows}};
  product({p_segments, 2, 1, nodes, p, 0, kPanel});
  const Segment<T> q_segment{conv.paired + 2 * rows, 0, 3 * rows, sums + frame, 0, kPanel, rows};
  product({&q_segment, 1, 1, nodes, q, 0, kPanel});
  for (int64_t i = 0; i < nodes * kPanel; ++i) {
    const T sum = p[i] + q[i], difference = p[i] - q[i];
    p[i] = sum, q[i] = difference;
  }
  for (int64_t i = 0; i < 2; ++i) {  // slots 0 and 1 for the first window, 3 and 4 for the second
    const Segment<T> rest{
        conv.adjacency + 3 * i * rows, 0, conv.window * rows, sums + (2 + 2 * i) * frame, 0, kPanel, 2 * rows};
    product({&rest, 1, 1, nodes, y + i * nodes * conv.out, 0, conv.out, bias, i ? q : p, 0, kPanel, true});
  }
}

template <typename T>
void pair_of_three(const GraphConvolution<T>& conv, int64_t joints, const T* z, const T* bias, T* y, T* scratch,
                   void (*product)(const FusedProduct<T>&)) {
  const int64_t rows = conv.scales * joints, frame = rows * kPanel, nodes = conv.window * joints;
  T *const before = scratch, *const after = before + frame, *const p = after + frame;
  for (int64_t i = 0; i < frame; ++i) {
    const T middle = z[i + 2 * frame];
    before[i] = z[i] - middle;
    after[i] = z[i + 4 * frame] - middle;
  }
  const Segment<T> shared{conv.paired, 0, rows, z + 2 * frame, 0, kPanel, rows};
  product({&shared, 1, 1, nodes, p, 0, kPanel});
  for (int64_t i = 0; i < 2; ++i) {  // slots 0 and 1 for the first window, 2 and 1 for the second
    const Segment<T> rest[] = {
        {conv.adjacency + 2 * i * rows, 0, conv.window * rows, i ? after : before, 0, kPanel, rows},
        {conv.adjacency + rows, 0, conv.window * rows, z + (1 + 2 * i) * frame, 0, kPanel, rows}};
    product({rest, 2, 1, nodes, y + i * nodes * conv.out, 0, conv.out, bias, p, 0, kPanel, true});
  }
}

}  // namespace

template <typename T>
void paired_windows(const GraphConvolution<T>& conv, int64_t joints, const T* z, int64_t panel, T* y, T* scratch,
                    void (*product)(const FusedProduct<T>&)) {
  (conv.window == 5 ? pair_of_five<T> : pair_of_three<T>)(conv, joints, z, conv.bias + panel * kPanel, y, scratch,
                                                          product);
}

#define MSG3D_INSTANTIATE(T)                                                                      \
  template void paired_windows<T>(const GraphConvolution<T>&, int64_t, const T*, int64_t, T*, T*, \
                                  void (*)(const FusedProduct<T>&));
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
