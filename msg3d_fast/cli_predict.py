"""The verb `predict`: its options, and what becomes of them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .config import Config, load_config
from .errors import UserError

_SHOWN = 10  # skipped files that are named
_SETTINGS = """settings of the network's input, where they are not to be the checkpoint's:
  --data.stream=j --data.clip_len=100 --data.normalize=auto --data.semantics=mmaction2
  --test.num_clips=10 --test.average=prob --test.batch_size=32 --device=auto --model.backend=native
Windows are sampled once each unless --test.num_clips says otherwise. Frames count from 0; `end` is the last one."""
_OWN = ("test.batch_size", "device", "model.backend")  # of the predictor, not of its preprocessing


def add_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `predict` to the command line's verbs."""
    command = verb(
        "predict",
        _predict,
        "Predict the classes of new poses, of whole clips or of windows that slide over long ones; no labels needed.",
        "msg3d-fast predict openpose_out/ --run-dir runs/mine --window 64 --step 16 --out actions.json\n"
        "  msg3d-fast predict clips.npz --checkpoint ntu60.pth --config ntu60_xsub_2d --names label_map_ntu60.txt\n"
        "  msg3d-fast predict video.mp4 --run-dir runs/mine --window 64 --per-person",
        _SETTINGS,
    )
    command.add_argument("source", help="pose files of any format that prepare reads, a store, an .npz or a video")
    command.add_argument("--run-dir", metavar="DIR", help="run folder of the network")
    command.add_argument("--checkpoint", metavar="FILE", help="or its checkpoint, any upstream's or ours")
    command.add_argument("--config", metavar="NAME|FILE", help="take the input's settings from this configuration")
    command.add_argument("--names", metavar="FILE", help="names of the classes, one a line, where they are not known")
    command.add_argument("--window", type=int, metavar="FRAMES", help="a timeline: slide windows of so many frames")
    command.add_argument("--step", type=int, metavar="FRAMES", help="from window to window; default: half a window")
    command.add_argument("--per-person", action="store_true", help="every person by themself")
    command.add_argument("--top", type=int, default=5, metavar="K", help="classes named of a whole clip; default: 5")
    command.add_argument("--out", metavar="FILE", help="write all of it to a .json or .csv file")
    command.add_argument("--format", metavar="NAME", help="of the pose files, where they do not tell it")
    command.add_argument("--layout", metavar="NAME", help="their skeleton, where they do not tell it")
    command.add_argument("--channels", choices=("xy", "xys", "xyz"), help="where they do not tell them")
    command.add_argument("--table", metavar="YAML", help="how tables of your own are laid out, as for prepare")
    command.add_argument("--img-shape", nargs=2, type=int, metavar=("H", "W"), help="size of the images in pixels")
    command.add_argument("--max-person", type=int, metavar="M", help="persons followed in a clip; default: 2, or 10")
    command.set_defaults(config=None)


def _predict(options: argparse.Namespace) -> None:
    from . import predictions
    from .predict import Predictor
    from .progress import Progress

    _check(options)
    out = None if options.out is None else predictions.check_out(Path(options.out))
    named, own = _changes(options)
    network = options.checkpoint or options.run_dir
    predictor = Predictor(network, device=own.device, backend=own.model.backend, batch_size=own.test.batch_size)
    if options.window is not None and "num_clips" not in named:
        named["num_clips"] = 1
    if options.names is not None:
        named["label_names"] = _names(options.names, len(predictor.label_names))
    predictor.preprocessing = replace(predictor.preprocessing, **named)
    source = _source(options, predictor)
    print(_describe(predictor, network), flush=True)
    with Progress(f"predicting {options.source}", len(source)) as bar:

        def frame(total: int) -> None:
            bar.total = max(total, bar.done + 1) + len(source)
            bar.advance()

        source.progress = frame
        found = predictions.predict(
            predictor,
            source,
            window=options.window,
            step=options.step,
            top=options.top,
            per_person=options.per_person,
            progress=bar.advance,
        )
    timeline = options.window is not None
    for name, reason in source.skipped[:_SHOWN]:
        print(f"skipped {name}: {reason}")
    if len(source.skipped) > _SHOWN:
        print(f"skipped {len(source.skipped)} in all")
    if source.missing:
        print(f"{source.missing} joints held NaN or infinity and count as missing")
    slots = predictor.num_person
    if crowded := sum(one.persons > slots for one in found):
        print(f"{crowded} clips have more persons than the {slots} of the network: --per-person looks at every one")
    if out is None:
        print(predictions.table(found, timeline, source.fps))
        return
    about = {"source": str(options.source), "network": str(network), "label_names": list(predictor.label_names)}
    predictions.write(found, out, timeline=timeline, about=about, fps=source.fps)
    what = f"{sum(len(one.segments) for one in found)} segments of " if timeline else ""
    print(f"wrote {out}: {what}{len(found)} {'persons' if options.per_person else 'clips'}")


def _check(options: argparse.Namespace) -> None:
    if (options.run_dir is None) == (options.checkpoint is None):
        raise UserError("predict: which network? give --run-dir DIR or --checkpoint FILE, one of them")
    for name in ("window", "step", "top", "max_person"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")
    if options.step is not None and options.window is None:
        raise UserError(f"--step {options.step} goes with --window FRAMES; give both, or leave it out")


def _changes(options: argparse.Namespace) -> tuple[dict[str, Any], Config]:
    """Changes to the checkpoint's preprocessing, and the configuration with the settings of the predictor itself."""
    from .preprocessing import SETTINGS

    fields = {setting: name for name, setting in SETTINGS.items()}
    given = [override.lstrip("-").partition("=")[0] for override in options.overrides]
    if foreign := [key for key in given if key not in fields and key not in _OWN]:
        raise UserError(f"predict: --{foreign[0]} does not apply; expected {', '.join('--' + f for f in fields)}")
    config = load_config(options.config or "custom", options.overrides)
    wanted = fields if options.config else [key for key in given if key in fields]
    named: dict[str, Any] = {}
    for setting in wanted:
        section, _, key = setting.partition(".")
        named[fields[setting]] = getattr(getattr(config, section), key)
    return named, config


def _names(path: str, classes: int) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); give a text with the name of a class a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != classes:
        raise UserError(f"{path}: names {len(names)} classes, the network has {classes}; give a line for each")
    return names


def _source(options: argparse.Namespace, predictor: Any) -> Any:
    from .data.poses import PoseSource
    from .data.readers import Options
    from .data.video import VideoSource, is_video
    from .graph import get_layout

    most = options.max_person or (10 if options.per_person else None)
    given = Options(
        layout=None if options.layout is None else get_layout(options.layout),
        channels=options.channels,
        table=None if options.table is None else Path(options.table),
        max_person=most,
        img_shape=None if options.img_shape is None else tuple(options.img_shape),
    )
    p = predictor.preprocessing
    if is_video(options.source):
        return VideoSource(options.source, predictor.layout, p.channels, max_person=most or 2)
    return PoseSource(options.source, predictor.layout, p.channels, format=options.format, options=given, dtype=p.dtype)


def _describe(predictor: Any, network: str) -> str:
    p = predictor.preprocessing
    clips = f"{p.num_clips} clip{'s' * (p.num_clips > 1)} of {p.clip_len} frames"
    skeleton = f"{predictor.layout.name} ({p.channels})"
    return f"{network}: {len(p.label_names)} classes, {skeleton}, stream {p.stream}, {clips}"
