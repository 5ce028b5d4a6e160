#include "temporal_unit.h"

#include <algorithm>

#include "vector.h"

namespace msg3d::folded {
namespace {

// Does some tap of branch i, at any output frame, fall on frame t? Even dilations at stride 2 never read an odd frame.
template <typename T>
bool reads_every_frame(const TemporalUnit<T>& unit, int64_t branch) {
  return branch >= kDilations || (branch + 1) % unit.stride != 0;
}

// From one branch's h to the next.
template <typename T>
int64_t branch_size(const TemporalUnit<T>& unit, int64_t joints, int64_t frames) {
  return (frames + 2 * unit.padding()) * joints * unit.slot;
}

// y[t] = scale * max(h[t*stride - 1], h[t*stride], h[t*stride + 1]) + shift, to which an identity residual adds x[t]; h
// is that of the fifth branch.
template <typename T>
void pool(const TemporalUnit<T>& unit, int64_t joints, const T* x, const T* h, int64_t begin, int64_t end, T* y) {
  using V = typename Vector<T>::type;
  constexpr auto load = &Vector<T>::load;
  // Compilers do not find the vectors in a maximum that respects NaN.
  const auto larger = [](V a, V b) { return (a > b) | (a != a) ? a : b; };  // or the one that is not a number
  const int64_t first = kDilations * unit.slot, frame = joints * unit.slot;
  for (int64_t row = begin; row < end; ++row) {
    const T* now = h + (row / joints * unit.stride + unit.padding()) * frame + row % joints * unit.slot;
    const T* add = x + row * unit.in + first;
    T* out = y + row * unit.out + first;
    for (int64_t c = 0; c < unit.slot; c += Vector<T>::kLanes) {
      const V most = larger(larger(load(now + c - frame), load(now + c)), load(now + c + frame));
      V value = load(unit.pool_scale + c) * most + load(unit.pool_shift + c);
      if (!unit.convolves_residual) {  // the product that follows adds a convolved one, then comes the ReLU
        value += load(add + c);
        if (unit.relu) value = larger(value, V{});
      }
      Vector<T>::store(out + c, value);
    }
  }
}

}  // namespace

template <typename T>
void temporal_hidden(const TemporalUnit<T>& unit, int64_t joints, const T* x, int64_t frames, int64_t begin,
                     int64_t end, T* h, ProductFunction<T> product) {
  const int64_t padding = unit.padding() * joints * unit.slot;
  const int64_t branch_h = branch_size(unit, joints, frames);
  for (int64_t branch = 0; begin == 0 && branch <= kDilations; ++branch) {
    T* const own = h + branch * branch_h;
    std::fill(own, own + padding, T(0));
    std::fill(own + branch_h - padding, own + branch_h, T(0));
  }
  // Branches of one panel are taken together, as the panels of one product, where they read the same frames.
  const int64_t together = unit.slot == kPanel && unit.stride == 1 ? kDilations + 1 : 1;
  for (int64_t branch = 0; branch <= kDilations; branch += together) {
    const bool every = reads_every_frame(unit, branch);
    // Frames that follow one another are one long run of rows, which splits into full tiles.
    const int64_t step = unit.stride * joints, first = every ? begin : (begin + step - 1) / step * step;
    if (first >= end) continue;
    const int64_t groups = every ? 1 : (end - first + step - 1) / step, rows = every ? end - first : joints;
    const int64_t channel = branch * unit.slot;
    const Segment<T> segment{
        x + first * unit.in, step * unit.in, unit.in, unit.hidden_weight + channel * unit.in, 0, kPanel, unit.in,
        unit.in * kPanel};
    FusedProduct<T> out{&segment,         1,        groups, rows, h + branch * branch_h + padding + first * unit.slot,
                        step * unit.slot, unit.slot};
    out.bias = unit.hidden_bias + channel;
    out.relu = true;
    out.panels = together * unit.slot / kPanel;
    if (together > 1) out.c_panel = branch_h;
    product(out);
  }
}

template <typename T>
void temporal_output(const TemporalUnit<T>& unit, int64_t joints, const T* x, int64_t frames, const T* h, int64_t begin,
                     int64_t end, T* y, ProductFunction<T> product) {
  const int64_t stride = unit.stride, branch_h = branch_size(unit, joints, frames);
  // Frames that follow one another are one long run of rows here too.
  const int64_t groups = stride == 1 ? 1 : (end - begin) / joints, rows = stride == 1 ? end - begin : joints;
  const T* x_begin = x + begin * stride * unit.in;
  T* y_begin = y + begin * unit.out;
  std::vector<Segment<T>> segments;
  // To the columns of a branch, from its first channel on.
  const auto write = [&](int64_t branch, int64_t channels, const T* bias, const T* add) {
    T* const c = y_begin + branch * unit.slot;
    FusedProduct<T> out{segments.data(), static_cast<int64_t>(segments.size()), groups, rows, c, joints * unit.out,
                        unit.out};
    out.bias = bias;
    if (add) out.add = add, out.add_group = joints * unit.out, out.add_row = unit.out;  // in == out wherever x is added
    out.relu = unit.relu;
    out.panels = channels / kPanel;
    product(out);
    segments.clear();
  };
  const auto from_x = [&](const T* weight) {
    segments.push_back({x_begin, stride * joints * unit.in, unit.in, weight, 0, kPanel, unit.in, unit.in * kPanel});
  };

  pool(unit, joints, x, h + kDilations * branch_h, begin, end, y);
  for (int64_t branch = 0; branch <= kDilations; ++branch) {
    const int64_t first = branch * unit.slot;
    if (branch == kDilations) {
      if (!unit.convolves_residual) continue;
      from_x(unit.residual_weight + first * unit.in);
      write(branch, unit.slot, nullptr, y_begin + first);
      continue;
    }
    for (int64_t tap = 0; tap < unit.taps; ++tap) {
      const int64_t row = begin * stride + (unit.padding() + (tap - unit.taps / 2) * (branch + 1)) * joints;
      segments.push_back({h + branch * branch_h + row * unit.slot, stride * joints * unit.slot, unit.slot,
                          unit.branch_weight[branch] + tap * unit.slot * kPanel, 0, kPanel, unit.slot,
                          unit.taps * unit.slot * kPanel});
    }
    if (unit.convolves_residual) from_x(unit.residual_weight + first * unit.in);
    write(branch, unit.slot, unit.branch_bias[branch], unit.convolves_residual ? nullptr : x_begin + first);
  }
  from_x(unit.last_weight);
  write(kDilations + 1, unit.last_slot, unit.last_bias, nullptr);
}

#define MSG3D_INSTANTIATE(T)                                                                                           \
  template void temporal_hidden<T>(const TemporalUnit<T>&, int64_t, const T*, int64_t, int64_t, int64_t, T*,           \
                                   ProductFunction<T>);                                                                \
  template void temporal_output<T>(const TemporalUnit<T>&, int64_t, const T*, int64_t, const T*, int64_t, int64_t, T*, \
                                   ProductFunction<T>);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
