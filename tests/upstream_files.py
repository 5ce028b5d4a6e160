"""Files as the upstreams' training writes them, made with imitations of their classes, which are gone when read."""

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HUB, BUFFER, CONFIG = "mmengine.logging.message_hub", "mmengine.logging.history_buffer", "mmengine.config.config"
MMCV_CONFIG = "mmcv.utils.config"


class HistoryBuffer:
    """A log history: arrays, and its own methods in its state."""

    def __init__(self) -> None:
        self.max_length, self._log_history, self._count_history = 10, np.array([0.5, 0.25]), np.array([1, 1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean, "min": HistoryBuffer.min}}

    def mean(self) -> float:
        return float(self._log_history.mean())

    def min(self) -> float:
        return float(self._log_history.min())


class MessageHub:
    """Holds histories and what is known of the run."""

    def __init__(self) -> None:
        self._log_scalars = OrderedDict([("train/loss", HistoryBuffer())])
        self._runtime_info = OrderedDict(epoch=16, cfg="model = dict()", best=np.float64(0.9))


class ConfigDict(dict):
    """A dict with a state of its own, filled item by item when it is read."""

    def __getstate__(self) -> dict[str, Any]:
        return {"filename": "config.py"}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the file was run")


class ConfigList(list):
    """A list, likewise."""


@contextmanager
def upstream_installed(**homes: str) -> Iterator[None]:
    """The imitations under their upstream names, for as long as a file is written."""
    homes = {"HistoryBuffer": BUFFER, "MessageHub": HUB, "ConfigDict": CONFIG, "ConfigList": CONFIG, **homes}
    modules: dict[str, types.ModuleType] = {}
    for home in homes.values():
        parts = home.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            modules.setdefault(name, types.ModuleType(name))
            if end > 1:
                setattr(modules[".".join(parts[: end - 1])], parts[end - 1], modules[name])
    before = {}
    for name, home in homes.items():
        kind = globals()[name]
        before[name] = kind.__module__
        kind.__module__ = home
        for method in ("mean", "min"):
            if hasattr(kind, method) and kind is HistoryBuffer:
                getattr(kind, method).__module__ = home
        setattr(modules[home], name, kind)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        for name, home in before.items():
            globals()[name].__module__ = home


def write_mmaction2(path: Path, state: Mapping[str, Tensor], optimizer: dict[str, Any], *, zipped: bool = True) -> None:
    """epoch_N.pth of mmengine's runner, with everything it may keep beside the weights."""
    with upstream_installed():
        content = {
            "meta": {
                "epoch": 16,
                "iter": 25072,
                "seed": 1234,
                "experiment_name": "msg3d_20230309",
                "mmengine_version": "0.10.3",
                "cfg": "model = dict(type='RecognizerGCN')\n" * 40,
                "dataset_meta": ConfigDict(classes=ConfigList(["a", "b"])),
                "hook_msgs": {"best_ckpt": "best.pth", "best_score": np.float32(0.9)},
            },
            "state_dict": OrderedDict(state),
            "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "hub": MessageHub()},
            "optimizer": optimizer,
            "param_schedulers": [{"last_step": 16, "_global_step": 17, "verbose": False}],
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


def write_mmcv(path: Path, state: Mapping[str, Tensor], optimizer: dict[str, Any], *, zipped: bool = True) -> None:
    """epoch_N.pth of mmcv 1.x's runner, as pyskl's training leaves it."""
    with upstream_installed(ConfigDict=MMCV_CONFIG):
        content = {
            "meta": {
                "epoch": 16,
                "iter": 25072,
                "mmcv_version": "1.5.0",
                "time": "Wed Jun  1 10:00:00 2022",
                "hook_msgs": ConfigDict(last_ckpt="epoch_15.pth"),
                "config": "model = dict()",
            },
            "state_dict": OrderedDict(state),
            "optimizer": optimizer,
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


def write_authors(folder: Path, state: Mapping[str, Tensor], optimizer: dict[str, Any]) -> tuple[Path, Path]:
    """weights/weights-*.pt and checkpoints/checkpoint-*.pt of the authors' main.py."""
    weights, states = folder / "weights-50-62600.pt", folder / "checkpoint-50-fwbz16-62600.pt"
    torch.save(OrderedDict(state), weights)
    scheduler = {"milestones": {30: 1, 40: 1}, "gamma": 0.1, "last_epoch": 50, "base_lrs": [0.05]}
    torch.save({"epoch": 50, "optimizer_states": optimizer, "lr_scheduler_states": scheduler}, states)
    return weights, states
