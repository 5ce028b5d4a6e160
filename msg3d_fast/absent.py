"""Persons who are not there: slots of a clip that are zero through all its frames.

After data_bn, whose statistics are per slot, all absent persons of one slot hold the same numbers, and so they do after
every layer: one representative is computed for all of them. Its multiplicity enters the statistics of every batch
normalisation, and its gradient is the sum of theirs, so that outputs, parameters' gradients and running statistics are
those of the padded computation. The gradient with respect to each absent person's input alone is not computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """How the persons of a batch share rows.

    Args:
        rows: (B,) the persons to compute, numbered n*M + m.
        row_of: (N*M,) where each person's result stands among them.
        multiplicity: (B,) how many persons each stands for.
    """

    rows: Tensor
    row_of: Tensor
    multiplicity: Tensor


def merge(clips: Tensor) -> Merged | None:
    """Let all absent persons of one slot share the first one's row; None where no two would.

    Args:
        clips: (N, M, T, V, C). A person with a number other than zero in any frame is present; NaN counts as one.
    """
    N, M = clips.shape[:2]
    absent = ~clips.flatten(2).any(2)  # (N, M)
    if absent.sum(0).max() < 2:
        return None
    person = torch.arange(N * M, device=clips.device).view(N, M)
    first = absent.to(torch.uint8).argmax(0) * M + torch.arange(
        M, device=clips.device
    )  # (M,) the first absent person of each slot
    rows, row_of = torch.unique(torch.where(absent, first, person), return_inverse=True)
    row_of = row_of.flatten()
    return Merged(rows, row_of, torch.bincount(row_of).to(clips.dtype))
