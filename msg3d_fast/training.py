"""Training: alone or under torchrun, exactly resumable.

    torchrun --standalone --nproc-per-node N scripts/train.py --config NAME

`train.batch_size` clips make one step, however many processes there are: each takes an equal share and goes through it
in micro-batches, whose gradients add up. Every random number is a function of (seed, epoch, sample, pass) or of
(seed, step, rank), so that a run goes on from its last checkpoint as if it had never stopped.
"""

import contextlib
import csv
import io
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import distributed, evaluation, guard, preprocessing, visualize
from .checkpoint import load_file, save_checkpoint
from .config import Config
from .data import Order
from .errors import UserError
from .experiment import build_model, choose_backend, make_pipeline, open_clips, person_slots
from .losses import Loss, class_weights
from .model import MSG3D
from .normalization import synchronize
from .optimization import Descent
from .progress import Progress, duration
from .run_folder import RunFolder

# Settings that may change when a run goes on; the others decide its numbers. A fingerprint stands for the data's path.
FREE = (
    "name",
    "device",
    "test",
    "model.backend",
    "model.checkpoint",
    "data.path",
    "data.test_split",
    "train.save_every",
)


def micro_batches(batch: np.ndarray, rank: int, world_size: int, largest: int) -> list[np.ndarray]:
    """The share of one process in a step's batch, cut into equal parts of at most `largest`."""
    share = batch.reshape(world_size, -1)[rank]
    return np.array_split(share, math.ceil(len(share) / largest))


