"""Upstream's numbers: where the files lie, how a module is built from one, and what it computes under the file's names.

MSG3D_GOLDEN names another folder of files of the same kinds.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msg3d_fast.model import Recognizer
from msg3d_fast.modules import MSGCN, MSTCN, MSG3DBlock, MWMSG3DBlock

FOLDER = Path(os.environ.get("MSG3D_GOLDEN") or Path(__file__).parent / "golden")
STAGES = ("data_bn", "sgcn1", "gcn3d1", "tcn1", "tcn2", "tcn3")


def files(prefix: str = "") -> list[Path]:
    found = sorted(FOLDER.glob(f"{prefix}*.npz"))
    assert found, f"no {prefix}*.npz in {FOLDER}"
    return found


@cache
def load(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of a file."""
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind in "fiu"}


@cache
def config(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return json.loads(str(arrays["cfg"])) if "cfg" in arrays.files else {}


def cases() -> Iterator[tuple[Path, str]]:
    """Every (file, mode) that holds the results of a module."""
    for path in files():
        if config(path).get("kind") in BUILD:
            with np.load(path, allow_pickle=False) as arrays:
                yield from ((path, mode) for mode in ("eval", "train") if f"{mode}/out" in arrays.files)


def _take(cfg: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: cfg[name] for name in names if name in cfg}


_GRAPH = ("layout", "num_scales", "in_channels", "out_channels")
_NET = ("layout", "num_classes", "base_channels", "num_gcn_scales", "num_g3d_scales", "num_person")
# Upstream widens inside the graph convolution where the input has three channels; here the block's place decides.
BUILD = {
    "MSGCN": lambda cfg, **kw: MSGCN(**_take(cfg, *_GRAPH, "act"), **kw),
    "MSTCN": lambda cfg, backend: MSTCN(
        **_take(cfg, "in_channels", "out_channels", "kernel_size", "stride", "dilations", "residual", "act")
    ),
    "MSG3DBlock": lambda cfg, **kw: MSG3DBlock(
        **_take(cfg, *_GRAPH, "window_size", "window_stride", "window_dilation", "embed_factor"),
        expand=cfg["in_channels"] == 3,
        **kw,
    ),
    "MW_MSG3DBlock": lambda cfg, **kw: MWMSG3DBlock(
        **_take(cfg, *_GRAPH, "window_sizes", "window_stride", "window_dilations"), expand=cfg["in_channels"] == 3, **kw
    ),
    "MSG3D+GCNHead": lambda cfg, **kw: Recognizer(**_take(cfg, *_NET), **kw),
}


def build(path: Path, backend: str) -> nn.Module:
    """The module that a file describes, with the file's parameters and buffers."""
    module = BUILD[config(path)["kind"]](config(path), backend=backend)
    state = {key[2:]: value for key, value in load(path).items() if key[:2] in ("p/", "b/")}
    module.load_state_dict(state, strict=True)
    return module


def results(path: Path, mode: str, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the module computes, under the names that the file has for it (without the mode)."""
    module = build(path, backend).to(dtype).train(mode == "train")
    x, g = (load(path)[key].to(dtype, copy=True) for key in "xg")
    x.requires_grad_()
    found: dict[str, Tensor] = {}
    if isinstance(module, Recognizer):
        for stage in STAGES:
            keep = lambda _module, _args, out, key=f"stage/backbone.{stage}": found.update({key: out.detach().clone()})  # noqa: E731
            getattr(module.backbone, stage).register_forward_hook(keep)
    out = module(x)
    loss = (out * g).sum()
    loss.backward()
    found |= {"out": out.detach(), "loss": loss.detach(), "gx": x.grad}
    found |= {f"gp/{name}": p.grad for name, p in module.named_parameters()}
    if mode == "train":
        found |= {f"b/{name}": b for name, b in module.named_buffers() if not name.endswith("A")}
    return found


def expected(path: Path, mode: str) -> dict[str, Tensor]:
    """The file's results for a mode, without the mode in their names."""
    return {
        key.removeprefix(f"{mode}/"): value
        for key, value in load(path).items()
        if key.startswith(f"{mode}/") and not key.endswith("f32_rel_err")
    }
