// The doors of the forward pass, and the kernel that packs W and A once a call: every word is a pair of values (in tf32
// one, rounded) in the place in which a lane of the tensor-core kernels picks it up (simt.h says which element of a
// fragment that is), with zeros behind the last channel, joint or node.
#include "forward.h"

namespace msg3d::ms_g3d::cuda {
namespace packing {

using namespace simt;

struct PackCall {
  const void* weight;
  const void* A;
  const void* A_res;
  uint32_t* packed_weight;
  uint32_t* packed_adjacency;
  int64_t weight_stride[3], A_stride[3];
  int64_t weight_words, adjacency_words;
  int C, O, V, K, nodes;
  int groups, channel_steps;
  int frames;    // of a pack; 0: for windows
  int per_word;  // values in a word
  bool few_channels;
  const void* collapse;  // null: none
  uint32_t* packed_collapse;
  int64_t collapse_stride[3], collapse_words;
  int slices, out_channels;
  int tiles;  // of eight destination joints or nodes: of a frame, of a part
  int parts;
};

struct Place {
  int row, column, k;  // of W: o, c; of A: destination, source. Of the pair's first value; the second is column + 1
};

SIMT_DEVICE Place weight_place(const PackCall& call, int64_t word) {
  const int slice_groups = call.groups, per = call.per_word;
  if (call.few_channels && call.collapse) {  // (step of (k,c), group, pair of n8 tiles, lane, 4): B fragments
    const int part = static_cast<int>(word % 4), lane = static_cast<int>(word / 4 % 32);
    const int pair = static_cast<int>(word / 128 % (slice_groups * 3));
    const int step = static_cast<int>(word / 128 / (slice_groups * 3));
    return {pair * 16 + part / 2 * 8 + lane / 4, (step * 8 + lane % 4 + part % 2 * 4) * per, 0};
  }
  // (slice, k, step, group, m16 tile, lane, 4): A fragments; of few channels (k,c) are summed over at once.
  if (call.frames > 0 || call.few_channels) {
    const int K = call.few_channels ? 1 : call.K;
    const int part = static_cast<int>(word % 4), lane = static_cast<int>(word / 4 % 32);
    const int tile = static_cast<int>(word / 128 % (slice_groups * 3));
    const int64_t rest = word / (128 * slice_groups * 3);
    const int step = static_cast<int>(rest % call.channel_steps);
    const int64_t scale = rest / call.channel_steps;
    const int o = static_cast<int>(scale / K) * slice_groups * kGroup + tile * 16;
    return {o + channel_of_row(lane / 4 + part % 2 * 8), (step * 8 + lane % 4 + part / 2 * 4) * per,
            static_cast<int>(scale % K)};
  }
  // (slice, k, 24 channels, step), in each two tiles side by side and then the third: B fragments
  const int in_unit = static_cast<int>(word % 192), columns = slice_groups * kGroup / kColumnStep;
  const int64_t unit = word / 192;
  const int step = static_cast<int>(unit % call.channel_steps);
  const int column = static_cast<int>(unit / call.channel_steps % columns);
  const int64_t scale = unit / call.channel_steps / columns;
  const bool third = in_unit >= 128;
  const int lane = third ? (in_unit - 128) / 2 : in_unit / 4, upper = in_unit % 2;
  const int tile = third ? 2 : in_unit / 2 % 2;
  const int place = column * kColumnStep + tile * 8 + lane / 4;  // in a row of Z
  const int o = static_cast<int>(scale / call.K) * slice_groups * kGroup;
  return {o + (per == 2 ? place / 16 * 16 + channel_of_row(place % 16) : place),
          (step * 8 + lane % 4 + upper * 4) * per, static_cast<int>(scale % call.K)};
}

SIMT_DEVICE Place adjacency_place(const PackCall& call, int64_t word) {
  const int tiles = call.tiles, per = call.per_word;
  if (call.few_channels) {  // (m16 tile of (row, k), step, lane, 4): A fragments
    const int part = static_cast<int>(word % 4), lane = static_cast<int>(word / 4 % 32);
    const int steps = (call.nodes + 8 * per - 1) / (8 * per), step = static_cast<int>(word / 128 % steps);
    const int m = static_cast<int>(word / 128 / steps) * 16 + lane / 4 + part % 2 * 8;
    return {m / call.K, (step * 8 + lane % 4 + part / 2 * 4) * per, m % call.K};
  }
  if (call.frames > 0 && per == 2) {  // (k, frame of the pack), in each four words of a lane side by side
    const int words = tiles * tiles, in_frame = static_cast<int>(word % (words * 32));
    const int frame = static_cast<int>(word / (words * 32) % call.frames);
    const int k = static_cast<int>(word / (words * 32) / call.frames);
    const bool whole = in_frame < words / 4 * 128;
    const int lane = whole ? in_frame / 4 % 32 : in_frame % 32;
    const int index = whole ? in_frame / 128 * 4 + in_frame % 4 : in_frame / 32;
    const int paired = tiles / 2 * tiles * 2;  // words of k16 steps
    const bool k16 = index < paired;
    const int n = k16 ? index / 2 % tiles : index - paired;
    const int row = k16 ? index / (2 * tiles) * 16 + index % 2 * 8 : (tiles - 1) * 8;
    return {n * 8 + lane / 4, row + lane % 4 * 2 - frame * call.V % 8, k};
  }
  if (per == 1) {  // (k, part or frame, source tile, destination tile), pairs of the last side by side
    const int step_words = tiles * 64, images = call.frames > 0 ? call.frames : call.parts;
    const int source_tiles = call.frames > 0 ? tiles : (call.nodes + 7) / 8;
    const int at = static_cast<int>(word % step_words), source = static_cast<int>(word / step_words % source_tiles);
    const int image = static_cast<int>(word / step_words / source_tiles % images), upper = at % 2;
    const bool pair = at < tiles / 2 * 128;
    const int lane = pair ? at / 4 % 32 : (at - tiles / 2 * 128) / 2;
    const int n = pair ? at / 128 * 2 + at / 2 % 2 : tiles - 1;
    const int k = static_cast<int>(word / step_words / source_tiles / images);
    if (call.frames > 0) {
      return {n * 8 + lane / 4, source * 8 + lane % 4 * 2 + upper - image * call.V % 8, k};
    }
    return {(image * tiles + n) * 8 + lane / 4, source * 8 + lane % 4 + upper * 4, k};
  }
  const int source_tiles = (call.nodes + 7) / 8, part_words = source_tiles * tiles * 32;
  const int in_part = static_cast<int>(word % part_words), step_words = tiles * 64;
  const int part = static_cast<int>(word / part_words % call.parts);
  const int k = static_cast<int>(word / part_words / call.parts);
  int step = in_part / step_words, at = in_part % step_words, lane, n, upper = 0;
  if (step < source_tiles / 2) {  // k16: two tiles side by side, an odd last one alone
    const bool pair = at < tiles / 2 * 128;
    upper = at % 2;
    lane = pair ? at / 4 % 32 : (at - tiles / 2 * 128) / 2;
    n = pair ? at / 128 * 2 + at / 2 % 2 : tiles - 1;
  } else {  // k8
    const bool pair = at < tiles / 2 * 64;
    lane = pair ? at / 2 % 32 : at % 32;
    n = pair ? at / 64 * 2 + at % 2 : tiles - 1;
  }
  return {(part * tiles + n) * 8 + lane / 4, step * 16 + upper * 8 + lane % 4 * 2, k};
}

template <typename T>
SIMT_DEVICE float adjacency_value(const PackCall& call, int k, int row, int column, int size) {
  if (row >= size || column < 0 || column >= size) return 0.f;
  const int64_t at = k * call.A_stride[0] + row * call.A_stride[1] + column * call.A_stride[2];
  const float value = to_float(load_readonly(static_cast<const T*>(call.A) + at));
  if (!call.A_res) return value;
  const int64_t dense = (static_cast<int64_t>(k) * size + row) * size + column;
  return value + to_float(load_readonly(static_cast<const T*>(call.A_res) + dense));
}

template <typename T>
SIMT_DEVICE float weight_value(const PackCall& call, int k, int o, int c) {
  if (call.few_channels) k = c / call.C, c = c % call.C;
  if (o >= call.O || c >= call.C || k >= call.K) return 0.f;
  const int64_t at = o * call.weight_stride[0] + k * call.weight_stride[1] + c * call.weight_stride[2];
  return to_float(load_readonly(static_cast<const T*>(call.weight) + at));
}

template <typename T>
SIMT_DEVICE float collapse_value(const PackCall& call, int slot, int out, int o) {
  if (out >= call.out_channels || o >= call.O) return 0.f;
  const int64_t at = out * call.collapse_stride[0] + o * call.collapse_stride[1] + slot * call.collapse_stride[2];
  return to_float(load_readonly(static_cast<const T*>(call.collapse) + at));
}

SIMT_DEVICE Place collapse_place(const PackCall& call, int64_t word) {
  const int piece_steps = 6 / call.per_word, steps = call.groups * piece_steps;
  const int out_groups = (call.out_channels + kGroup - 1) / kGroup;
  const int slots = call.nodes / call.V, part = static_cast<int>(word % 4), lane = static_cast<int>(word / 4 % 32);
  if (call.few_channels) {  // (kFewOutputs, slot, step, pair of n8 tiles, lane, 4): B fragments
    const int pairs = kFewOutputs / 16, pair = static_cast<int>(word / 128 % pairs);
    const int64_t rest = word / 128 / pairs;
    const int step = static_cast<int>(rest % steps), slot = static_cast<int>(rest / steps % slots);
    // Lane t of the accumulators gets channels 4t to 4t+3 of sixteen, two from either tile. In tf32 accumulators of y
    // become operands as in frames.cu.
    const int column = lane / 8 * 4 + part / 2 * 2 + lane / 4 % 2;
    return {static_cast<int>(rest / steps / slots) * kFewOutputs + pair * 16 + column,
            call.per_word == 2 ? step * 16 + lane % 4 * 2 + part % 2 * 8 : step * 8 + lane % 4 * 2 + part % 2, slot};
  }
  // (slot, 48 channels o, group of 48 outputs, step, m16 tile, lane, 4): A fragments.
  const int tile = static_cast<int>(word / 128 % 3), step = static_cast<int>(word / 384 % piece_steps);
  const int64_t rest = word / 384 / piece_steps;
  const int group = static_cast<int>(rest % out_groups), pieces = call.slices * call.groups;
  const int piece = static_cast<int>(rest / out_groups % pieces);
  return {group * kGroup + tile * 16 + channel_of_row(lane / 4 + part % 2 * 8),
          piece * kGroup + (step * 8 + lane % 4 + part / 2 * 4) * call.per_word,
          static_cast<int>(rest / out_groups / pieces)};
}

constexpr int kPackThreads = 256;

// The word of `value(column)` and of the next column's.
template <typename T, typename Value>
SIMT_DEVICE uint32_t word_of(int column, const Value& value) {
  if constexpr (kIsTf32<T>) {
    return to_tf32(value(column));
  } else {
    return pack_pair<T>(value(column), value(column + 1));
  }
}

template <typename T>
SIMT_KERNEL(kPackThreads, 1)
void pack_kernel(PackCall call) {
  const int64_t word = static_cast<int64_t>(block_x()) * kPackThreads + thread_index();
  if (word < call.weight_words) {
    const Place at = weight_place(call, word);
    call.packed_weight[word] =
        word_of<T>(at.column, [&](int column) { return weight_value<T>(call, at.k, at.row, column); });
  } else if (word < call.weight_words + call.adjacency_words) {
    const int64_t index = word - call.weight_words;
    const Place at = adjacency_place(call, index);
    call.packed_adjacency[index] =
        word_of<T>(at.column, [&](int column) { return adjacency_value<T>(call, at.k, at.row, column, call.nodes); });
  } else if (word < call.weight_words + call.adjacency_words + call.collapse_words) {
    const int64_t index = word - call.weight_words - call.adjacency_words;
    const Place at = collapse_place(call, index);
    call.packed_collapse[index] =
        word_of<T>(at.column, [&](int column) { return collapse_value<T>(call, at.k, at.row, column); });
  }
}

inline char* adjacency_image(const ForwardPlan& plan, void* workspace) {
  return static_cast<char*>(workspace) + detail::aligned(plan.weight_bytes);
}
inline char* collapse_image(const ForwardPlan& plan, void* workspace) {
  return adjacency_image(plan, workspace) + detail::aligned(plan.adjacency_bytes);
}

}  // namespace packing

int pack(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, void* workspace, simt::Stream stream,
         const Collapse* collapse) {
  packing::PackCall call{};
  call.weight = in.weight, call.A = in.A, call.A_res = in.A_res;
  call.packed_weight = static_cast<uint32_t*>(workspace);
  call.packed_adjacency = reinterpret_cast<uint32_t*>(packing::adjacency_image(plan, workspace));
  call.packed_collapse = reinterpret_cast<uint32_t*>(packing::collapse_image(plan, workspace));
  for (int i = 0; i < 3; ++i) call.weight_stride[i] = in.weight_stride[i], call.A_stride[i] = in.A_stride[i];
  call.weight_words = plan.weight_bytes / 4, call.adjacency_words = plan.adjacency_bytes / 4;
  call.C = static_cast<int>(p.C), call.O = static_cast<int>(p.O), call.V = static_cast<int>(p.V);
  call.K = static_cast<int>(p.K), call.nodes = static_cast<int>(p.nodes());
  call.groups = plan.groups, call.channel_steps = plan.channel_steps, call.parts = plan.parts;
  const bool frames = plan.kernel == Kernel::kFrames;
  call.few_channels = plan.kernel == Kernel::kFewChannels;
  call.per_word = 4 / plan.element_bytes;
  call.frames = frames ? kFramePacks[plan.tile].frames : 0;
  call.tiles = frames ? kFramePacks[plan.tile].joint_tiles : kWindowTiles[plan.tile].node_tiles;
  if (plan.out_channels > 0) {
    call.collapse = collapse->weight, call.collapse_words = plan.collapse_bytes / 4;
    call.out_channels = plan.out_channels, call.slices = plan.slices;
    for (int i = 0; i < 3; ++i) call.collapse_stride[i] = collapse->weight_stride[i];
  }
  const int64_t words = call.weight_words + call.adjacency_words + call.collapse_words;
  const simt::Grid grid{static_cast<unsigned>(ceil_div(words, packing::kPackThreads))};
  const auto kernel = type == Type::kBFloat16  ? packing::pack_kernel<simt::bf16>
                      : type == Type::kFloat16 ? packing::pack_kernel<simt::half>
                                               : packing::pack_kernel<simt::tf32>;
  return simt::launch(kernel, grid, packing::kPackThreads, 0, stream, call);
}

int run(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, bool relu, void* y,
        const void* workspace, simt::Stream stream, const Collapse* collapse, void* moments) {
  ForwardCall call{};
  void* const images = const_cast<void*>(workspace);
  call.x = in.x, call.bias = in.bias, call.y = y, call.relu = relu, call.moments = static_cast<float*>(moments);
  call.weight = workspace, call.adjacency = packing::adjacency_image(plan, images);
  call.frames = p.N * p.T;
  call.C = static_cast<int>(p.C), call.O = static_cast<int>(p.O), call.T = static_cast<int>(p.T);
  call.V = static_cast<int>(p.V), call.K = static_cast<int>(p.K), call.nodes = static_cast<int>(p.nodes());
  call.windows = static_cast<int>(p.windows());
  call.stride = static_cast<int>(p.stride), call.dilation = static_cast<int>(p.dilation);
  call.padding = static_cast<int>(p.padding());
  call.frame_step = plan.frame_step, call.slots = plan.slots, call.tile_windows = plan.windows;
  call.groups = plan.groups, call.parts = plan.parts, call.warps = plan.warps;
  call.channel_steps = plan.channel_steps, call.weight_steps = plan.weight_steps;
  call.weight_columns = plan.weight_columns;
  call.slices = plan.slices, call.slices_per_block = plan.slices_per_block;
  call.z_at = plan.z_at, call.weight_at = plan.weight_at, call.adjacency_at = plan.adjacency_at;
  call.weight_chunk_bytes = plan.weight_chunk_bytes, call.adjacency_part_bytes = plan.adjacency_part_bytes;
  call.adjacency_steps = plan.adjacency_steps, call.adjacency_chunk_bytes = plan.adjacency_chunk_bytes;
  call.unit_tiles = plan.unit_tiles, call.wide_units = plan.wide_units;
  call.x_rows = rows_of(call.channel_steps * 2), call.y_rows = rows_of(plan.slice() * plan.element_bytes / 16);
  call.z_rows = plan.element_bytes == 2 ? call.y_rows : paired_rows_of(call.y_rows.chunks);
  if (plan.out_channels > 0) {
    call.collapse = packing::collapse_image(plan, images), call.collapse_bias = collapse->bias;
    call.accumulate = collapse->accumulate, call.out_channels = plan.out_channels;
    call.collapse_groups = plan.collapse_groups, call.y_at = plan.y_at, call.stage_at = plan.stage_at;
    call.collapse_tiles = plan.collapse_tiles, call.slices_at_once = plan.slices_at_once;
    call.kept_at = plan.kept_at, call.kept_bytes = plan.kept_bytes;
    call.y_pitch = static_cast<int>(detail::collapse_pitch(p));
  }
  const int64_t blocks = plan.blocks / (plan.slices / plan.slices_per_block);
  if (plan.kernel == Kernel::kFewChannels) {
    call.x_rows = rows_of(static_cast<int>(ceil_div(call.nodes * plan.element_bytes, kStepBytes)) * 2);
    call.z_rows = rows_of(static_cast<int>(detail::few_chunks(p, plan.element_bytes)));
    const auto start = plan.out_channels > 0 ? launch_few_channels_collapse : launch_few_channels;
    return start(call, type, blocks, plan.shared_bytes, stream);
  }
  const auto start = plan.kernel == Kernel::kFrames ? launch_frames : launch_windows;
  return start(call, type, plan.tile, blocks, plan.shared_bytes, stream);
}

int forward(const Problem& p, Type type, const ForwardPlan& plan, const Pointers& in, bool relu, void* y,
            void* workspace, simt::Stream stream, const Collapse* collapse, void* moments) {
  if (p.N == 0 || p.windows() == 0) return 0;
  const int status = pack(p, type, plan, in, workspace, stream, collapse);
  return status ? status : run(p, type, plan, in, relu, y, workspace, stream, collapse, moments);
}

}  // namespace msg3d::ms_g3d::cuda
