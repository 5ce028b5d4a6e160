"""Checkpoints: models and optimizer states from the files of all upstreams and ours, and back.

    mmaction2, pyskl   {"meta", "state_dict", "optimizer"?, ...}
    original           a bare state dict, its keys perhaps behind "module."; the optimizer in a file of its own
    msg3d_fast         {"format", "version", "hparams", "preprocessing"?, "state_dict", "training"?}, keys and shapes as
                       mmaction2

Sources: mmengine `runner/checkpoint.py`; pyskl; MS-G3D `main.py`.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .containers import load_file, save_file, save_published
from .conversion import UPSTREAMS, State, convert_optimizer, convert_state_dict, graph_of, infer_hparams, recognise
from .errors import UserError
from .graph import Layout
from .model import Recognizer

FORMATS = ("msg3d_fast", *UPSTREAMS)
VERSION = 1
_INSIDE = ("state_dict", "model_state_dict", "model", "net")  # where a file may hold its weights


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    backend: str | None = None,
    layout: str | Layout | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> Recognizer:
    """The model in a checkpoint of MMAction2, pyskl, the authors or ourselves, in eval mode.

    Training and published files alike: what else a file holds is left out, and nothing in it is run.

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
    told = content.get("preprocessing") if source == "msg3d_fast" else None
    names = told.get("label_names") if isinstance(told, dict) else None
    if isinstance(names, list) and len(names) == hparams["num_classes"]:  # a fresh head has other classes
        model.preprocessing = told
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


def load_optimizer(path: str | os.PathLike[str], model: Recognizer) -> dict[str, Any]:
    """The optimizer state in a training file of any upstream or ours, for `model.parameters()` in their order.

    What belongs to a residual adjacency of the authors comes transposed as the residual itself does, so that the next
    step is the one that upstream would have taken.

    Args:
        path: MMAction2's or pyskl's epoch_N.pth, the authors' checkpoints/checkpoint-*.pt, or our last.ckpt.
        model: what `load_checkpoint` made of the same training.

    Raises:
        UserError: naming the file: it cannot be read, holds no optimizer state, or that of another network.
    """
    content = load_file(path)
    with _naming(path):
        found = _optimizer_in(content)
        if found is None:
            raise UserError("no optimizer state in it; published files have none: give the file that training wrote")
        source = "original" if "optimizer_states" in content else "mmaction2"
        return convert_optimizer(found, model.state_dict(), source, "mmaction2")


