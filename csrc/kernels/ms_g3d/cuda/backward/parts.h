// What the backward kernels read: A and the weights once more, in their order and padded with zeros; and the last step,
// the sum of parts. Host functions that launch kernels of backward.cu.
#pragma once

#include "backward.h"
#include "gather.h"

namespace msg3d::ms_g3d::cuda {

// A (with the residual) as B operands of gather(): for every scale, set of slots and step of rows (slot, w, v) of its
// sum, joint tiles of 8, two by two: a lane's four registers of two tiles side by side, or its two of an odd last tile.
int pack_for_gather(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, void* packed,
                    void* stream);

// weight as A operands of grad_x: for every slice of channels, 32 channels o, scale and step of them, the slice's m16
// tiles of channels, each with a lane's four registers side by side.
int pack_weight_operands(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, void* packed,
                         void* stream);

// The channel, of 32, that stands in column `column` of the n8 tiles of Z, so that a lane's pairs of tf32 lie in other
// banks than those of its neighbours.
template <typename T>
SIMT_HOST_DEVICE int z_channel(int column) {
  return kIsTf32<T> ? column / 8 * 4 + (column & 3) + (column & 4) * 4 : column;
}

// weight as (K, O to a multiple of 32, channels), rows of `channels` elements in z_channel's order.
int pack_weight_rows(const Problem& p, Type type, int channels, const Pointers& in, void* packed, void* stream);

// out[i*out_stride[0] + j*out_stride[1] + l*out_stride[2]] = sum over parts, in order, of
// parts[part*part_stride + i*stride[0] + j*stride[1] + l] for i, j, l below `size`.
struct PartSum {
  const float* parts;
  void* out;
  Type type;
  int64_t count, part_stride;
  int size[3];
  int64_t stride[2], out_stride[3];
};
int sum_parts(const PartSum& sum, void* stream);

// One gradient each, of a problem as simplified() leaves it: packing, the kernel, the sum of its parts.
int launch_grad_x(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, const void* gy, void* out,
                  unsigned char* workspace, void* stream);
int launch_grad_weight(const Problem& p, Type type, const GatherPlan& plan, const Pointers& in, const void* gy,
                       const Gradients& out, unsigned char* workspace, void* stream);
int launch_grad_A(const Problem& p, Type type, const OuterPlan& plan, const Pointers& in, const void* gy,
                  const Gradients& out, unsigned char* workspace, void* stream);

GatherParameters gather_parameters(const Problem& p, const GatherPlan& plan, const void* gy, const void* packed_A);

}  // namespace msg3d::ms_g3d::cuda
