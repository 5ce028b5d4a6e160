"""The command line's verbs for a network that is there: their options, and what they print."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .model import Recognizer


def add_verbs(verb: Any) -> None:
    """Gives the command line these verbs; `verb` adds one and returns its parser."""
    command = verb(
        "export",
        _export,
        "Write a trained network as .onnx or .pt2 for other runtimes, checked against the model before it appears.",
        "msg3d-fast export runs/quickstart quickstart.onnx",
    )
    command.add_argument("source", metavar="RUN|CHECKPOINT", help="run folder, or any checkpoint, upstream's or ours")
    command.add_argument("destination", metavar="FILE", help="ends in .onnx or .pt2")

    command = verb(
        "flops",
        _flops,
        "Parameters and multiply-adds of a network, layer by layer, as published and in the order that runs here.",
        "msg3d-fast flops --config ntu60_xsub_2d --model.base_channels=48",
    )
    _add_network(command)

    command = verb(
        "bench",
        _bench,
        "Time a network on this machine, inference and a training step, beside plain PyTorch.",
        "msg3d-fast bench --config ntu60_xsub_2d",
    )
    _add_network(command)
    command.add_argument("--clips", type=int, default=1, metavar="N", help="of a call; default: 1")
    command.add_argument("--rounds", type=int, default=10, metavar="N", help="in which all take turns; default: 10")

    command = verb(
        "view",
        _view,
        "Write clips of a data set as animations, with their class and what a run took them for.",
        "msg3d-fast view embedded MilitarySalute_body_f0016 --run-dir runs/quickstart",
    )
    command.add_argument("data", metavar="DATA", help="what --data.path takes")
    command.add_argument("ids", nargs="+", metavar="ID", help="of clips; worst_clips.csv of a run names some")
    command.add_argument("--run-dir", metavar="DIR", help="run whose test is quoted")
    command.add_argument("--out", default=".", metavar="DIR", help="folder of the files ID.gif; default: this one")
    command.add_argument("--fps", type=float, default=15.0, metavar="F", help="frames per second; default: 15")

    _add_checkpoint(
        verb("checkpoint", None, "Look at a checkpoint, or convert it.", "msg3d-fast checkpoint info best.ckpt")
    )


def _export(options: argparse.Namespace) -> None:
    from . import export
    from .experiment import load_trained

    destination = Path(options.destination)
    if destination.suffix == ".onnx":
        export.require_packages()
    trained = load_trained(options.source, backend="reference")
    metadata = export.describe(trained)
    frames = int(metadata.get("clip_len", 100))
    print(f"exporting {trained.checkpoint}; about half a minute", flush=True)
    error = export.export_model(trained.model, destination, frames=frames, metadata=metadata)
    shape = f"(N, {metadata['num_person']}, T, {trained.model.layout.num_joints}, {metadata['in_channels']})"
    print(
        f"wrote {destination}: clips {shape} -> logits (N, {metadata['num_classes']}), "
        f"{destination.stat().st_size / 1e6:.1f} MB; on random poses within {error:.0e} of the float64 model"
    )


def _add_network(command: Any) -> None:
    command.add_argument("source", nargs="?", metavar="RUN|CHECKPOINT", help="run folder or checkpoint")
    command.add_argument("--config", metavar="NAME|FILE", help="a configuration's network instead; takes overrides")
    command.add_argument("--frames", type=int, metavar="T", help="of the clip; default: the run's clip_len, or 100")


def _network(options: argparse.Namespace) -> "tuple[Recognizer, int]":
    """The network that the options name, and the frames of a clip; a configuration's has no weights."""
    from . import flops
    from .config import load_config
    from .experiment import load_trained

    verb = options.verb
    if (options.source is None) == (options.config is None):
        raise UserError(f"{verb}: give a run folder, a checkpoint or --config NAME; leave one out if there are two")
    if options.source is not None and options.overrides:
        raise UserError(f"{verb}: {options.overrides[0]} changes a configuration; give it with --config")
    if options.source is None:
        config = load_config(options.config, options.overrides)
        model = flops.network(config)
    else:
        trained = load_trained(options.source, backend="reference")
        model, config = trained.model, trained.config
    return model, options.frames if options.frames is not None else 100 if config is None else config.data.clip_len


