// The folded network: sizes and weights of MS-G3D with every batch normalisation and every learned adjacency multiplied
// in.
//
// Two flat arrays describe it. `sizes` lists integers in the order in which the structs below read them; `weights`
// holds their arrays in the order of the members, each padded to a multiple of 16 values. Sizes determine the length of
// every array, so reading both to their exact ends is the check that they belong together. All channel counts are
// multiples of 16: whoever packs spreads the channels over that many places and fills the rest with zero weights, which
// keeps those places zero throughout.
//
// Activations are (T, V, C) per person, channels contiguous. A weight matrix (rows, O) is stored as O/16 panels of
// (rows, 16).
#pragma once

#include <cstdint>
#include <vector>

#include "../gemm/gemm.h"
#include "../parallel.h"

namespace msg3d::folded {

constexpr int64_t kDilations = 4;  // dilated branches of a temporal unit; its fifth is the max-pool, its sixth linear

template <typename T>
using ProductFunction = void (*)(const FusedProduct<T>&);

template <typename T>
struct Machine {
  Pool pool;
  ProductFunction<T> product;
  int64_t panels;  // that the product takes at a time
  ColumnPasses<T> passes;
};

// Hands out sizes and arrays in order; `good` falls, and stays down, when something does not fit.
template <typename T>
struct Reader {
  const int64_t *size, *sizes_end;
  const T *weight, *weights_end;
  bool good = true;

  int64_t next(int64_t lowest, int64_t highest) {
    if (size == sizes_end || *size < lowest || *size > highest) return fail();
    return *size++;
  }
  int64_t next_channels() {
    const int64_t channels = next(kPanel, 1 << 16);
    return channels % kPanel ? fail() : channels;
  }
  const T* array(int64_t count) {
    count = (count + kPanel - 1) / kPanel * kPanel;
    if (!good || count > weights_end - weight) {
      fail();
      return weight;
    }
    const T* start = weight;
    weight += count;
    return start;
  }
  bool at_end() const { return good && size == sizes_end && weight == weights_end; }

 private:
  int64_t fail() {
    good = false;
    size = sizes_end;
    return kPanel;  // a value that sizes can be computed from
  }
};

// y[t, (w,v), o] = relu(bias[o] + sum_k sum_c weight[k,c,o] sum_{w',u} A[k,(w,v),(w',u)] x[t*stride + w'*dilation -
// padding, u, c])
template <typename T>
struct GraphConvolution {
  int64_t in, out, scales, window, stride, dilation;
  const T* adjacency;  // aggregate first: ((k,w,v), (w',u)); project first: ((w,v), (w',k,u))
  const T* weight;     // panels of (k,c) rows
  const T* bias;       // (out,)
  const T* joined;     // ((w,v), joined_blocks() x (k,u)): see joined_windows.h

  // So many neighbouring windows are computed together, where they share enough frames to save multiplications.
  int64_t joins() const { return stride != 2 || dilation != 1 ? 1 : window == 5 ? 4 : window == 3 ? 2 : 1; }
  int64_t joined_blocks() const { return joins() == 4 ? 11 : joins() == 2 ? 1 : 0; }
  int64_t padding() const { return (window - 1) * dilation / 2; }
  int64_t reach() const { return (window - 1) * dilation + 1; }  // frames from a window's first to its last
  int64_t frames(int64_t T_in) const { return (T_in + 2 * padding() - reach()) / stride + 1; }

  void read(Reader<T>& reader, int64_t joints, int64_t in_, int64_t out_, int64_t stride_) {
    in = in_, out = out_, stride = stride_;
    scales = reader.next(1, 64), window = reader.next(1, 64), dilation = reader.next(1, 64);
    adjacency = reader.array(scales * window * joints * window * joints);
    weight = reader.array(scales * in * out);
    bias = reader.array(out);
    joined = reader.array(joined_blocks() * window * joints * scales * joints);
  }
};

// y = act(sum of branches + residual): four dilated convolutions of relu(x W + b), a max-pool of the fifth, and x W,
// side by side.
template <typename T>
struct TemporalUnit {
  int64_t in, out, stride, taps;
  int64_t slot,
      last_slot;  // channels of the first five branches' places, and of the sixth's: 5 * slot + last_slot == out
  bool convolves_residual, relu;
  const T *hidden_weight, *hidden_bias;                          // (in, 5*slot)
  const T *branch_weight[kDilations], *branch_bias[kDilations];  // (taps*slot, slot)
  const T *pool_scale, *pool_shift;  // (slot,): the normalisation after the max-pool, and the residual's bias
  const T *last_weight, *last_bias;  // (in, last_slot), with the residual added in
  const T* residual_weight;          // (in, 5*slot) if convolves_residual