@dataclass
class Position:
    """Where a run stands."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, hits and clips of this epoch so far
    seconds: float = 0.0  # of this epoch so far
    best: float = -1.0  # validation top-1, or mean average precision
    history: list[dict[str, Any]] = field(default_factory=list)  # one mapping per finished epoch


class Trainer:
    """A run in its folder: pipelines, network, optimizer and position.

    Args:
        config: the settings.
        folder: locked by the process that writes.
        device: of this process.
        resume: go on from the folder's last.ckpt, if there is one.

    Raises:
        UserError: settings, data and checkpoints that do not fit together.
    """

    def __init__(self, config: Config, folder: RunFolder, device: torch.device, *, resume: bool = True) -> None:
        world = distributed.world_size()
        if config.train.batch_size % world:
            raise UserError(
                f"train.batch_size is {config.train.batch_size}, expected a multiple of {world}, the processes"
            )
        if config.test.checkpoint == "best" and config.data.val_split is None:
            raise UserError("test.checkpoint is best, but data.val_split is null; set one, or --test.checkpoint=last")
        compiler = (os.environ.get("CXX") or "g++").split()[0]
        if config.train.compile and device.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(
                f"train.compile needs a C++ compiler on the CPU, {compiler} is not there; install it, or leave "
                "train.compile false"
            )
        backend, note = choose_backend(config, device)
        self.config, self.folder, self.device = config, folder, device
        saved = distributed.shared(self._saved) if resume else None
        if saved is not None:
            config = replace(config, model=replace(config.model, checkpoint=None))
        clips = open_clips(config)
        self.fingerprint = clips.fingerprint()
        slots, t = person_slots(config, clips), config.train
        self.train = make_pipeline(config, clips, config.data.train_split, slots, training=True)
        split = config.data.val_split
        self.validation = None if split is None else make_pipeline(config, clips, split, slots)
        self.test = make_pipeline(config, clips, config.data.test_split, slots, num_clips=config.test.num_clips)
        torch.manual_seed(config.seed)
        self.model = build_model(config, clips, backend).to(device)
        classes = self.model.hparams["num_classes"]
        self.model.preprocessing = preprocessing.of_training(config, self.test, classes).plain()
        if t.sync_bn:
            synchronize(self.model)
        self.frozen = _first_stages(self.model.backbone, t.freeze)
        if self.frozen and saved is None and config.model.checkpoint is None:
            raise UserError(
                f"train.freeze is {t.freeze}, but the network starts from random weights; set --model.checkpoint"
            )
        for module in self.frozen:
            module.requires_grad_(False)
        label = self.train.clipset.label
        self.loss = Loss(
            t.loss,
            classes,
            several=clips.multi_label,
            label_smoothing=t.label_smoothing,
            class_weights=class_weights(t.class_weights, label, classes),
            gamma=t.focal_gamma,
        )
        self.order = Order(self.train.clipset, t.repeat, config.seed, t.class_prob)
        self.steps = len(self._batches(0))
        self.descent = Descent(self.model, t, self.steps)
        self.position = Position()
        if saved is not None:
            self._restore(saved)
        self.replica: nn.Module = torch.compile(self.model) if t.compile else self.model
        if world > 1:
            self.replica = DistributedDataParallel(self.replica, forward_sync_buffers=False)
        self._local = torch.zeros(3, dtype=torch.float64)  # what this process has yet to add to the epoch's sums
        for line in clips.notes:
            self._say(line)
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self._say(
            f"training on {self.train.description}; testing on {len(self.test)}; {clips.num_classes} classes, "
            f"{clips.missing} joints cleaned, fingerprint {self.fingerprint[:12]}"
        )
        self._say(
            f"{parameters:.2f} M parameters, backend {backend} on {device}, {world} process(es){note and '; ' + note}"
        )
        if self.position.epoch == t.epochs:
            self._say(f"trained already, {t.epochs} epochs: {folder / 'last.ckpt'}")
        elif self.position.epoch or self.position.step:
            self._say(f"going on from epoch {self.position.epoch + 1}, step {self.position.step} of {self.steps}")

    def run(self) -> None:
        """Trains to the end; the folder then holds config.yaml, log.csv, last.ckpt, best.ckpt and curves.png."""
        p, epochs = self.position, self.config.train.epochs
        self.folder.write("config.yaml", self.config.to_yaml())
        done, quiet = p.epoch * self.steps + p.step, distributed.rank() > 0
        with Progress("training", epochs * self.steps, done=done, quiet=quiet) as progress:
            while p.epoch < epochs:
                self._epoch(progress)
                progress.say(self._summary())
        self.folder.write("log.csv", _csv(p.history))  # the last write may have been cut short
        self.folder.write("curves.png", visualize.curves_figure(p.history))

    def _epoch(self, progress: Progress) -> None:
        p, t = self.position, self.config.train
        batches = self._batches(p.epoch)
        started = time.monotonic() - p.seconds
        self.model.train()
        for module in self.frozen:
            module.eval()
        with ThreadPoolExecutor(max_workers=1) as loader:
            upcoming = loader.submit(self._load, batches[p.step])
            while p.step < self.steps:
                parts = upcoming.result()
                if p.step + 1 < self.steps:
                    upcoming = loader.submit(self._load, batches[p.step + 1])
                self._step(parts, batches[p.step])
                p.step += 1
                p.seconds = time.monotonic() - started
                if p.step % t.save_every == 0 and p.step < self.steps:
                    self._gather()
                    self._save()
                progress.advance(fields=f"epoch {p.epoch + 1}/{t.epochs}")
        self._gather()
        loss, hits, number = p.sums
        row: dict[str, Any] = {"epoch": p.epoch + 1, "lr": self.descent.rate}
        row |= {"train_loss": loss / number, "train_top1": hits / number}
        best = None
        if self.validation is not None:
            tested, size = self.descent.tested, self.config.test.batch_size
            scores, _ = evaluation.predict_scores(tested, self.validation, size, quiet=True)
            metrics = evaluation.metrics_of(scores, self.validation.clipset.label)
            row |= {f"val_{key}": value for key, value in metrics.items()}
            best = next(iter(metrics.values()))
        row["seconds"] = round(time.monotonic() - started, 2)
        p.history.append(row)
        p.epoch, p.step, p.sums, p.seconds = p.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0
        if best is not None and best > p.best:
            p.best = best
            if self.folder.writes:
                save_checkpoint(self.descent.tested, self.folder / "best.ckpt")
        self._save()
        self.folder.write("log.csv", _csv(p.history))

    def _step(self, parts: list[tuple[np.ndarray, Tensor, Tensor]], batch: np.ndarray) -> None:
        """One optimizer step: the gradient of the loss over the clips of all processes, at the positions `batch`."""
        p, world = self.position, distributed.world_size()
        number = p.epoch * self.steps + p.step
        divisor = self.loss.divisor(self.train.clipset.label[batch % len(self.train)])
        self._seed(number)
        self.descent.begin(number)
        losses, hits = [], 0
        for i, (_, x, label) in enumerate(parts):
            together = i == len(parts) - 1 or not isinstance(self.replica, DistributedDataParallel)
            x, label = x[:, 0].to(self.device), label.to(self.device)
            with contextlib.nullcontext() if together else self.replica.no_sync():
                with self.descent.autocast():
                    logits = self.replica(x)
                logits = logits.float() if logits.dtype != torch.float64 else logits
                loss = self.loss(logits, label)
                self.descent.backward(loss.sum() * (world / divisor))  # DDP takes the mean over the processes
            losses.append(loss.detach())
            first = logits.detach().argmax(1)
            hits += (label.gather(1, first[:, None])[:, 0] if self.loss.several else first == label).sum().item()
        loss = torch.cat(losses).double().cpu()
        statistics = self.model.backbone.data_bn.running_var  # squares of coordinates: they overflow first
        if not (loss.isfinite().all() and statistics.isfinite().all() and self.descent.finish()):
            raise self._not_finite(parts, number)
        self._local += torch.tensor([loss.sum() * len(batch) / divisor, hits, len(loss)], dtype=torch.float64)

    def _not_finite(self, parts: list[tuple[np.ndarray, Tensor, Tensor]], number: int) -> UserError:
        """What stops the run: the first layer and the clips with a value that is not finite."""
        p = self.position
        where = f"epoch {p.epoch + 1}, iteration {p.step + 1}"
        self._seed(number)
        for samples, x, label in parts:
            x, label = x[:, 0].to(self.device), label.to(self.device)
            found = guard.first_non_finite(self.model, x, label, self.loss, self.descent.autocast)
            if found is None:
                continue
            size = x.abs().flatten(1).amax(1).cpu()
            order = sorted(np.flatnonzero(found.clips.numpy()), key=lambda i: -float(size[i]))
            ids = [f"{self.train.clipset.frame_dir[samples[i]]} (up to {float(size[i]):.3g})" for i in order[:5]]
            more = ", ..." if len(order) > 5 else ""
            return UserError(
                f"training stopped at {where}: the first value that is not finite is in {found.what}, in clips "
                f"{', '.join(ids)}{more}; look at these clips, lower --train.lr or set --train.clip_grad=1; the last "
                "checkpoint is from before"
            )
        return UserError(
            f"training stopped at {where}: the gradient is not finite, though no layer is on the clips of this process "
            f"(rank {distributed.rank()}); lower --train.lr or set --train.clip_grad=1; the last checkpoint is from "
            "before"
        )

    def _seed(self, number: int) -> None:
        """Dropout's numbers are a function of the step and the process."""
        seed = np.random.SeedSequence((self.config.seed, number, distributed.rank())).generate_state(1)[0]
        torch.manual_seed(int(seed))

    def _load(self, batch: np.ndarray) -> list[tuple[np.ndarray, Tensor, Tensor]]:
        """This process's micro-batches of a step: sample indices, clips (n, 1, M, T, V, C), labels (n,)."""
        number, t = len(self.train), self.config.train
        parts = micro_batches(batch, distributed.rank(), distributed.world_size(), t.micro_batch)
        passes = self.position.epoch * self.order.passes
        return [(part % number, *self.train.batch(part % number, passes + part // number)) for part in parts]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Positions of every step of an epoch."""
        t = self.config.train
        order = self.order(epoch, distributed.world_size())
        batches = [order[i : i + t.batch_size] for i in range(0, len(order), t.batch_size)]
        return batches[:-1] if t.drop_last and len(batches) > 1 and len(batches[-1]) < t.batch_size else batches

    def _gather(self) -> None:
        """Makes sums and batch-norm statistics those of all processes."""
        sums = distributed.total(self._local.to(self.device)).tolist()
        self.position.sums = [a + b for a, b in zip(self.position.sums, sums, strict=True)]
        self._local.zero_()
        distributed.average_buffers(self.model)
        if self.descent.tested is not self.model:
            distributed.average_buffers(self.descent.tested)

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder / "last.ckpt"
        return load_file(path) if path.exists() else None

    def _save(self) -> None:
        if self.folder.writes:
            training = {
                "config": asdict(self.config),
                "fingerprint": self.fingerprint,
                **self.descent.state_dict(),
                "position": asdict(self.position),
            }
            save_checkpoint(self.descent.tested, self.folder / "last.ckpt", training=training)

    def _restore(self, saved: dict[str, Any]) -> None:
        path, training = self.folder / "last.ckpt", saved.get("training")
        if training is None:
            raise UserError(f"{path}: holds no training state, so the run cannot go on; choose another --run-dir")
        theirs, ours = _flat(asdict(Config())) | _flat(training["config"]), _flat(asdict(self.config))
        for key in ours:
            if theirs.get(key) != ours[key] and not key.startswith(FREE):
                raise UserError(
                    f"{path}: this run has {key}={theirs.get(key)}, now {key}={ours[key]} is asked for; go on with "
                    f"--config {self.folder / 'config.yaml'}, choose another --run-dir, or start over with --no-resume"
                )
        if training["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{path}: its data have the fingerprint {training['fingerprint'][:12]}, {self.config.data.path} has "
                f"{self.fingerprint[:12]}; give the same data, or choose another --run-dir"
            )
        try:
            self.descent.load_state_dict(training, saved["state_dict"])
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{path}: its network is another one than this run's; choose another --run-dir") from error
        self.position = Position(**training["position"])

    def _say(self, line: str) -> None:
        if distributed.rank() == 0:
            print(line, flush=True)

    def _summary(self) -> str:
        row, epochs = self.position.history[-1], self.config.train.epochs
        line = f"epoch {row['epoch']:>3}/{epochs}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.3f}"
        if "val_top1" in row:
            line += f"  val top-1 {row['val_top1']:.3f} (best {self.position.best:.3f})"
        elif "val_mAP" in row:
            line += f"  val mAP {row['val_mAP']:.3f} (best {self.position.best:.3f})"
        return f"{line}  lr {row['lr']:.4g}  {duration(row['seconds'])}"


def train(config: Config, run_dir: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Trains, tests and fills the run folder.

    Args:
        config: the settings.
        run_dir: folder of the run, created if need be.
        resume: go on from its last.ckpt, if there is one; a finished run is only tested.

    Returns:
        The metrics of the test, see `evaluation.report`.

    Raises:
        UserError: what the user can put right, in one line; the folder's files stay whole.
    """
    device = distributed.choose_device(config.device)
    distributed.start(device)
    with RunFolder(run_dir, writes=distributed.rank() == 0) as folder:
        trainer = Trainer(config, folder, device, resume=resume)
        trainer.run()
        model = trainer.descent.tested
        if config.test.checkpoint == "best":
            best = distributed.shared(lambda: load_file(folder / "best.ckpt"))
            model.load_state_dict(best["state_dict"])
        return evaluation.report(model, trainer.test, folder, config.test)


def _first_stages(net: MSG3D, number: int) -> list[nn.Module]:
    """The modules of the first stages of the backbone, 1 to 3 of them."""
    if number == 3:
        return [net]
    names = [f"{part}{stage}" for stage in range(1, number + 1) for part in ("gcn3d", "sgcn", "tcn")]
    return [getattr(net, name) for name in (["data_bn"] * (number > 0) + names)]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        is_section = isinstance(value, dict) and key not in ("layout", "class_prob")
        flat |= _flat(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _csv(history: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()
