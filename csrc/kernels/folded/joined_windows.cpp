#include "joined_windows.h"

namespace msg3d::folded {

namespace {

// One call's operands; every panel has its own Z, its own sums of frames and its own products in scratch memory.
template <typename T>
struct Windows {
  const GraphConvolution<T>& conv;
  int64_t joints;
  const Z<T>& z;
  Panels panels;
  T* scratch;
  const Machine<T>& machine;
  int64_t rows = conv.scales * joints, frame = rows * kPanel, nodes = conv.window * joints;
  int64_t scratch_panel = joined_windows_scratch(conv, joints);

  template <typename Body>
  void each_panel(const Body& body) const {
    for (int64_t i = 0; i < panels.count; ++i) body(i, z.first + i * z.panel, scratch + i * scratch_panel);
  }

  // Columns of the joined adjacency, from `first` on, times so many rows of b; `groups` of them one after the other.
  void multiply(int64_t first, int64_t depth, const T* b, int64_t b_panel, int64_t groups, T* to) const {
    const Segment<T> segment{
        conv.joined + first, depth, conv.joined_blocks() * rows, b, depth * kPanel, kPanel, depth, b_panel};
    FusedProduct<T> out{&segment, 1, groups, nodes, to, nodes * kPanel, kPanel};
    out.panels = panels.count, out.c_panel = scratch_panel;
    machine.product(out);
  }
};

template <typename T>
void four_of_five(const Windows<T>& windows, T* y) {
  const int64_t rows = windows.rows, out = windows.conv.out, nodes = windows.nodes;
  T *const sums = windows.scratch, *const products = sums + 11 * windows.frame;
  windows.each_panel(
      [&](int64_t, const T* z, T* sums) { windows.machine.passes.winograd_input(windows.frame, z, sums); });
  windows.multiply(0, 2 * rows, sums, windows.scratch_panel, 5, products);
  windows.multiply(10 * rows, rows, sums + 10 * windows.frame, windows.scratch_panel, 1, products + 5 * nodes * kPanel);
  windows.each_panel([&](int64_t i, const T*, T* sums) {
    windows.machine.passes.winograd_output(nodes, sums + 11 * windows.frame,
                                           windows.conv.bias + (windows.panels.first + i) * kPanel, y + i * kPanel, out,
                                           nodes * out);
  });
}

template <typename T>
void two_of_three(const Windows<T>& windows, T* y) {
  const int64_t frame = windows.frame, rows = windows.rows, scratch_panel = windows.scratch_panel;
  const GraphConvolution<T>& conv = windows.conv;
  T *const before = windows.scratch, *const after = before + frame, *const p = after + frame;
  windows.each_panel([&](int64_t, const T* z, T* sums) {
    windows.machine.passes.difference(frame, z, z + 2 * frame, sums);
    windows.machine.passes.difference(frame, z + 4 * frame, z + 2 * frame, sums + frame);
  });
  windows.multiply(0, rows, windows.z.first + 2 * frame, windows.z.panel, 1, p);
  for (int64_t i = 0; i < 2; ++i) {  // slots 0 and 1 for the first window, 2 and 1 for the second
    const auto slot = [&](int64_t slot, const T* b, int64_t b_panel) {
      return Segment<T>{conv.adjacency + slot * rows, 0, conv.window * rows, b, 0, kPanel, rows, b_panel};
    };
    const Segment<T> rest[] = {slot(2 * i, i ? after : before, scratch_panel),
                               slot(1, windows.z.first + (1 + 2 * i) * frame, windows.z.panel)};
    FusedProduct<T> out{rest, 2, 1, windows.nodes, y + i * windows.nodes * conv.out, 0, conv.out};
    out.bias = conv.bias + windows.panels.first * kPanel;
    out.add = p, out.add_row = kPanel, out.add_panel = scratch_panel;
    out.relu = true;
    out.panels = windows.panels.count;
    windows.machine.product(out);
  }
}

}  // namespace

template <typename T>
void joined_windows(const GraphConvolution<T>& conv, int64_t joints, const Z<T>& z, Panels panels, T* y, T* scratch,
                    const Machine<T>& machine) {
  (conv.joins() == 4 ? four_of_five<T> : two_of_three<T>)({conv, joints, z, panels, scratch, machine}, y);
}

#define MSG3D_INSTANTIATE(T) \
  template void joined_windows<T>(const GraphConvolution<T>&, int64_t, const Z<T>&, Panels, T*, T*, const Machine<T>&);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