  int64_t hidden() const { return (kDilations + 1) * slot; }
  // Frames of zeros on both sides of the hidden layer: what the widest branch reaches, and one for the max-pool.
  int64_t padding() const { return taps > 1 ? kDilations * (taps / 2) : 1; }
  int64_t frames(int64_t T_in) const { return (T_in - 1) / stride + 1; }

  void read(Reader<T>& reader, int64_t in_, int64_t out_, int64_t stride_) {
    in = in_, out = out_, stride = stride_;
    slot = reader.next_channels(), last_slot = reader.next_channels();
    taps = reader.next(1, 63), convolves_residual = reader.next(0, 1), relu = reader.next(0, 1);
    if (hidden() + last_slot != out || taps % 2 == 0 || (!convolves_residual && (in != out || stride != 1)))
      reader.good = false;
    hidden_weight = reader.array(in * hidden());
    hidden_bias = reader.array(hidden());
    for (int64_t i = 0; i < kDilations; ++i) {
      branch_weight[i] = reader.array(taps * slot * slot);
      branch_bias[i] = reader.array(slot);
    }
    pool_scale = reader.array(slot);
    pool_shift = reader.array(slot);
    last_weight = reader.array(in * last_slot);
    last_bias = reader.array(last_slot);
    residual_weight = reader.array(convolves_residual ? in * hidden() : 0);
  }
};

// x -> third(relu(second(first(spatial(x))) + sum over windows of collapse(window(x))))
template <typename T>
struct Stage {
  int64_t in, middle, out, stride;
  GraphConvolution<T> spatial;
  TemporalUnit<T> first, second, third;
  std::vector<GraphConvolution<T>> windows;
  std::vector<const T*> collapse_weight;  // per window: (slots * embedded, out)
  const T* collapse_bias;                 // (out,), all windows together

  void read(Reader<T>& reader, int64_t joints, int64_t in_) {
    in = in_;
    middle = reader.next_channels(), out = reader.next_channels(), stride = reader.next(1, 16);
    spatial.read(reader, joints, in, middle, 1);
    first.read(reader, middle, out, stride);
    second.read(reader, out, out, 1);
    third.read(reader, out, out, 1);
    const int64_t count = reader.next(1, 16);
    for (int64_t i = 0; i < count && reader.good; ++i) {
      const int64_t embedded = reader.next_channels();
      windows.emplace_back().read(reader, joints, in, embedded, stride);
      collapse_weight.push_back(reader.array(windows.back().window * embedded * out));
      const GraphConvolution<T>& window = windows.back();
      if (window.scales > 0 && (window.window - 1) * window.dilation % 2) reader.good = false;
    }
    collapse_bias = reader.array(out);
  }
};

template <typename T>
struct Network {
  int64_t persons, joints,
      channels;  // M, V, C of the clips; the first stage sees `in` of them, C rounded up to a multiple of 4
  int64_t in;
  const T *input_scale, *input_shift;  // (M, V, in): data_bn
  std::vector<Stage<T>> stages;

  int64_t features() const { return stages.back().out; }

  // False: sizes and weights do not describe a network.
  bool read(const int64_t* sizes, int64_t num_sizes, const T* weights, int64_t num_weights) {
    Reader<T> reader{sizes, sizes + num_sizes, weights, weights + num_weights};
    persons = reader.next(1, 1 << 16), joints = reader.next(1, 1 << 12), channels = reader.next(1, 1 << 12);
    in = (channels + 3) / 4 * 4;
    input_scale = reader.array(persons * joints * in);
    input_shift = reader.array(persons * joints * in);
    const int64_t count = reader.next(1, 16);
    for (int64_t i = 0; i < count && reader.good; ++i) {
      stages.emplace_back().read(reader, joints, i ? stages[i - 1].out : in);
    }
    return reader.at_end() && stages.front().stride == 1;
  }
};

}  // namespace msg3d::folded
