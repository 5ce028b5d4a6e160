// The doors of the backward pass, the packing of A and the weights for it, and the second stage of its sums.
#include "parts.h"

namespace msg3d::ms_g3d::cuda {

constexpr int kPackThreads = 256;

struct PackGatherParameters {
  const void *A, *A_res;
  int64_t stride[3];
  void* packed;
  int joints, nodes, window, slot_step, sets, steps, tiles;
  int64_t count;  // lanes of tiles
};

// One lane's two registers of one tile a thread.
template <typename T>
SIMT_KERNEL(kPackThreads, 1)
void pack_adjacency_for_gather(PackGatherParameters p) {
  const int64_t index = static_cast<int64_t>(block_x()) * kPackThreads + thread_index();
  if (index < p.count) {
    const int lane = static_cast<int>(index & 31);
    const int64_t rest = index >> 5;
    const int tile = static_cast<int>(rest % p.tiles), step = static_cast<int>(rest / p.tiles % p.steps);
    const int set = static_cast<int>(rest / p.tiles / p.steps % p.sets);
    const int64_t k = rest / p.tiles / p.steps / p.sets;
    const int slots = (p.window - 1 - set) / p.slot_step + 1, u = tile * 8 + (lane >> 2);
    const T *const A = static_cast<const T*>(p.A), *const residual = static_cast<const T*>(p.A_res);
    const auto value = [&](int row) {  // of the sum over (slot, w, v), the oldest window and so the last slot first
      const int back = row / p.nodes, node = row - back * p.nodes;
      if (back >= slots || u >= p.joints) return 0.f;
      const int source = (set + (slots - 1 - back) * p.slot_step) * p.joints + u;
      float sum = to_float(A[k * p.stride[0] + node * p.stride[1] + source * p.stride[2]]);
      if (residual) sum += to_float(residual[(k * p.nodes + node) * p.nodes + source]);
      return sum;
    };
    const int64_t of_step = (rest - tile) * 256;
    const bool paired = tile < p.tiles / 2 * 2;
    const int at = paired ? tile / 2 * 512 + lane * 16 + tile % 2 * 8 : tile * 256 + lane * 8;
    const auto word = [&](int upper) {
      if constexpr (kIsTf32<T>) {
        return to_tf32(value(step * 8 + (lane & 3) + upper * 4));
      } else {
        const int row = step * 16 + (lane & 3) * 2 + upper * 8;
        return pack_pair<T>(value(row), value(row + 1));
      }
    };
    store_vector(static_cast<unsigned char*>(p.packed) + of_step + at, Bits64{word(0), word(1)});
  }
}

struct PackWeightParameters {
  const void* weight;
  int64_t stride[3];
  void* packed;
  int O, C, K, all_outputs, channels;
  int tiles;  // m16 tiles of a slice of channels
  int64_t count;

