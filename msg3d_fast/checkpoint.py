"""Checkpoints: read without running anything in them, written whole or not at all, in the formats of all upstreams.

    mmaction2, pyskl   {"meta", "state_dict"}
    original           a bare state dict, its keys perhaps behind "module."
    msg3d_fast         {"format", "version", "hparams", "state_dict", "training"?}, keys and shapes as mmaction2

Sources: mmengine `runner/checkpoint.py`, `logging/history_buffer.py`; MS-G3D `main.py`.
"""

import contextlib
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .conversion import UPSTREAMS, State, convert_state_dict, graph_of, infer_hparams, recognise
from .errors import UserError
from .graph import Layout
from .model import Recognizer

FORMATS = ("msg3d_fast", *UPSTREAMS)
VERSION = 1


class _Inert:
    """Stands in for what mmengine's training files hold beside the weights: takes anything, keeps and does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


# Log histories and NumPy values; getattr is how pickle writes a method's name.
_INERT_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "_codecs.encode",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


def load_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict in a file that `torch.save` or `save_file` wrote, on the CPU; code in the file is refused, never run.

    What mmengine keeps beside the weights comes back as inert stand-ins. Every record is held against the checksum
    that `torch.save` stored with it, which `torch.load` does not look at.

    Raises:
        UserError: no such file, an empty, truncated, damaged or foreign one, one that asks for code, or one that holds
            no dict.
    """
    path = Path(path)

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)

    try:
        if not path.stat().st_size:
            raise UserError(f"checkpoint {path} is empty; copy or save it again")
        _check_sums(path)
        try:
            found = load()
        except OSError:
            raise
        except Exception:  # stand-ins on the second try only: they must not replace what an ordinary file needs
            with torch.serialization.safe_globals([(_Inert, name) for name in _INERT_NAMES]):
                found = load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # what a broken pickle raises depends on where it breaks
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UserError(
                f"checkpoint {path} asks for {wanted[1]}, which is no data; nothing was run: use a file of weights only"
            ) from error
        kind = type(error).__name__
        raise UserError(f"checkpoint {path} is truncated or no PyTorch file ({kind}); copy or save it again") from error
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {path} holds a {type(found).__name__}, expected a dict; save model.state_dict()")
    return found


def _check_sums(path: Path) -> None:
    """Raise UserError where a record of a zip file is not what was written; other files have no checksums."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); copy or save it again") from error
    if damaged is not None:
        raise UserError(
            f"checkpoint {path} is damaged: its record {damaged} does not have the checksum that was written with it; "
            "copy or save it again"
        )


def save_file(content: Any, path: str | os.PathLike[str]) -> None:
    """Write what `load_file` reads; the file appears whole or, if that fails, the one before it stays.

    Raises:
        UserError: the folder or the disk does not take it.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be written: {error.strerror or error}; nothing was changed: "
            "free space or choose another folder, and save again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    backend: str | None = None,
    layout: str | Layout | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> Recognizer:
    """The model in a checkpoint of MMAction2, pyskl, the authors or ourselves, in eval mode.

    Sizes come from the file: its own record, or the shapes of its arrays; `model.source` says which format it was.

    Args:
        path: the file.
        device: where the model goes.
        backend: see `Recognizer`.
        layout: the skeleton, where the file does not tell: the authors' files, unless it is one of their two.
        num_classes: replace the head by a fresh one for that many classes, unless it has them already.

    Raises:
        UserError: naming the file: it cannot be read, is no MS-G3D, or contradicts itself or `layout`.
    """
    content = load_file(path)
    with _naming(path):
        state, source = _weights(content)
        state = convert_state_dict(state, "mmaction2", layout=layout)
        found = graph_of(state["backbone.A"], layout)
        hparams = dict(content["hparams"]) if source == "msg3d_fast" else infer_hparams(state, source, found)
        if num_classes is not None and num_classes != hparams.get("num_classes"):
            hparams["num_classes"] = num_classes
            state = {key: value for key, value in state.items() if not key.startswith("cls_head.")}
        try:
            model = Recognizer(**hparams, backend=backend)
        except TypeError as error:
            raise UserError(
                f"its hparams are not ours ({error}); expected a file that save_checkpoint wrote"
            ) from error
        _load_state(model, {**_head(model.state_dict()), **state} if num_classes is not None else state)
    model.source = source
    return model.to(device).eval()


