"""Fast MS-G3D: skeleton action recognition with fused native kernels (Liu et al., CVPR 2020)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import data, ops, reference
    from .checkpoint import load_checkpoint, save_checkpoint
    from .errors import UserError
    from .export import export_model
    from .graph import Layout
    from .inference import fuse
    from .model import MSG3D, Recognizer
    from .predict import Predictor, Stream

__version__ = "0.1.0"

# Where each public name lives. Names load on first use, so that what a process does not need costs it nothing.
_HOME = {
    "Layout": "graph",
    "MSG3D": "model",
    "Predictor": "predict",
    "Recognizer": "model",
    "Stream": "predict",
    "UserError": "errors",
    "export_model": "export",
    "fuse": "inference",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
_MODULES = ("data", "ops", "reference")

__all__ = [
    "MSG3D",
    "Layout",
    "Predictor",
    "Recognizer",
    "Stream",
    "UserError",
    "__version__",
    "data",
    "export_model",
    "fuse",
    "load_checkpoint",
    "ops",
    "reference",
    "save_checkpoint",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
