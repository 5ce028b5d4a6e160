"""Configurations: documented defaults, YAML files that hold differences only, and `--a.b=value` overrides.

The defaults below are MMAction2's recipe for MS-G3D. `load_config(name or file, overrides)` lays a file over them and
the overrides over the file; every key and value is checked against the dataclasses, so that a misspelt key or a wrong
type ends in one line that names it.
"""
# ruff: noqa: RUF009 (option() returns a dataclass field)

import contextlib
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import UserError

PACKAGED = Path(__file__).parent / "configs"


def option(default: Any, doc: str, *, at_least: float | None = None, at_most: float | None = None) -> Any:
    """A dataclass field with its one-line documentation and the range of its values."""
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    layout: str | dict[str, Any] | None = option(None, "skeleton: a registered name or a mapping; null: the data's")
    num_classes: int | None = option(None, "null: the data's", at_least=1)
    in_channels: int | None = option(None, "null: the data's", at_least=1)
    num_person: int | None = option(
        2, "person slots; null: the most that a clip of the data holds, at most 2", at_least=1
    )
    base_channels: int = option(96, "width of stage 1; stages 2 and 3 have twice and four times as many", at_least=6)
    num_gcn_scales: int = option(13, "scales of the factorised path", at_least=1, at_most=64)
    num_g3d_scales: int = option(6, "scales of the unified path", at_least=1, at_most=64)
    tcn_dropout: float = option(0.0, "dropout after each stage", at_least=0, at_most=1)
    head_dropout: float = option(0.0, "dropout before the classifier", at_least=0, at_most=1)
    flavour: Literal["mmaction2", "pyskl", "original"] = option("mmaction2", "whose network and initialisation")
    backend: str | None = option(None, "native or reference; null: $MSG3D_BACKEND, else native")
    memory: Literal["fast", "low"] = option("fast", "low: keep half as much for the backward pass, compute more")
    skip_absent: bool = option(True, "compute persons who are absent from a whole clip once for each slot")
    checkpoint: str | None = option(None, "start from the weights of this file")


@dataclass
class AugmentConfig:
    rotate: float = option(0.0, "largest angle, radians: about every axis in 3-D, in the image in 2-D", at_least=0)
    scale: float = option(0.0, "largest relative change of each coordinate", at_least=0, at_most=1)
    noise: float = option(0.0, "standard deviation, as a part of the diagonal of the skeleton's box", at_least=0)
    flip: float = option(0.0, "probability of mirroring", at_least=0, at_most=1)
    crop: float = option(1.0, "smallest part of a sample that a training clip is drawn from", at_least=0, at_most=1)


