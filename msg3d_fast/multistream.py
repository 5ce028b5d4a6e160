"""Several streams of one configuration: each trained and tested, side by side where there are devices, then fused.

runs/NAME/j  b  jm  bm      a run folder for each stream
runs/NAME                   the report of their fusion, 2:2:1:1
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import distributed
from .config import Config, load_config
from .ensemble import FOUR_STREAMS, ensemble
from .errors import UserError
from .training import train


def parse_streams(text: str) -> list[str]:
    """The streams in "j,b,jm,bm".

    Raises:
        UserError: one that does not exist or comes twice, or fewer than two.
    """
    streams = [stream.strip() for stream in text.split(",")]
    if len(streams) < 2 or len(set(streams)) < len(streams) or not set(streams) <= FOUR_STREAMS.keys():
        raise UserError(f"--streams={text}: expected two or more of {','.join(FOUR_STREAMS)}, each once")
    return streams


def train_streams(
    config: str | Path, overrides: Sequence[str], streams: Sequence[str], folder: str | Path, *, resume: bool = True
) -> dict[str, Any]:
    """Trains and tests every stream in a folder of its own within `folder`, and fuses their scores there.

    Several CUDA devices train one stream each at a time; the processes of torchrun train them together, one after the
    other. Called again, it goes on where it stopped.

    Args:
        config: name or file of the configuration.
        overrides: of its settings.
        streams: which, see `parse_streams`.
        folder: of the fusion.
        resume: see `training.train`.

    Returns:
        The metrics of the fusion, see `ensemble.ensemble`; the same on the first process only, else {}.

    Raises:
        UserError: what the user can put right, in one line; it names the stream that it stopped in.
    """
    folder = Path(folder)
    if any("data.stream=" in override for override in overrides):
        raise UserError("--streams and --data.stream are both given; leave out one of them")
    if (folder / "last.ckpt").exists():
        raise UserError(f"run folder {folder}: holds a run of one stream; choose another with --run-dir")
    configs = {stream: load_config(config, [*overrides, f"--data.stream={stream}"]) for stream in streams}
    devices = distributed.devices(next(iter(configs.values())).device)
    if len(devices) > 1 and not distributed.launched():
        commands = {stream: _command(config, overrides, stream, folder / stream, resume=resume) for stream in streams}
        _side_by_side(commands, devices)
    else:
        _in_turn(configs, folder, resume)
    if distributed.rank() > 0:
        return {}
    weights = [FOUR_STREAMS[stream] for stream in streams]
    return ensemble([folder / stream for stream in streams], folder, weights=weights)


def _in_turn(configs: dict[str, Config], folder: Path, resume: bool) -> None:
    for stream, config in configs.items():
        if distributed.rank() == 0:
            print(f"stream {stream}: {folder / stream}", flush=True)
        try:
            train(config, folder / stream, resume=resume)
        except UserError as error:
            raise UserError(f"stream {stream}: {error}") from error


def _command(config: str | Path, overrides: Sequence[str], stream: str, folder: Path, *, resume: bool) -> list[str]:
    command = [sys.executable, "-m", "msg3d_fast", "train", "--config", str(config), "--run-dir", str(folder)]
    return [*command, *overrides, f"--data.stream={stream}", *(["--no-resume"] if not resume else [])]


def _side_by_side(commands: dict[str, list[str]], devices: Sequence[str]) -> None:
    """Runs the commands, one at a time on every device; the first that fails ends the others."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for stream in commands:
        waiting.put(stream)
    running: dict[str, subprocess.Popen[str]] = {}
    failures: list[str] = []

    def work(device: str) -> None:
        while not failures:
            try:
                stream = waiting.get_nowait()
            except queue.Empty:
                return
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen([*commands[stream], f"--device={device}"], env=environment, **pipes)
            running[stream] = process
            line = ""
            for line in process.stdout:
                print(f"{stream}: {line.rstrip()}", flush=True)
            if process.wait() and not failures:
                failures.append(f"stream {stream} on {device}: {line.strip().removeprefix('msg3d-fast: ')}")
                for other in running.values():
                    other.terminate()

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise UserError(failures[0])
