#include "paired_windows.h"

#include "vector.h"

namespace msg3d::folded {

namespace {

// One call's operands; every panel has its own Z and its own sums in scratch memory.
template <typename T>
struct Pair {
  const GraphConvolution<T>& conv;
  int64_t joints;
  const Z<T>& z;
  Panels panels;
  T* scratch;
  ProductFunction<T> product;
  int64_t rows = conv.scales * joints, frame = rows * kPanel, nodes = conv.window * joints;
  int64_t scratch_panel = paired_windows_scratch(conv, joints);

  template <typename Body>
  void each_panel(const Body& body) const {
    for (int64_t i = 0; i < panels.count; ++i) body(z.first + i * z.panel, scratch + i * scratch_panel);
  }

  // Columns [block * rows, block * rows + depth) of the paired adjacency, or of the adjacency itself, times b.
  Segment<T> shared(int64_t block, const T* b, int64_t panel) const {
    return {conv.paired + block * rows, 0, conv.pair_blocks() * rows, b, 0, kPanel, rows, panel};
  }
  Segment<T> slots(int64_t first, int64_t count, const T* b, int64_t panel) const {
    return {conv.adjacency + first * rows, 0, conv.window * rows, b, 0, kPanel, count * rows, panel};
  }

  void sum(const Segment<T>* segments, int64_t count, T* to) const {
    FusedProduct<T> out{segments, count, 1, nodes, to, 0, kPanel};
    out.panels = panels.count, out.c_panel = scratch_panel;
    product(out);
  }
  void finish(const Segment<T>* segments, int64_t count, const T* add, T* y) const {
    FusedProduct<T> out{segments, count, 1,      nodes, y, 0, conv.out, conv.bias + panels.first * kPanel,
                        add,      0,     kPanel, true};
    out.panels = panels.count, out.add_panel = scratch_panel;
    product(out);
  }
};

template <typename T>
void pair_of_five(const Pair<T>& pair, T* y) {
  const int64_t frame = pair.frame, nodes = pair.nodes, scratch_panel = pair.scratch_panel;
  T *const sums = pair.scratch, *const p = sums + 6 * frame, *const q = p + nodes * kPanel;
  pair.each_panel([&](const T* z, T* sums) {
    using Lanes = Vector<T>;
    for (int64_t i = 0; i < frame; i += Lanes::kLanes) {  // too many streams for a compiler to see that they lie apart
      const auto even = [&](int64_t j) { return Lanes::load(z + i + 2 * j * frame); };
      const auto odd = [&](int64_t j) { return Lanes::load(z + i + (2 * j + 1) * frame); };
      const auto put = [&](int64_t j, typename Lanes::type value) { Lanes::store(sums + i + j * frame, value); };
      const typename Lanes::type e1 = even(1), e2 = even(2), o1 = odd(1);
      put(0, e1 + e2);
      put(1, e2 - e1);
      put(2, even(0) - e2);
      put(3, odd(0) - o1);
      put(4, odd(2) - o1);
      put(5, even(3) - e1);
    }
  });
  const Segment<T> p_segments[] = {pair.shared(0, sums, scratch_panel),
                                   pair.shared(1, pair.z.first + 3 * frame, pair.z.panel)};
  pair.sum(p_segments, 2, p);
  const Segment<T> q_segment = pair.shared(2, sums + frame, scratch_panel);
  pair.sum(&q_segment, 1, q);
  pair.each_panel([&](const T*, T* sums) {
    T *const p = sums + 6 * frame, *const q = p + nodes * kPanel;
    for (int64_t i = 0; i < nodes * kPanel; ++i) {
      const T sum = p[i] + q[i], difference = p[i] - q[i];
      p[i] = sum, q[i] = difference;
    }
  });
  for (int64_t i = 0; i < 2; ++i) {  // slots 0 and 1 for the first window, 3 and 4 for the second
    const Segment<T> rest = pair.slots(3 * i, 2, sums + (2 + 2 * i) * frame, scratch_panel);
    pair.finish(&rest, 1, i ? q : p, y + i * nodes * pair.conv.out);
  }
}

template <typename T>
void pair_of_three(const Pair<T>& pair, T* y) {
  const int64_t frame = pair.frame, scratch_panel = pair.scratch_panel;
  T *const before = pair.scratch, *const after = before + frame, *const p = after + frame;
  pair.each_panel([&](const T* z, T* sums) {
    for (int64_t i = 0; i < frame; ++i) {
      const T middle = z[i + 2 * frame];
      sums[i] = z[i] - middle;
      sums[i + frame] = z[i + 4 * frame] - middle;
    }
  });
  const Segment<T> shared = pair.shared(0, pair.z.first + 2 * frame, pair.z.panel);
  pair.sum(&shared, 1, p);
  for (int64_t i = 0; i < 2; ++i) {  // slots 0 and 1 for the first window, 2 and 1 for the second
    const Segment<T> rest[] = {pair.slots(2 * i, 1, i ? after : before, scratch_panel),
                               pair.slots(1, 1, pair.z.first + (1 + 2 * i) * frame, pair.z.panel)};
    pair.finish(rest, 2, p, y + i * pair.nodes * pair.conv.out);
  }
}

}  // namespace

template <typename T>
void paired_windows(const GraphConvolution<T>& conv, int64_t joints, const Z<T>& z, Panels panels, T* y, T* scratch,
                    ProductFunction<T> product) {
  (conv.window == 5 ? pair_of_five<T> : pair_of_three<T>)({conv, joints, z, panels, scratch, product}, y);
}

#define MSG3D_INSTANTIATE(T) \
  template void paired_windows<T>(const GraphConvolution<T>&, int64_t, const Z<T>&, Panels, T*, T*, ProductFunction<T>);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