@dataclass
class DataConfig:
    path: str | None = option(None, "annotation .pkl, ragged .npz, store folder, or embedded | synthetic")
    train_split: str | None = option("train", "name of the split to train on; null: every clip")
    val_split: str | None = option("val", "split validated after each epoch; null: none")
    test_split: str | None = option("val", "split of the final test; null: every clip")
    stream: Literal["j", "b", "jm", "bm"] = option("j", "joint, bone, joint motion or bone motion")
    clip_len: int = option(100, "frames sampled from each clip", at_least=1, at_most=10**6)
    normalize: Literal["auto", "2d", "3d", "center", "box", "none"] = option(
        "auto", "by image size, body axes, body centre alone or clip box; auto: what the data allow"
    )
    semantics: Literal["mmaction2", "pyskl", "original"] = option(
        "mmaction2", "whose normalisation where upstreams differ; original: whole clips, padded to clip_len"
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    epochs: int = option(16, "epochs; an epoch passes `repeat` times over the data", at_least=1)
    repeat: int = option(5, "passes over the data per epoch", at_least=1)
    batch_size: int = option(128, "clips per optimizer step, over all processes", at_least=1)
    micro_batch: int = option(
        16, "most clips per forward pass of a process; batch statistics are taken over it", at_least=1
    )
    drop_last: bool = option(False, "leave out the last step of an epoch where its batch is not full")
    optimizer: Literal["sgd", "adam", "adamw"] = option("sgd", "sgd with Nesterov momentum, adam or adamw")
    lr: float = option(0.1, "learning rate before the first step, or after the warm-up", at_least=0)
    lr_batch: int | None = option(
        None, "batch size that lr is meant for: another one scales it; null: as it is", at_least=1
    )
    schedule: Literal["cosine", "step"] = option("cosine", "cosine: falls to 0 step by step; step: by milestones")
    milestones: list[int] = option([], "epochs at which the step schedule multiplies the rate by gamma", at_least=1)
    gamma: float = option(0.1, "factor of the step schedule", at_least=0)
    warmup_epochs: float = option(0.0, "epochs in which the rate rises linearly", at_least=0)
    momentum: float = option(0.9, "of sgd; the first beta of adam and adamw", at_least=0, at_most=1)
    weight_decay: float = option(5e-4, "on all parameters", at_least=0)
    clip_grad: float | None = option(None, "largest norm of the gradient; null: any", at_least=1e-6)
    loss: Literal["auto", "cross_entropy", "bce", "focal"] = option(
        "auto", "auto: cross_entropy, or bce where clips have several labels"
    )
    label_smoothing: float = option(0.0, "share of the label spread over all classes", at_least=0, at_most=1)
    class_weights: str | list[float] | None = option(
        None, "of the loss: balanced, effective (class-balanced loss) or a number for each class"
    )
    focal_gamma: float = option(2.0, "exponent of the focal loss", at_least=0)
    class_prob: str | list[float] | dict[int, float] | None = option(
        None, "times a pass takes the clips of a class: balanced, a number for each, or {class: number}"
    )
    freeze: int = option(
        0, "stages of the backbone that keep weights and statistics, counted from the input", at_least=0, at_most=3
    )
    ema: float = option(0.0, "decay of the average of the weights that is tested and saved; 0: none", at_least=0)
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "bf16, fp16: automatic mixed precision")
    sync_bn: bool = option(False, "batch statistics over all processes instead of each one's own")
    compile: bool = option(
        False, "torch.compile the network; native steps stay as they are, absent persons are computed like the others"
    )
    save_every: int = option(500, "optimizer steps between saves of last.ckpt within an epoch", at_least=1)


@dataclass
class TestConfig:
    num_clips: int = option(
        10, "clips sampled from each sample; their probabilities are averaged", at_least=1, at_most=10**4
    )
    batch_size: int = option(32, "clips per forward pass", at_least=1)
    average: Literal["prob", "score"] = option("prob", "mean of the probabilities, or softmax of the mean logits")
    checkpoint: Literal["last", "best"] = option("last", "which of the run's checkpoints; best was chosen on val_split")


