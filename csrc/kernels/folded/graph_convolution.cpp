#include "graph_convolution.h"

#include <algorithm>
#include <cstring>

#include "joined_windows.h"

namespace msg3d::folded {
namespace {

// Frames whose Z a block of windows needs.
template <typename T>
int64_t block_frames(const GraphConvolution<T>& conv) {
  return (kWindowBlock - 1) * conv.stride + conv.reach();
}

// From Z of one panel to that of the next.
template <typename T>
int64_t panel_size(const GraphConvolution<T>& conv, int64_t joints) {
  return block_frames(conv) * conv.scales * joints * kPanel;
}

}  // namespace

template <typename T>
int64_t project_first_scratch(const GraphConvolution<T>& conv, int64_t joints, int64_t panels) {
  return panels * (panel_size(conv, joints) + joined_windows_scratch(conv, joints));
}

template <typename T>
int64_t aggregate_first_scratch(const GraphConvolution<T>& conv, int64_t joints) {
  const int64_t rows = conv.scales * conv.window * joints;
  return 2 * kTogether * rows * conv.in;
}

template <typename T>
void project_first(const GraphConvolution<T>& conv, int64_t joints, const T* x, int64_t frames, Panels panels,
                   int64_t begin, int64_t end, T* y, T* scratch, const Machine<T>& machine) {
  const int64_t rows = conv.scales * joints, frame_size = rows * kPanel;  // of Z
  const int64_t z_panel = panel_size(conv, joints), weight_panel = conv.scales * conv.in * kPanel;
  const T* weight = conv.weight + panels.first * weight_panel;
  const auto each_panel = [&](const auto& body) {
    for (int64_t panel = 0; panel < panels.count; ++panel) body(scratch + panel * z_panel);
  };

  // Z of frames [first, last) to `z`, in each panel; frames outside the clip are zero.
  const auto project = [&](int64_t first, int64_t last, int64_t z) {
    const auto clear = [&](int64_t from, int64_t to) {
      each_panel([&](T* panel) {
        if (from < to) std::fill(panel + z + (from - first) * frame_size, panel + z + (to - first) * frame_size, T(0));
      });
    };
    clear(first, std::min<int64_t>(last, 0));
    clear(std::max(first, frames), last);
    const int64_t from = std::max<int64_t>(first, 0), count = std::min(last, frames) - from;
    for (int64_t k = 0; k < conv.scales && count > 0; ++k) {
      const Segment<T> segment{x + from * joints * conv.in,
                               joints * conv.in,
                               conv.in,
                               weight + k * conv.in * kPanel,
                               0,
                               kPanel,
                               conv.in,
                               weight_panel};
      T* c = scratch + z + (from - first) * frame_size + k * joints * kPanel;
      FusedProduct<T> out{&segment, 1, count, joints, c, frame_size, kPanel};
      out.panels = panels.count, out.c_panel = z_panel;
      machine.product(out);
    }
  };

  int64_t ready = begin * conv.stride - conv.padding();  // Z is known up to this frame
  int64_t held = ready;                                  // and from this one on, at the start of scratch
  for (int64_t w = begin; w < end; w += kWindowBlock) {
    const int64_t count = std::min(kWindowBlock, end - w);
    const int64_t first = w * conv.stride - conv.padding(), last = first + (count - 1) * conv.stride + conv.reach();
    each_panel([&](T* panel) {
      if (first < ready)
        std::memmove(panel, panel + (first - held) * frame_size, (ready - first) * frame_size * sizeof(T));
    });
    held = first;
    const int64_t from = std::max(first, ready);
    project(from, last, (from - first) * frame_size);
    ready = last;

    const int64_t window_size = conv.window * joints * conv.out;
    T* block = y + w * window_size + panels.first * kPanel;
    int64_t done = 0;
    const int64_t joins = conv.joins();
    for (; joins > 1 && done + joins <= count; done += joins) {
      joined_windows(conv, joints, {scratch + done * conv.stride * frame_size, z_panel}, panels,
                     block + done * window_size, scratch + panels.count * z_panel, machine);
    }
    // Slots of a window are one segment where its frames follow one another.
    const int64_t segments = conv.dilation == 1 ? 1 : conv.window, depth = conv.window / segments * rows;
    std::vector<Segment<T>> slots;
    for (int64_t s = 0; s < segments; ++s) {
      slots.push_back({conv.adjacency + s * depth, 0, conv.window * rows,
                       scratch + (done * conv.stride + s * conv.dilation) * frame_size, conv.stride * frame_size,
                       kPanel, depth, z_panel});
    }
    FusedProduct<T> sum{slots.data(), segments, count - done, conv.window * joints, block + done * window_size,
                        window_size,  conv.out};
    sum.bias = conv.bias + panels.first * kPanel;
    sum.relu = true;
    sum.panels = panels.count;
    machine.product(sum);
  }
}

template <typename T>
void aggregate_first(const GraphConvolution<T>& conv, int64_t joints, const T* x, int64_t x_frames, int64_t before,
                     int64_t begin, int64_t end, T* y, T* scratch, ProductFunction<T> product) {
  const int64_t nodes = conv.window * joints, rows = conv.scales * nodes, width = conv.scales * conv.in;
  const int64_t panels = kTogether * conv.in / kPanel;
  T* sums = scratch;                            // (panel, (k,w,v), 16)
  T* features = sums + panels * rows * kPanel;  // (frame, (w,v), (k,c))
  std::vector<Segment<T>> slots(conv.window);
  for (int64_t t = begin; t < end; t += kTogether) {
    const int64_t count = std::min(kTogether, end - t);
    for (int64_t s = 0; s < conv.window; ++s) {
      const T* slot = x + (before + t + s * conv.dilation - conv.padding()) * conv.in;
      slots[s] = {conv.adjacency + s * joints, 0, nodes, slot, 0, x_frames * conv.in, joints, kPanel};
    }
    FusedProduct<T> aggregate{slots.data(), conv.window, 1, rows, sums, 0, kPanel};
    aggregate.panels = panels, aggregate.c_panel = rows * kPanel;
    product(aggregate);
    for (int64_t column = 0; column < count * conv.in; column += 4) {
      const T* sum = sums + column / kPanel * rows * kPanel + column % kPanel;
      T* feature = features + column / conv.in * nodes * width + column % conv.in;
      for (int64_t k = 0; k < conv.scales; ++k) {
        for (int64_t node = 0; node < nodes; ++node) {
          std::memcpy(feature + node * width + k * conv.in, sum + (k * nodes + node) * kPanel, 4 * sizeof(T));
        }
      }
    }
    const Segment<T> segment{features, 0, width, conv.weight, 0, kPanel, width, width * kPanel};
    FusedProduct<T> out{&segment, 1, 1, count * nodes, y + (t - begin) * nodes * conv.out, 0, conv.out};
    out.bias = conv.bias;
    out.relu = true;
    out.panels = conv.out / kPanel;
    product(out);
  }
}

template <typename T>
void collapse(const Stage<T>& stage, int64_t joints, Panels panels, const T* const* h, int64_t count, T* y,
              ProductFunction<T> product) {
  std::vector<Segment<T>> slots;
  for (std::size_t i = 0; i < stage.windows.size(); ++i) {
    const GraphConvolution<T>& conv = stage.windows[i];
    const int64_t slot_size = conv.out * kPanel, panel_size = conv.window * slot_size;
    const T* weight = stage.collapse_weight[i] + panels.first * panel_size;
    for (int64_t s = 0; s < conv.window; ++s) {
      slots.push_back({h[i] + s * joints * conv.out, conv.window * joints * conv.out, conv.out, weight + s * slot_size,
                       0, kPanel, conv.out, panel_size});
    }
  }
  const int64_t first = panels.first * kPanel, frame = joints * stage.out;
  FusedProduct<T> out{slots.data(), static_cast<int64_t>(slots.size()), count, joints, y + first, frame, stage.out};
  out.bias = stage.collapse_bias + first;
  out.add = y + first, out.add_group = frame, out.add_row = stage.out;
  out.relu = true;
  out.panels = panels.count;
  product(out);
}

#define MSG3D_INSTANTIATE(T)                                                                                           \
  template int64_t project_first_scratch<T>(const GraphConvolution<T>&, int64_t, int64_t);                             \
  template int64_t aggregate_first_scratch<T>(const GraphConvolution<T>&, int64_t);                                    \
  template void project_first<T>(const GraphConvolution<T>&, int64_t, const T*, int64_t, Panels, int64_t, int64_t, T*, \
                                 T*, const Machine<T>&);                                                               \
  template void aggregate_first<T>(const GraphConvolution<T>&, int64_t, const T*, int64_t, int64_t, int64_t, int64_t,  \
                                   T*, T*, ProductFunction<T>);                                                        \
  template void collapse<T>(const Stage<T>&, int64_t, Panels, const T* const*, int64_t, T*, ProductFunction<T>);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
