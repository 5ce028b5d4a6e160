"""What a configuration stands for: its clips, its pipelines and its network, checked against each other.

And back: the network of a run folder, with its configuration and the names of its classes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import _library, data, ops
from .checkpoint import load_checkpoint
from .config import Config, load_config
from .errors import UserError
from .graph import get_layout
from .model import Recognizer
from .score_files import read_scores


def choose_backend(config: Config, device: torch.device) -> tuple[str, str]:
    """The backend to run on, and one line for the user where it is not the one asked for, else "".

    Raises:
        UserError: an unknown backend, or the native one where its library is missing.
    """
    backend = ops.resolve_backend(config.model.backend)
    if device.type == "cuda" and backend == "native" and not _library.has_cuda():
        return "reference", "this build has no CUDA kernels: running the reference backend on CUDA"
    if backend == "native":
        _library.require()
    return backend, ""


def open_clips(config: Config, checkpoint: str | Path | None = None) -> data.ClipSet:
    """The data set of the configuration.

    Args:
        config: says which, and the network that it is for.
        checkpoint: whose network that is, for messages; None: the configuration's.

    Raises:
        UserError: no path given, a file that cannot be read, joints, channels or labels that do not fit `config.model`.
    """

    def misfit(found: str, key: str, wanted: object) -> UserError:
        whose, fix = f"model.{key} is", f"set --model.{key}, or null to take the data's"
        if checkpoint is not None:
            whose, fix = f"the network of {checkpoint} has {key}", "choose other data or another checkpoint"
        return UserError(f"{config.data.path}: {found}, {whose} {wanted}; {fix}")

    if config.data.path is None:
        raise UserError(
            "data.path: none given; add --data.path=FILE (.pkl, .npz, a store folder, embedded or synthetic)"
        )
    clips = data.open_dataset(config.data.path, layout=config.model.layout)
    if config.model.layout is not None:
        layout = get_layout(config.model.layout)
        if layout.num_joints != clips.layout.num_joints:
            found = f"has {clips.layout.num_joints} joints ({clips.layout.name})"
            raise misfit(found, "layout", f"{layout.name} with {layout.num_joints}")
    if config.model.in_channels not in (None, channels := clips.keypoint.shape[-1]):
        raise misfit(f"has {channels} channels ({clips.channels})", "in_channels", config.model.in_channels)
    classes = config.model.num_classes or clips.num_classes
    if clips.multi_label:
        return _with_classes(config, clips, classes)
    bad = (clips.label < 0) | (clips.label >= classes)
    if bad.any():
        first = int(bad.argmax())
        found = f"clip {clips.frame_dir[first]} has label {clips.label[first]}, expected 0 to {classes - 1}"
        raise misfit(f"{found} ({int(bad.sum())} such clips)", "num_classes", classes)
    return clips


def _with_classes(config: Config, clips: data.ClipSet, classes: int) -> data.ClipSet:
    """Multi-label clips with one column for each class of the network."""
    if (beyond := clips.label[:, classes:].any(1)).any():
        raise UserError(
            f"{config.data.path}: clip {clips.frame_dir[beyond.argmax()]} has labels beyond the {classes} classes of "
            f"model.num_classes ({int(beyond.sum())} such clips); set --model.num_classes={clips.num_classes}"
        )
    label = np.zeros((len(clips), classes), np.uint8)
    label[:, : clips.num_classes] = clips.label[:, :classes]
    names = (*clips.label_names[:classes], *map(str, range(clips.num_classes, classes)))
    return replace(clips, label=label, label_names=names)


def person_slots(config: Config, clips: data.ClipSet) -> int:
    """Person slots of the network: the configured number, or what the clips need, at most 2."""
    return config.model.num_person or min(2, int(clips.num_person.max()))


def build_model(config: Config, clips: data.ClipSet, backend: str) -> Recognizer:
    """A network for these clips, initialised from torch's global generator or from `model.checkpoint`.

    A checkpoint may have been trained on another number of classes: the classifier then starts afresh.

    Raises:
        UserError: the checkpoint's network is another one than the configuration's.
    """
    wanted = {key: value for key, value in asdict(config.model).items() if key != "checkpoint"}
    wanted["layout"] = clips.layout if config.model.layout is None else config.model.layout
    wanted["num_classes"] = config.model.num_classes or clips.num_classes
    wanted["in_channels"] = config.model.in_channels or clips.keypoint.shape[-1]
    wanted["num_person"] = person_slots(config, clips)
    wanted["backend"] = backend
    model = Recognizer(**wanted)
    if config.model.checkpoint is not None:
        start = load_checkpoint(config.model.checkpoint, backend=backend, num_classes=wanted["num_classes"])
        check_network(model.hparams, start.hparams, config.model.checkpoint)
        start.backbone.memory, start.backbone.skip_absent = config.model.memory, config.model.skip_absent
        return start.train()
    return model


def check_network(wanted: Mapping[str, Any], found: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError unless a checkpoint's network has the sizes that are wanted; None is no wish."""
    for key in ("layout", "in_channels", "base_channels", "num_gcn_scales", "num_g3d_scales", "num_person"):
        if wanted[key] is not None and found[key] != wanted[key]:
            theirs, ours = (
                f"{value['name']} with {value['num_node']} joints" if isinstance(value, dict) else value
                for value in (found[key], wanted[key])
            )
            raise UserError(
                f"checkpoint {path}: its network has {key} {theirs}, model.{key} is {ours}; set --model.{key} to the "
                "checkpoint's, or choose another checkpoint"
            )


def make_pipeline(
    config: Config,
    clips: data.ClipSet,
    split: str | None,
    num_person: int,
    *,
    training: bool = False,
    num_clips: int = 1,
) -> data.Pipeline:
    """Batches of a split: randomly sampled and augmented for training, upstream's fixed frames otherwise."""
    d = config.data
    return data.Pipeline(
        clips if split is None else clips.subset(split),
        stream=d.stream,
        clip_len=d.clip_len,
        num_clips=num_clips,
        num_person=num_person,
        test_mode=not training,
        semantics=d.semantics,
        normalize=d.normalize,
        augment=data.Augment(**asdict(d.augment)) if training else None,
        seed=config.seed,
    )


@dataclass(frozen=True)
class Trained:
    """A trained network and what its run folder says about it.

    Args:
        model: in eval mode.
        checkpoint: the file of its weights.
        config: the run's settings; None where the checkpoint lies in no run folder.
        label_names: of the classes, as the run's test wrote them, or ().
    """

    model: Recognizer
    checkpoint: Path
    config: Config | None = None
    label_names: tuple[str, ...] = ()


def load_trained(path: str | Path, *, device: str | torch.device = "cpu", backend: str | None = None) -> Trained:
    """The network of a run folder, or of a checkpoint: ours in a run folder, or any that `load_checkpoint` reads.

    Args:
        path: of the folder, whose `test.checkpoint` is taken, or of the file.
        device: where the network goes.
        backend: as for `Recognizer`.

    Raises:
        UserError: neither a run folder nor a checkpoint.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = load_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    if path.is_dir():
        if config is None:
            raise UserError(f"{path}: holds no config.yaml, so it is no run folder; give one, or a checkpoint")
        path = folder / f"{config.test.checkpoint}.ckpt"
    model = load_checkpoint(path, device=device, backend=backend)
    names: tuple[str, ...] = ()
    if config is not None and (folder / "scores.npz").is_file():
        names = read_scores(folder).label_names
    return Trained(model, path, config, names if len(names) == model.hparams["num_classes"] else ())