@dataclass
class Config:
    name: str = option("", "name of the run folder; empty: the configuration's, and the stream if overridden")
    seed: int = option(0, "of initialisation, sample order and augmentation", at_least=0, at_most=2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    deterministic: bool = option(False, "on CUDA, only algorithms that repeat bit for bit; on the CPU they always do")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def to_yaml(self) -> str:
        """Every value as YAML that `load_config` reads back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def packaged_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_config(name_or_file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Defaults, then the named configuration, then the overrides.

    Args:
        name_or_file: a packaged name, or a YAML file.
        overrides: "a.b=value" strings, with or without leading dashes; values are YAML.

    Raises:
        UserError: unknown name, key or value, in one line.
    """
    path = _find(str(name_or_file))
    config = Config()
    _fill(config, _read(path), prefix="", origin=path.name)
    stream = config.data.stream
    for override in overrides:
        key, equals, text = override.lstrip("-").partition("=")
        if not equals:
            raise UserError(
                f"override {override!r}: no value found; expected --section.key=value, as in --train.epochs=2"
            )
        _set(config, key, _parse(text, key), origin="command line")
    if not config.name:
        config.name = path.stem + ("" if config.data.stream == stream else f"_{config.data.stream}")
    return config


def describe() -> str:
    """Every key with its default and its documentation, one a line."""
    lines = []

    def visit(section: Any, prefix: str) -> None:
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            if dataclasses.is_dataclass(value):
                visit(value, f"{prefix}{f.name}.")
            else:
                default = "null" if value is None else repr(value) if value == "" else str(value)
                lines.append(f"  --{prefix}{f.name}={default}".ljust(34) + f"  {f.metadata['doc']}")

    visit(Config(), "")
    return "\n".join(lines)


def suggest(word: str, known: list[str]) -> str:
    """What to do about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def _find(name_or_file: str) -> Path:
    path = Path(name_or_file)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(
                f"configuration file {name_or_file}: not found; give a file or one of {', '.join(packaged_names())}"
            )
        return path
    packaged = PACKAGED / f"{name_or_file}.yaml"
    if name_or_file not in packaged_names():
        raise UserError(
            f"configuration {name_or_file!r}: unknown; {suggest(name_or_file, packaged_names())}; or give a .yaml file"
        )
    return packaged


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: the 30th of February
        raise UserError(f"configuration {path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(
            f"configuration {path}: found a {type(content).__name__}, expected sections such as 'train:' with keys"
        )
    return content or {}


def _parse(text: str, key: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--{key}={text:.80}: not a YAML value; put it in quotes") from error


def _fill(section: Any, values: dict[Any, Any], prefix: str, origin: str) -> None:
    for key, value in values.items():
        _set(section, str(key), value, origin, prefix)


def _set(section: Any, key: str, value: Any, origin: str, prefix: str = "") -> None:
    head, _, rest = key.partition(".")
    hints = typing.get_type_hints(type(section))
    if head not in hints:
        raise UserError(f"{origin}: unknown key {prefix + head!r}; {suggest(head, list(hints))}")
    child = getattr(section, head)
    if dataclasses.is_dataclass(child):
        if rest:
            _set(child, rest, value, origin, f"{prefix}{head}.")
        elif isinstance(value, dict):
            _fill(child, value, f"{prefix}{head}.", origin)
        else:
            raise UserError(
                f"{origin}: {prefix + head} is {value!r}, expected a section with the keys {', '.join(vars(child))}"
            )
        return
    if rest:
        raise UserError(f"{origin}: unknown key {prefix + key!r}; {prefix + head} is a value and has no keys below it")
    info = next(f for f in dataclasses.fields(section) if f.name == head).metadata
    setattr(section, head, _checked(value, hints[head], f"{origin}: {prefix + head}", info))


def _checked(value: Any, hint: Any, what: str, info: Any) -> Any:
    """`value` as the annotated type, or a UserError that names key, value and expectation."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{what} is {value!r}; {suggest(str(value), list(choices))}")
        return value
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in hints)
    if isinstance(value, int | str) and not isinstance(value, bool) and float in kinds and str not in kinds:
        with contextlib.suppress(ValueError):
            value = float(str(value))  # YAML 1.1 reads 1e-4, which has no dot, as a string
    if isinstance(value, int | float) and not isinstance(value, bool) and kinds[0] is str:
        value = str(value)
    if type(value) not in kinds:
        names = {
            type(None): "null",
            dict: "a mapping",
            list: "a list",
            int: "a whole number",
            float: "a number",
            str: "text",
            bool: "true or false",
        }
        raise UserError(f"{what} is {value!r}, expected {' or '.join(names[kind] for kind in kinds)}")
    if isinstance(value, list):
        (element,) = typing.get_args(hints[kinds.index(list)])
        return [_checked(one, element, f"{what}[{i}]", info) for i, one in enumerate(value)]
    if isinstance(value, int | float):
        low, high = info["at_least"], info["at_most"]
        if (
            value in (inf, -inf)
            or value != value
            or (low is not None and value < low)
            or (high is not None and value > high)
        ):
            bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
            raise UserError(f"{what} is {value!r}, expected {' and '.join(bounds) or 'a finite number'}")
    return value
