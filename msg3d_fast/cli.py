"""The command line: verbs, their options, and what becomes of errors.

Exit status 0: done. 2: input or environment of the user, one line on stderr. 1: a fault of the package, with traceback.
"""

import argparse
import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import cli_models, cli_predict
from .config import Config, describe, load_config, packaged_names, suggest
from .errors import UserError

OVERRIDES = "--a.b=value"
# What a folder, a disk or a machine does not allow, wherever that shows itself; other errors of the system are ours.
NOT_ALLOWED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
}
NOT_ALLOWED |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}
GOES_ON = {"prepare": "what it has read"} | dict.fromkeys(("quickstart", "train", "reproduce"), "the last checkpoint")


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors: one line instead of the usage and a line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes that the terminal cannot show
    try:
        return _run(argv)
    except UserError as error:
        reason = str(error)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        place = GOES_ON.get(next(iter(argv), ""))
        without = " without --no-resume" if "--no-resume" in argv else ""
        hint = f"; the same command{without} goes on from {place}" if place else ""
        print(f"\nmsg3d-fast: interrupted{hint}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        reason = f"{error.filename or 'a file'}: {error.strerror}; give a path that may be read and written, with space"
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        reason = (
            f"out of memory: {str(error).splitlines()[0]:.160}; ask for less at once: a smaller train.micro_batch, "
            "test.batch_size or data.clip_len, --model.memory=low, fewer --workers"
        )
    print("msg3d-fast: " + " ".join(reason.split()), file=sys.stderr)
    return 2


def _out_of_memory(error: Exception) -> bool:
    """Python's and NumPy's error, torch's of a GPU, and of a CPU, for which torch has no type of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in ("DefaultCPUAllocator", "bad_alloc"))


def _run(argv: list[str]) -> int:
    parser, verbs = _parser()
    if not argv:
        parser.print_help()
        return 0
    if not argv[0].startswith("-") and argv[0] not in verbs:
        raise UserError(f"verb {argv[0]!r}: unknown; {suggest(argv[0], list(verbs))}")
    options, rest = parser.parse_known_args(argv)
    if rest and "config" not in options:
        raise UserError(f"{options.verb}: unknown argument {rest[0]!r}; see msg3d-fast {options.verb} --help")
    for argument in rest:
        if not argument.startswith("--") or "=" not in argument:
            hint = f"{argument}=value" if argument.startswith("--") else "settings look like --train.epochs=2"
            raise UserError(
                f"{options.verb}: unknown argument {argument!r}; {hint}; see msg3d-fast {options.verb} --help"
            )
    options.overrides = rest
    options.call(options)
    return 0


def _parser() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    from . import __version__

    parser = _Parser(
        prog="msg3d-fast",
        description="MS-G3D for skeleton action recognition: train, test, prepare data, look at checkpoints.",
        epilog="example: msg3d-fast quickstart",
    )
    parser.add_argument("--version", action="version", version=f"msg3d_fast {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    settings = (
        f"settings ({OVERRIDES}, with their defaults):\n{describe()}\n\nconfigurations: {', '.join(packaged_names())}"
    )

    def verb(name: str, call: Any, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
        usage = None if not more else f"msg3d-fast {name} [options] [{OVERRIDES} ...]"
        epilog = f"example:\n  {example}" + (f"\n\n{more}" if more else "")
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, usage=usage)
        command.set_defaults(call=call)
        return command

    command = verb(
        "quickstart",
        _quickstart,
        "Train and test on the embedded poses; a second call goes on from what is there.",
        "msg3d-fast quickstart",
        settings,
    )
    command.set_defaults(config="quickstart", no_resume=False)
    _run_dir(command)
    command = verb(
        "train",
        _train,
        "Train, then test; goes on from the run folder's last checkpoint if there is one.",
        "msg3d-fast train --config ntu60_xsub_2d --data.path=ntu60_2d.pkl --data.stream=b",
        settings,
    )
    command.add_argument("--config", required=True, metavar="NAME|FILE", help="packaged configuration or YAML file")
    command.add_argument("--no-resume", action="store_true", help="start over, replacing what the run folder holds")
    command.add_argument("--streams", metavar="j,b,jm,bm", help="train each of these streams, then fuse them")
    _run_dir(command)
    command = verb(
        "test",
        _test,
        "Test a checkpoint: metrics, scores by id, confusion matrix, per-class table, worst clips in the run folder.",
        "msg3d-fast test --run-dir runs/quickstart --test.num_clips=1",
        settings,
    )
    command.add_argument("--config", metavar="NAME|FILE", help="default: config.yaml of the run folder")
    command.add_argument("--checkpoint", metavar="FILE", help="any upstream's or ours; default: the run folder's")
    command.add_argument("--features", action="store_true", help="write each sample's pooled features: features.npz")
    _run_dir(command)
    cli_predict.add_verb(verb)
    command = verb(
        "ensemble",
        _ensemble,
        "Fuse the scores of several streams or runs, joined by sample id, and report as a test does.",
        "msg3d-fast ensemble runs/j runs/b runs/jm runs/bm --out runs/four",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="scores.npz, run folder, or an upstream's pickle")
    command.add_argument("--weights", nargs="+", type=float, metavar="W", help="default: equal; 2 2 1 1 for four")
    command.add_argument(
        "--tune", nargs="+", default=[], metavar="FILE", help="search the weights on these scores of a validation split"
    )
    command.add_argument("--average", default="prob", choices=("prob", "score"), help="add probabilities, or logits")
    command.add_argument("--data", metavar="FILE", help="data set with the ids and labels that upstreams' files lack")
    command.add_argument("--split", metavar="NAME", help="split of it that was tested")
    command.add_argument("--out", default="runs/ensemble", metavar="DIR", help="default: runs/ensemble")
    command = verb(
        "reproduce",
        _reproduce,
        "Check the data of a recipe, run it with every stream and seed, and set the result beside the published one.",
        "msg3d-fast reproduce ntu60_xsub_3d --data ntu60_3d.pkl --seeds 0 1 2",
        settings,
    )
    command.add_argument("recipe", metavar="NAME", help="an unknown name lists the known ones")
    command.add_argument("--data", metavar="FILE", help="the data set; default: where the configuration looks for it")
    command.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="default: 0")
    command.add_argument("--streams", nargs="+", default=["j", "b", "jm", "bm"], metavar="S", help="default: j b jm bm")
    command.add_argument("--any-data", action="store_true", help="go on although the data are not the recipe's")
    command.add_argument("--commands", action="store_true", help="only print the single commands it stands for")
    command.add_argument("--out", metavar="DIR", help="default: runs/NAME")
    command.set_defaults(config=None)
    cli_models.add_verbs(verb)
    command = verb(
        "prepare",
        _prepare,
        "Check a data set and write it as a memory-mapped store, which training reads without loading it whole.",
        "msg3d-fast prepare nturgb+d_skeletons/ data/ntu60 --format ntu60 --missing missing_skeletons.txt\n"
        "  msg3d-fast prepare ntu60_2d.pkl data/ntu60_2d\n"
        "  msg3d-fast prepare --check data/ntu60",
    )
    _prepare_options(command)
    command = verb("doctor", _doctor, "Say what is installed, built and found.", "msg3d-fast doctor --plan")
    command.add_argument(
        "--plan", action="store_true", help="the native op's plan for every layer of the default network"
    )
    return parser, commands.choices


def _prepare_options(command: argparse.ArgumentParser) -> None:
    help_without_formats = command.format_help

    def format_help() -> str:  # the readers load torch: only on demand
        from .data.readers import FORMATS

        formats = "".join(f"\n  {one.name:<14}{one.title}" for one in FORMATS.values())
        also = "and stores, ragged .npz, embedded, synthetic"
        return f"{help_without_formats()}\nformats, told from the files ({also}):{formats}\n"

    command.format_help = format_help
    command.add_argument("source", nargs="?", help="file, zip or folder of a known format, or a store")
    command.add_argument("destination", nargs="?", help="folder of the new store")
    command.add_argument("--check", metavar="STORE", help="read every byte of a store against its checksums, no more")
    command.add_argument("--format", metavar="NAME", help="where the files do not tell it")
    command.add_argument("--layout", metavar="NAME", help="skeleton, where the files do not tell it")
    command.add_argument("--channels", choices=("xy", "xys", "xyz"), help="where the files do not tell them")
    command.add_argument("--dtype", default="float16", choices=("float16", "float32"), help="of the stored joints")
    command.add_argument(
        "--semantics",
        default="mmaction2",
        choices=("mmaction2", "pyskl", "original"),
        help="whose conversion of raw NTU RGB+D; default: %(default)s",
    )
    command.add_argument(
        "--missing", metavar="FILE", help="files to leave out, such as NTU's list of missing skeletons"
    )
    command.add_argument("--labels", metavar="CSV", help="id,label[,split] of clips whose files do not tell them")
    command.add_argument("--table", metavar="YAML", help="how tables of your own are laid out")
    command.add_argument("--skeletons", metavar="DIR", help="where the skeletons of an index such as k400_2d.pkl lie")
    command.add_argument("--valid-ratio", type=float, metavar="P", help="least part of frames with a box, of an index")
    command.add_argument("--box-thr", type=float, metavar="P", help="score from which a box counts; with a ratio: 0.5")
    command.add_argument("--max-person", type=int, metavar="M", help="most persons of a clip, the most confident ones")
    command.add_argument("--img-shape", type=int, nargs=2, metavar=("H", "W"), help="pixels, where files do not tell")
    command.add_argument("--workers", type=int, metavar="N", help="processes that read; default: one per processor")


def _run_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run-dir", metavar="DIR", help="run folder; default: runs/<name of the configuration>")


def _settings(options: argparse.Namespace) -> tuple[Config, Path]:
    name = options.config
    if name is None:
        if options.run_dir is None:
            raise UserError(f"{options.verb}: nothing to work on; give --run-dir, or --config with --checkpoint")
        name = Path(options.run_dir) / "config.yaml"
    config = load_config(name, options.overrides)
    return config, Path(options.run_dir or Path("runs") / config.name)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from . import distributed, training

    keep_freed_memory()
    if getattr(options, "streams", None):
        return _train_streams(options)
    config, folder = _settings(options)
    metrics = training.train(config, folder, resume=not options.no_resume)
    if distributed.rank() == 0:
        _say_metrics(metrics)
        print(f"wrote {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))}")
    distributed.stop()
    return metrics


def keep_freed_memory() -> None:
    """Lets glibc keep what one training step frees for the next, which else meets fresh pages: 3 to 4 % of its time."""
    c = ctypes.CDLL(None)
    if hasattr(c, "mallopt"):  # glibc; numbers as its malloc.h has them
        mmap_threshold, trim_threshold = -3, -1
        c.mallopt(mmap_threshold, 32 << 20)  # bytes, the most that it takes
        c.mallopt(trim_threshold, 2**31 - 1)


def _train_streams(options: argparse.Namespace) -> dict[str, Any]:
    from . import distributed
    from .multistream import parse_streams, train_streams

    streams = parse_streams(options.streams)
    config, _ = _settings(options)
    folder = Path(options.run_dir or Path("runs") / f"{config.name}_{'_'.join(streams)}")
    metrics = train_streams(options.config, options.overrides, streams, folder, resume=not options.no_resume)
    if distributed.rank() == 0:
        _say_fusion(metrics, folder)
    distributed.stop()
    return metrics


def _test(options: argparse.Namespace) -> None:
    from . import distributed, evaluation

    config, folder = _settings(options)
    metrics = evaluation.evaluate(config, folder, options.checkpoint, features=options.features)
    if distributed.rank() == 0:
        _say_metrics(metrics)
        print(f"wrote {folder}: {', '.join(sorted(p.name for p in folder.glob('[!.]*')))}")
    distributed.stop()


def _say_metrics(metrics: dict[str, Any]) -> None:
    size = f"{metrics['num_samples']} samples x {metrics['num_clips']} clips"
    print(f"test: {size}, {_accuracy(metrics)}, {metrics['seconds']:.1f} s")


def _accuracy(metrics: dict[str, Any]) -> str:
    names = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "mAP": "mAP", "mmit_mAP": "mAP per sample"}
    return ", ".join(f"{name} {metrics[key]:.4f}" for key, name in names.items() if key in metrics)


def _ensemble(options: argparse.Namespace) -> None:
    from .ensemble import ensemble

    metrics = ensemble(
        options.files,
        options.out,
        weights=options.weights,
        tune=options.tune,
        average=options.average,
        data_path=options.data,
        split=options.split,
    )
    _say_fusion(metrics, options.out)


def _say_fusion(metrics: dict[str, Any], folder: str | Path) -> None:
    for one in metrics["members"]:
        stream = f" ({one['stream']})" if one["stream"] else ""
        print(f"{_accuracy(one).split(',')[0]}  weight {one['weight']:g}  {one['file']}{stream}")
    if metrics.get("tuned_on_reported"):
        number = f"{metrics['tuned_on_reported']} of {metrics['num_samples']}"
        print(f"note: the weights were chosen on {number} of the reported samples: the accuracy below is optimistic")
    print(f"fusion: {metrics['num_samples']} samples, {_accuracy(metrics)}")
    print(f"wrote {folder}: {', '.join(sorted(p.name for p in Path(folder).glob('[!.]*')))}")


def _reproduce(options: argparse.Namespace) -> None:
    from . import reproduce

    out = Path(options.out or Path("runs") / options.recipe)
    what: dict[str, Any] = {"data_path": options.data, "seeds": options.seeds, "streams": options.streams}
    what["overrides"] = [override.lstrip("-") for override in options.overrides]
    if options.commands:
        print("\n".join(reproduce.commands(options.recipe, out, **what)))
        return
    result = reproduce.reproduce(options.recipe, out, any_data=options.any_data, **what)
    print(f"\n{reproduce.table(result)}\nwrote {out}: reproduce.json, reproduce.md, and a folder for each seed")


def _quickstart(options: argparse.Namespace) -> None:
    from . import quickstart

    metrics = _train(options)
    config, _ = _settings(options)
    print(f"\n{quickstart.compare(config, metrics)}")


def _prepare(options: argparse.Namespace) -> None:
    from . import data
    from .progress import Progress

    if options.check is not None:
        if options.source is not None:
            raise UserError(f"prepare: --check {options.check} takes no source; leave {options.source!r} out")
        _say_store("checked", options.check, data.check_store(options.check))
        return
    if options.destination is None:
        raise UserError(
            "prepare: give a source and a destination, the folder of the new store, or --check STORE; see --help"
        )
    named = {"missing", "labels", "table", "skeletons"}
    rest = {name: getattr(options, name) for name in ("semantics", "valid_ratio", "box_thr", "max_person")}
    rest |= {name: Path(path) for name in named if (path := getattr(options, name)) is not None}
    with Progress(f"preparing {options.destination}", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.advance(done - bar.done)

        clips = data.prepare(
            options.source,
            options.destination,
            dtype=options.dtype,
            format=options.format,
            layout=options.layout,
            channels=options.channels,
            workers=options.workers or data.default_workers(),
            progress=progress,
            img_shape=options.img_shape and tuple(options.img_shape),
            **rest,
        )
    for note in clips.notes:
        print(note)
    _say_store("wrote", options.destination, clips)


def _say_store(did: str, place: str, clips: Any) -> None:
    splits = ", ".join(f"{name} {int(mask.sum())}" for name, mask in clips.splits.items())
    print(
        f"{did} {place}: {len(clips)} clips, {clips.num_classes} classes, layout {clips.layout.name}, "
        f"channels {clips.channels}, splits {splits or 'none'}, fingerprint {clips.fingerprint()[:12]}"
    )


def _doctor(options: argparse.Namespace) -> None:
    from . import doctor

    print(doctor.plan() if options.plan else doctor.report())
