"""MS-G3D's graph convolution as the published networks compute it: what everything native is tested against.

    y[n,o,t,w,v] = bias[o] + sum_k sum_c weight[o,k,c] * sum_{w',u} A[k,(w,v),(w',u)] * x[n,c, t*s + w'*d - p, u]

Windows of tau frames (stride s, dilation d, p = ((tau-1)*d)//2 zero frames on either side) are unfolded, every scale k
aggregates over the nodes (w, v), numbered w*V + v, and a 1x1 convolution over the channels (k, c), scale-major, mixes
them. The sequence of operations is that of ST_MSGCN in MMAction2 and pyskl. Shapes stand in the names. Imports torch
alone; any device, any floating type.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def unfold_windows(x_NCTV: Tensor, window_size: int, window_stride: int = 1, window_dilation: int = 1) -> Tensor:
    """Put the frames of a window side by side: (N, C, T, V) -> (N, C, T_out, tau*V), element [.., t, w*V + v]."""
    N, C, _, V = x_NCTV.shape
    padding = ((window_size - 1) * window_dilation) // 2
    columns = F.unfold(
        x_NCTV, (window_size, 1), dilation=(window_dilation, 1), padding=(padding, 0), stride=(window_stride, 1)
    )  # (N, C*tau, T_out*V)
    T_out = columns.shape[-1] // V
    x_NCwtV = columns.view(N, C, window_size, T_out, V)
    return x_NCwtV.transpose(2, 3).reshape(N, C, T_out, window_size * V)


def ms_g3d(
    x: Tensor,
    A: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    window_size: int = 3,
    window_stride: int = 1,
    window_dilation: int = 1,
) -> Tensor:
    """Multi-scale graph convolution over windows of frames: x (N, C, T, V) -> (N, O, T_out, tau*V).

    Args:
        x: (N, C, T, V), any floating type.
        A: (K, tau*V, tau*V), `A[k, destination, source]`; dense, the learned residual already added.
        weight: (O, K, C), the 1x1 convolution's (O, K*C, 1, 1) seen scale-major.
        bias: (O,) or None.
        window_size: tau, frames in a window.
        window_stride: s, frames from one window to the next.
        window_dilation: d, frames from one slot of a window to the next.

    Returns:
        (N, O, T_out, tau*V) with T_out = (T + 2p - d*(tau-1) - 1)//s + 1.
    """
    O, K, C = weight.shape  # noqa: E741
    x_NCtW = x if window_size == window_stride == 1 else unfold_windows(x, window_size, window_stride, window_dilation)
    N, _, T_out, W = x_NCtW.shape
    agg_NKCtW = torch.einsum("nctu,kvu->nkctv", x_NCtW, A)
    return F.conv2d(agg_NKCtW.reshape(N, K * C, T_out, W), weight.reshape(O, K * C, 1, 1), bias)


def ms_gcn(x: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-scale graph convolution frame by frame, the case tau = s = d = 1: x (N, C, T, V) -> (N, O, T, V).

    Args:
        x: (N, C, T, V), any floating type.
        A: (K, V, V), `A[k, destination, source]`.
        weight: (O, K, C), scale-major.
        bias: (O,) or None.

    Returns:
        (N, O, T, V).
    """
    return ms_g3d(x, A, weight, bias, window_size=1)