def _flops(options: argparse.Namespace) -> None:
    from . import flops

    model, frames = _network(options)
    h = model.hparams
    clip = (1, h["num_person"], frames, model.layout.num_joints, h["in_channels"])
    print(f"one clip {clip}; millions of multiply-adds, of which each is two FLOPs\n")
    print(flops.table(flops.count(model, frames)))


def _bench(options: argparse.Namespace) -> None:
    from . import bench

    model, frames = _network(options)
    warning = bench.busy()
    found = bench.compare(model, clips=options.clips, frames=frames, rounds=options.rounds)
    print(f"{bench.machine()}; {options.clips} clip(s) of {frames} frames, medians of {options.rounds} rounds\n")
    print(bench.table(found))
    if warning:
        print(warning, file=sys.stderr)


def _view(options: argparse.Namespace) -> None:
    from .view import view

    files = view(options.data, options.ids, options.out, run=options.run_dir, fps=options.fps)
    print(f"wrote {', '.join(map(str, files))}")


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    verbs = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = verbs.add_parser("info", help="what a file holds", epilog="example:\n  msg3d-fast checkpoint info best.ckpt")
    info.add_argument("file")
    info.add_argument("--layout", metavar="NAME", help="skeleton, where the file does not tell it")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(call=_checkpoint_info)
    convert = verbs.add_parser(
        "convert",
        help="write it in another format",
        epilog="example:\n  msg3d-fast checkpoint convert ntu60.pth ntu60.ckpt\n"
        "  msg3d-fast checkpoint convert runs/mine/best.ckpt mine.pth --format mmaction2\n"
        "  msg3d-fast checkpoint convert runs/mine/best.ckpt mine.safetensors",
    )
    convert.add_argument("source")
    convert.add_argument("destination")
    convert.add_argument("--format", default="msg3d_fast", choices=("msg3d_fast", "mmaction2", "pyskl", "original"))
    convert.add_argument("--layout", metavar="NAME", help="skeleton, where the file does not tell it")
    convert.add_argument("--finetune", type=int, metavar="N", help="replace the classifier by a fresh one of N classes")
    convert.add_argument(
        "--optimizer",
        nargs="?",
        const="",
        metavar="FILE",
        help="take the optimizer state along, from the source or from FILE (the authors' checkpoints/checkpoint-*.pt)",
    )
    convert.add_argument("--publish", action="store_true", help="end its name in 8 digits of its sha256, as MMAction2")
    convert.set_defaults(call=_checkpoint_convert)


def _checkpoint_info(options: argparse.Namespace) -> None:
    import json

    from .checkpoint import describe_file

    found = describe_file(options.file, layout=options.layout)
    if options.json:
        print(json.dumps({"file": options.file, **found}, indent=2))
        return
    print(f"{options.file}: format {found['format']}, {found['parameters'] / 1e6:.2f} M parameters")
    for part in ("hparams", "about", "optimizer", "training"):
        for key, value in found.get(part, {}).items():
            print(f"  {'' if part == 'hparams' else part + ' '}{key}: {value}")


def _checkpoint_convert(options: argparse.Namespace) -> None:
    from .checkpoint import convert_file, publish_file

    if options.publish:
        if options.optimizer is not None:
            raise UserError("checkpoint convert: published weights have no optimizer state; leave out --optimizer")
        source, path = publish_file(
            options.source, options.destination, options.format, layout=options.layout, num_classes=options.finetune
        )
        print(f"wrote {path}: {options.format}, from {source}; optimizer state and history left out")
        return
    source = convert_file(
        options.source,
        options.destination,
        options.format,
        layout=options.layout,
        num_classes=options.finetune,
        optimizer=options.optimizer,
    )
    left_out = "" if options.optimizer is not None else "; optimizer state and history left out"
    print(f"wrote {options.destination}: {options.format}, from {source}{left_out}")