def load_weights(model: Recognizer, path: str | os.PathLike[str]) -> str:
    """Load a checkpoint of any format into a model that exists, and return the format.

    Raises:
        UserError: naming the file: it cannot be read, or does not fit: the first key that differs and both shapes.
    """
    content = load_file(path)
    with _naming(path):
        state, source = _weights(content)
        _load_state(model, convert_state_dict(state, "mmaction2", layout=model.layout))
    model.source = source
    return source


def save_checkpoint(
    model: Recognizer,
    path: str | os.PathLike[str],
    format: str = "msg3d_fast",
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a model in our format or an upstream's.

    Args:
        model: the model.
        path: the file; it appears whole or not at all.
        format: "msg3d_fast", "mmaction2", "pyskl" or "original".
        training: what resuming needs, tensors and plain values; msg3d_fast only.

    Raises:
        UserError: an unknown format, a model that the upstream could not build, or a file that cannot be written.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if format == "msg3d_fast":
        content = {"format": format, "version": VERSION, "hparams": model.hparams, "state_dict": state}
        save_file(content | ({} if training is None else {"training": dict(training)}), path)
        return
    if format not in FORMATS:
        raise UserError(f"unknown checkpoint format {format!r}; expected one of {', '.join(FORMATS)}")
    if training is not None:
        raise UserError(f"a checkpoint in {format}'s format has no place for our training state; save as msg3d_fast")
    in_channels, width = model.hparams["in_channels"], model.hparams["base_channels"]
    if in_channels != 3:
        raise UserError(
            f"{format} builds networks with 3 input channels only, this one has {in_channels}; save as msg3d_fast"
        )
    if format == "original" and width % 6:
        raise UserError(f"original builds widths that 6 divides only, base_channels is {width}; save as msg3d_fast")
    state = convert_state_dict(state, format, layout=model.layout)
    save_file(state if format == "original" else {"meta": {"msg3d_fast": __version__}, "state_dict": state}, path)


def _weights(content: Mapping[str, Any]) -> tuple[State, str]:
    """The state dict in a file's content, without DataParallel's prefixes, and the format."""
    inside = content.get("state_dict", content)
    if not isinstance(inside, dict) or not all(isinstance(value, Tensor) for value in inside.values()):
        raise UserError(
            f"no state dict in it (found {', '.join(map(str, list(content)[:4]))}); expected MS-G3D weights"
        )
    state = {re.sub(r"^.*\bmodule\.", "", key): value for key, value in inside.items()}
    source = recognise(state)
    if content.get("format") != "msg3d_fast":
        return state, source
    if content.get("version") != VERSION or not isinstance(content.get("hparams"), dict):
        raise UserError(
            f"it has version {content.get('version')}, this msg3d_fast reads {VERSION}; install the one it is from"
        )
    return state, "msg3d_fast"


def _head(state: Mapping[str, Tensor]) -> State:
    return {key: value for key, value in state.items() if key.startswith("cls_head.")}


def _load_state(model: Recognizer, state: State) -> None:
    """load_state_dict with an error that says what differs and what to do."""
    own = model.state_dict()
    advice = "load_checkpoint builds the model that a file is for"
    for key, value in own.items():
        if key not in state:
            raise UserError(f"it lacks {key}, which the model has; {advice}")
        if state[key].shape != value.shape:
            theirs, ours = tuple(state[key].shape), tuple(value.shape)
            raise UserError(
                f"{key} is {theirs} in the file and {ours} in the model{_difference(model, state)}; {advice}"
            )
    if extra := state.keys() - own.keys():
        raise UserError(f"it holds {min(extra)}, which the model lacks; {advice}")
    if state["backbone.data_bn.weight"].dtype == torch.float64:
        model.double()
    model.load_state_dict(state)


def _difference(model: Recognizer, state: State) -> str:
    try:
        theirs = infer_hparams(state, "mmaction2", graph_of(state["backbone.A"], None))
    except UserError:
        return ""
    names = [name for name in theirs if name != "flavour" and theirs[name] != model.hparams[name]]
    listed = [
        ", ".join(
            f"{name}={hparams[name]['name'] if isinstance(hparams[name], dict) else hparams[name]}" for name in names
        )
        for hparams in (theirs, model.hparams)
    ]
    return f": the file has {listed[0]}, the model {listed[1]}" if names else ""


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
