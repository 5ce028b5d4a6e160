"""How poses become the input of a network, and what its outputs are called: what a checkpoint keeps for prediction."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from .config import Config
from .data import ClipSet, Pipeline
from .data.layouts import third_channel
from .data.normalize import DEFAULT_IMG_SHAPE
from .errors import UserError
from .model import Recognizer

SETTINGS = {  # of a configuration, by the field here that they are
    "stream": "data.stream",
    "clip_len": "data.clip_len",
    "normalize": "data.normalize",
    "semantics": "data.semantics",
    "num_clips": "test.num_clips",
    "average": "test.average",
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Everything between raw poses and named probabilities that is not in the weights.

    Args:
        channels: "xy", "xys" (with confidence) or "xyz".
        label_names: of the classes.
        several: whether a clip may have several classes.
        stream, clip_len, normalize, semantics: as of `data.Pipeline`.
        num_clips, average: clips sampled from each sample, and how they are averaged; as in a test.
        dtype: float type of the poses that the network was trained on: others are rounded to it, as `prepare` does.
        img_shape: (h, w) that stands for a clip's image size where the training's clips did not say theirs.
    """

    channels: str
    label_names: tuple[str, ...]
    several: bool = False
    stream: str = "j"
    clip_len: int = 100
    normalize: str = "auto"
    semantics: str = "mmaction2"
    num_clips: int = 10
    average: str = "prob"
    dtype: str = "float32"
    img_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, choices in (("average", ("prob", "score")), ("dtype", ("float16", "float32", "float64"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")

    def plain(self) -> dict[str, Any]:
        """The fields as a checkpoint and JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def pipeline(self, clips: ClipSet, num_person: int) -> Pipeline:
        """Input of the network from clips, as a test makes it.

        Raises:
            UserError: other channels than the training's, no image size, or what `Pipeline` raises.
        """
        if clips.channels != self.channels:
            raise UserError(
                f"{clips.name}: has the channels {clips.channels}, the network was trained on {self.channels}; give "
                "such poses, or name the channels if the files do not tell them"
            )
        if self.normalize == "2d" and clips.img_shape is None:
            if self.img_shape is None:
                raise UserError(
                    f"{clips.name}: does not say the size of the images, by which this network's poses are normalised; "
                    "give it as height and width in pixels (--img-shape H W)"
                )
            clips = replace(clips, img_shape=np.tile(self.img_shape, (len(clips), 1)))
        return Pipeline(
            clips,
            stream=self.stream,
            clip_len=self.clip_len,
            num_clips=self.num_clips,
            num_person=num_person,
            test_mode=True,
            semantics=self.semantics,
            normalize=self.normalize,
        )


def of_training(config: Config, test: Pipeline, num_classes: int) -> Preprocessing:
    """What a network that is trained on these data needs to be told, later, about other poses."""
    clips, normalize = test.clipset, test.normalize
    names = clips.label_names[:num_classes]
    return Preprocessing(
        channels=clips.channels,
        label_names=(*names, *map(str, range(len(names), num_classes))),
        several=clips.multi_label,
        stream=config.data.stream,
        clip_len=config.data.clip_len,
        normalize=normalize,
        semantics=config.data.semantics,
        num_clips=config.test.num_clips,
        average=config.test.average,
        dtype=clips.keypoint.dtype.newbyteorder("=").name,
        img_shape=DEFAULT_IMG_SHAPE if normalize == "2d" and clips.img_shape is None else None,
    )


def of_model(model: Recognizer) -> Preprocessing:
    """What the checkpoint said; for a network of an upstream, its published recipe; else what can be assumed.

    Raises:
        UserError: the checkpoint says something that no training writes.
    """
    told = model.preprocessing
    if told is not None:
        return _checked(told)
    flavour = model.hparams["flavour"]
    channels = third_channel(model.layout, model.hparams["in_channels"])
    names = tuple(map(str, range(model.hparams["num_classes"])))
    found = Preprocessing(channels=channels, label_names=names, semantics=flavour)
    if flavour == "original":  # Kinetics-Skeleton, which they train on in 2-D, comes normalised
        return replace(found, clip_len=300, num_clips=1, normalize="3d" if channels == "xyz" else "none")
    if model.source in ("mmaction2", "pyskl"):  # their annotation files hold float16
        return replace(found, normalize="3d" if channels == "xyz" else "2d", dtype="float16")
    return found


def with_settings(found: Preprocessing, config: Config, names: tuple[str, ...]) -> Preprocessing:
    """The same with these fields as a configuration has them."""
    changes = {}
    for name in names:
        section, _, key = SETTINGS[name].partition(".")
        changes[name] = getattr(getattr(config, section), key)
    return replace(found, **changes)


def _checked(told: Mapping[str, Any]) -> Preprocessing:
    known = {field.name for field in fields(Preprocessing)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items() if key in known}
    try:
        found = Preprocessing(**values)
        default = Preprocessing(channels="xy", label_names=("",), img_shape=None)
        kinds = {key: type(value) for key, value in asdict(default).items()} | {"img_shape": (tuple, type(None))}
        wrong = next((key for key, kind in kinds.items() if not isinstance(getattr(found, key), kind)), None)
    except TypeError as error:
        wrong = str(error)
    if wrong is not None:
        raise UserError(f"the checkpoint's preprocessing is damaged ({wrong}: {json.dumps(told, default=str):.60})")
    return found