def _optimizer_in(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    training = content.get("training")
    places = (content.get("optimizer"), content.get("optimizer_states"))
    if isinstance(training, Mapping):
        places = (*places, training.get("optimizer"))
    return next((one for one in places if isinstance(one, Mapping) and "param_groups" in one), None)


def save_checkpoint(
    model: Recognizer,
    path: str | os.PathLike[str],
    format: str = "msg3d_fast",
    training: Mapping[str, Any] | None = None,
    *,
    optimizer: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model in our format or an upstream's.

    Args:
        model: the model.
        path: the file; it appears whole or not at all. Ours ending in .safetensors is the published form: arrays and
            JSON, each with its checksum.
        format: "msg3d_fast", "mmaction2", "pyskl" or "original".
        training: what resuming needs, tensors and plain values; msg3d_fast only, not in the published form.
        optimizer: state of an optimizer of `model.parameters()`; mmaction2 and pyskl, or original, which gives it a
            file of its own, <path without suffix>-optimizer.pt.
        about: what to say about a published file, as JSON can hold it.

    Raises:
        UserError: an unknown format, a model that the upstream could not build, or a file that cannot be written.
    """
    if not isinstance(model, Recognizer):
        raise UserError(f"a checkpoint holds a Recognizer, found {type(model).__name__}; give the model before fuse")
    path = Path(path)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    published = path.suffix == ".safetensors"
    if format not in FORMATS:
        raise UserError(f"unknown checkpoint format {format!r}; expected one of {', '.join(FORMATS)}")
    if training is not None and (format != "msg3d_fast" or published):
        kind = "a published file" if published else f"a checkpoint in {format}'s format"
        raise UserError(f"{kind} has no place for our training state; save as msg3d_fast in a .ckpt file")
    if optimizer is not None and format == "msg3d_fast":
        raise UserError("our format keeps the optimizer in `training`; name an upstream's format, or leave it out")
    if published and format != "msg3d_fast":
        raise UserError(f"{path.name}: {format} does not read safetensors; name a .pth file, or the format msg3d_fast")
    if format == "msg3d_fast":
        content = {"format": format, "version": VERSION, "hparams": model.hparams}
        if model.preprocessing is not None:
            content["preprocessing"] = dict(model.preprocessing)
        if published:
            save_published(state, {**content, "msg3d_fast": __version__, "about": dict(about or {})}, path)
            return
        content |= {"state_dict": state}
        save_file(content | ({} if training is None else {"training": dict(training)}), path)
        return
    in_channels, width = model.hparams["in_channels"], model.hparams["base_channels"]
    if in_channels != 3:
        raise UserError(
            f"{format} builds networks with 3 input channels only, this one has {in_channels}; save as msg3d_fast"
        )
    if format == "original" and width % 6:
        raise UserError(f"original builds widths that 6 divides only, base_channels is {width}; save as msg3d_fast")
    if optimizer is not None:
        optimizer = convert_optimizer(optimizer, state, "mmaction2", format)
    state = convert_state_dict(state, format, layout=model.layout)
    if format == "original":
        save_file(state, path)
        if optimizer is not None:
            states = {"epoch": 0, "optimizer_states": optimizer, "lr_scheduler_states": {}}
            save_file(states, optimizer_file(path))
        return
    content = {"meta": {"msg3d_fast": __version__}, "state_dict": state}
    save_file(content | ({} if optimizer is None else {"optimizer": optimizer}), path)


def optimizer_file(path: str | os.PathLike[str]) -> Path:
    """Where the optimizer state goes that the authors' format keeps apart from the weights in `path`."""
    return Path(path).with_name(f"{Path(path).stem}-optimizer.pt")


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str = "msg3d_fast",
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    optimizer: str | os.PathLike[str] | None = None,
) -> str:
    """Write the model of one checkpoint as another, and return the format of the source.

    Args:
        source: as for `load_checkpoint`, which `layout` and `num_classes` are handed to.
        destination: the file, as for `save_checkpoint`.
        format: of the destination.
        layout: the skeleton, where the source does not tell.
        num_classes: replace the classifier by a fresh one, the same one at every call.
        optimizer: file whose optimizer state goes along; "" is the source.

    Raises:
        UserError: a file that cannot be read or written, or a model that the format could not hold.
    """
    if num_classes is not None and num_classes < 1:
        raise UserError(f"a classifier of {num_classes} classes is asked for, expected 1 or more")
    if num_classes is not None and optimizer is not None:
        raise UserError("a fresh classifier has no optimizer state; leave out --finetune or --optimizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_checkpoint(source, backend="reference", layout=layout, num_classes=num_classes)
    state = None if optimizer is None else load_optimizer(optimizer or source, model)
    about = None if num_classes is not None else _about(load_file(source))
    save_checkpoint(model, destination, format, optimizer=state, about=about)
    return str(model.source)


def publish_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str = "msg3d_fast",
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> tuple[str, Path]:
    """`convert_file` without optimizer, into a file that is named after its content, as MMAction2's `publish_model`.

    Returns:
        The format of the source, and the file: NAME-HASH.SUFFIX, HASH the first 8 digits of the sha256 of its bytes.
    """
    destination = Path(destination)
    try:
        with tempfile.TemporaryDirectory(prefix=".publish-", dir=destination.parent) as folder:
            whole = Path(folder) / destination.name
            found = convert_file(source, whole, format, layout=layout, num_classes=num_classes)
            digest = hashlib.sha256(whole.read_bytes()).hexdigest()
            published = destination.with_name(f"{destination.stem}-{digest[:8]}{destination.suffix}")
            os.replace(whole, published)
    except OSError as error:
        raise UserError(
            f"checkpoint {destination} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return found, published


def describe_file(
    path: str | os.PathLike[str], *, layout: str | Layout | Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a checkpoint holds beside arrays, as JSON can hold it: format, sizes, notes, optimizer and position.

    Raises:
        UserError: as `load_checkpoint`.
    """
    content = load_file(path)
    model = load_checkpoint(path, backend="reference", layout=layout)
    with _naming(path):
        found = {"format": model.source, "parameters": sum(p.numel() for p in model.parameters())}
        found["hparams"] = model.hparams
        found["about"] = _about(content)
        optimizer = _optimizer_in(content)
        if optimizer is not None:
            held = optimizer.get("state") or {}
            group = {key: value for key, value in _plain(optimizer["param_groups"][0]).items() if key != "params"}
            found["optimizer"] = {"arrays_of": len(held), "settings": group}
        if isinstance(content.get("training"), Mapping):
            position = content["training"]["position"]
            found["training"] = {key: position[key] for key in ("epoch", "step", "best")}
    return found


def _about(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says about its weights: our notes, or the plain entries of OpenMMLab's `meta`."""
    found = _plain(content.get("meta")) | _plain(content.get("about"))
    return {key: value for key, value in found.items() if value not in (None, "")}


def _plain(mapping: Any) -> dict[str, Any]:
    """The entries that are plain values and short."""
    items = mapping.items() if isinstance(mapping, Mapping) else ()
    return {
        str(key): value
        for key, value in items
        if isinstance(value, bool | int | float | str | None) and len(str(value)) <= 200
    }


def _weights(content: Mapping[str, Any]) -> tuple[State, str]:
    """The state dict in a file's content, without DataParallel's prefixes, and the format."""
    if "optimizer_states" in content:
        raise UserError("it holds the optimizer's state alone; the weights of that epoch are in weights/weights-*.pt")
    inside = next((content[name] for name in _INSIDE if isinstance(content.get(name), Mapping)), content)
    if not inside or not all(isinstance(value, Tensor) for value in inside.values()):
        raise UserError(
            f"no state dict in it (found {', '.join(map(str, list(content)[:4]))}); expected MS-G3D weights"
        )
    state = {re.sub(r"^.*\b(module|_orig_mod)\.", "", str(key)): value for key, value in inside.items()}
    state = {key: value for key, value in state.items() if not key.startswith("data_preprocessor.")}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise UserError(f"{key} is no array of plain numbers ({value.dtype}, {value.layout}); save it as one")
        if not value.isfinite().all():
            raise UserError(f"{key} holds NaN or infinity: its training diverged; take an earlier checkpoint")
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