  template <typename T>
  SIMT_DEVICE float value(int64_t o, int64_t k, int64_t c) const {
    const T* const from = static_cast<const T*>(weight);
    return o < O && c < C ? to_float(from[o * stride[0] + k * stride[1] + c * stride[2]]) : 0.f;
  }
};

template <typename T>
SIMT_KERNEL(kPackThreads, 1)
void pack_weight_as_rows(PackWeightParameters p) {
  const int64_t index = static_cast<int64_t>(block_x()) * kPackThreads + thread_index();
  if (index < p.count) {
    const int64_t row = index / p.channels, c = index - row * p.channels, k = row / p.all_outputs;
    const int64_t place = row - k * p.all_outputs, o = place / 32 * 32 + z_channel<T>(static_cast<int>(place % 32));
    static_cast<T*>(p.packed)[index] = from_float<T>(p.value<T>(o, k, c));
  }
}

// One register of one lane a thread.
template <typename T>
SIMT_KERNEL(kPackThreads, 1)
void pack_weight_as_operands(PackWeightParameters p) {
  constexpr int kSteps = kChannelChunk / kPerStep<T>;
  const int64_t index = static_cast<int64_t>(block_x()) * kPackThreads + thread_index();
  if (index < p.count) {
    const int part = static_cast<int>(index & 3), lane = static_cast<int>(index >> 2 & 31);
    const int64_t rest = index >> 7, chunks = p.all_outputs / kChannelChunk;
    const int tile = static_cast<int>(rest % p.tiles), step = static_cast<int>(rest / p.tiles % kSteps);
    const int64_t k = rest / p.tiles / kSteps % p.K, of_scale = rest / p.tiles / kSteps / p.K;
    const int64_t c = (of_scale / chunks * p.tiles + tile) * 16 + channel_of_row((lane >> 2) + part % 2 * 8);
    const int64_t output = of_scale % chunks * kChannelChunk;
    uint32_t word;
    if constexpr (kIsTf32<T>) {  // the order in which GradX::turn leaves rows of H^T
      const int row = (lane & 3) * 2 + part / 2 + step % 2 * 8;
      word = to_tf32(p.value<T>(output + gathered_channel<T>(step / 2, row), k, c));
    } else {
      const int64_t o = output + gathered_channel<T>(step, (lane & 3) * 2 + part / 2 * 8);
      word = pack_pair<T>(p.value<T>(o, k, c), p.value<T>(o + 1, k, c));
    }
    static_cast<uint32_t*>(p.packed)[index] = word;
  }
}

struct SumParameters {
  PartSum sum;
  int64_t total;
};

SIMT_KERNEL(kPackThreads, 1)
void sum_parts_in_order(SumParameters p) {
  const int64_t index = static_cast<int64_t>(block_x()) * kPackThreads + thread_index();
  if (index < p.total) {
    const PartSum& s = p.sum;
    const int64_t l = index % s.size[2], j = index / s.size[2] % s.size[1], i = index / s.size[2] / s.size[1];
    const float* from = s.parts + i * s.stride[0] + j * s.stride[1] + l;
    float total = 0.f;
#pragma unroll 4
    for (int64_t part = 0; part < s.count; ++part, from += s.part_stride) total += *from;
    const int64_t to = i * s.out_stride[0] + j * s.out_stride[1] + l * s.out_stride[2];
    if (s.type == Type::kBFloat16) {
      static_cast<bf16*>(s.out)[to] = from_float<bf16>(total);
    } else if (s.type == Type::kFloat16) {
      static_cast<half*>(s.out)[to] = from_float<half>(total);
    } else {
      static_cast<float*>(s.out)[to] = total;
    }
  }
}

namespace {

Grid blocks_of(int64_t count) { return Grid{static_cast<unsigned>(ceil_div(count, kPackThreads))}; }

PackWeightParameters weight_parameters(const Problem& p, const Pointers& in, void* packed) {
  PackWeightParameters k{in.weight, {in.weight_stride[0], in.weight_stride[1], in.weight_stride[2]}, packed};
  k.O = static_cast<int>(p.O), k.C = static_cast<int>(p.C), k.K = static_cast<int>(p.K);
  k.all_outputs = static_cast<int>(ceil_div(p.O, kChannelChunk) * kChannelChunk);
  return k;
}

}  // namespace

int pack_for_gather(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, void* packed,
                    void* stream) {
  const FramePhases phases = frame_phases(p);
  PackGatherParameters k{in.A, in.A_res, {in.A_stride[0], in.A_stride[1], in.A_stride[2]}, packed};
  k.joints = static_cast<int>(p.V), k.nodes = static_cast<int>(p.nodes()), k.window = static_cast<int>(p.window);
  k.slot_step = phases.slot_step, k.sets = phases.sets, k.steps = plan.set_steps;
  k.tiles = kGatherTiles[plan.tile].joint_tiles;
  k.count = plan.adjacency_bytes / 8;
  const auto kernel = type == Type::kBFloat16  ? pack_adjacency_for_gather<bf16>
                      : type == Type::kFloat16 ? pack_adjacency_for_gather<half>
                                               : pack_adjacency_for_gather<tf32>;
  return launch(kernel, blocks_of(k.count), kPackThreads, 0, stream, k);
}

int pack_weight_rows(const Problem& p, Type type, int channels, const Pointers& in, void* packed, void* stream) {
  PackWeightParameters k = weight_parameters(p, in, packed);
  k.channels = channels, k.count = p.K * k.all_outputs * channels;
  const auto kernel = type == Type::kBFloat16  ? pack_weight_as_rows<bf16>
                      : type == Type::kFloat16 ? pack_weight_as_rows<half>
                                               : pack_weight_as_rows<tf32>;
  return launch(kernel, blocks_of(k.count), kPackThreads, 0, stream, k);
}

int pack_weight_operands(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, void* packed,
                         void* stream) {
  PackWeightParameters k = weight_parameters(p, in, packed);
  k.tiles = plan.team * plan.channel_tiles, k.count = plan.weight_bytes / 4;
  const auto kernel = type == Type::kBFloat16  ? pack_weight_as_operands<bf16>
                      : type == Type::kFloat16 ? pack_weight_as_operands<half>
                                               : pack_weight_as_operands<tf32>;
  return launch(kernel, blocks_of(k.count), kPackThreads, 0, stream, k);
}

int sum_parts(const PartSum& sum, void* stream) {
  const int64_t total = static_cast<int64_t>(sum.size[0]) * sum.size[1] * sum.size[2];
  return launch(sum_parts_in_order, blocks_of(total), kPackThreads, 0, stream, SumParameters{sum, total});
}

GatherParameters gather_parameters(const Problem& p, const GatherPlan& plan, const void* gy, const void* packed_A) {
  const FramePhases phases = frame_phases(p);
  GatherParameters g{};
  g.gy = gy, g.A = packed_A;
  g.windows = static_cast<int>(p.windows()), g.nodes = static_cast<int>(p.nodes()), g.O = static_cast<int>(p.O);
  g.K = static_cast<int>(p.K), g.window = static_cast<int>(p.window), g.stride = static_cast<int>(p.stride);
  g.dilation = static_cast<int>(p.dilation), g.padding = static_cast<int>(p.padding());
  g.phases = phases.phases, g.window_step = phases.window_step, g.slot_step = phases.slot_step;
  g.phase_count = static_cast<int>(std::min<int64_t>(phases.phases, p.T));
  g.frames = static_cast<int>(p.T), g.frame_tiles = plan.frame_tiles, g.tile_frames = plan.frames;
  g.set_steps = plan.set_steps, g.chunk_steps = plan.chunk_steps, g.threads = plan.warps * 32;
  return g;
}

int grad_input(const Problem& p, Type type, const BackwardPlan& plan, const Pointers& in, const void* gy, void* grad_x,
               void* workspace, void* stream) {
  if (plan.as_forward.kernel != Kernel::kPlain && !in.A_res) {  // a residual would need strides of its own
    Pointers turned = in;
    turned.x = gy, turned.bias = nullptr;
    std::swap(turned.A_stride[1], turned.A_stride[2]);
    std::swap(turned.weight_stride[0], turned.weight_stride[2]);
    return forward(transposed(simplified(p)), type, plan.as_forward, turned, false, grad_x, workspace, stream);
  }
  return launch_grad_x(simplified(p), type, plan.grad_x, in, gy, grad_x, static_cast<unsigned char*>(workspace),
                       stream);
}

int grad_parameters(const Problem& p, Type type, const BackwardPlan& plan, const Pointers& in, const void* gy,
                    const Gradients& out, void* workspace, void* stream) {
  unsigned char* const first = static_cast<unsigned char*>(workspace);
  int error = 0;
  if (out.A) error = launch_grad_A(simplified(p), type, plan.grad_A, in, gy, out, first, stream);
  if (error || !out.weight) return error;
  return launch_grad_weight(simplified(p), type, plan.grad_weight, in, gy, out, first + plan.grad_A.workspace_bytes(),
                            stream);
}

}  // namespace msg3d::ms_g3d::cuda
