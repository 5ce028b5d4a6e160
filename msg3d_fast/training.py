"""Training: SGD with Nesterov momentum under a cosine, alone or under torchrun, exactly resumable.

    torchrun --standalone --nproc-per-node N scripts/train.py --config NAME

`train.batch_size` clips make one step, however many processes there are: each takes an equal share and goes through it
in micro-batches, whose gradients add up. Every random number is a function of (seed, epoch, sample, pass) or of
(seed, step, rank), so that a run goes on from its last checkpoint as if it had never stopped.
"""

import contextlib
import csv
import io
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import distributed, evaluation, visualize
from .checkpoint import load_checkpoint, load_file, save_checkpoint
from .config import Config
from .errors import UserError
from .experiment import build_model, choose_backend, make_pipeline, open_clips, person_slots
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


def cosine_lr(base: float, step: int, steps: int) -> float:
    """Learning rate before step `step` of `steps`: base * (1 + cos(pi * step / steps)) / 2."""
    return 0.5 * base * (1 + math.cos(math.pi * step / steps))


def epoch_order(number: int, repeat: int, seed: int, epoch: int, multiple: int = 1) -> np.ndarray:
    """Positions 0 ... number * repeat - 1 in random order; position p is sample p % number in pass p // number.

    The first ones come again at the end until the length is a multiple of `multiple`, the number of processes.
    """
    order = np.random.default_rng((seed, epoch)).permutation(number * repeat)
    return np.resize(order, len(order) + -len(order) % multiple)


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
    best: float = -1.0  # validation top-1
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
        backend, note = choose_backend(config, device)
        self.config, self.folder, self.device = config, folder, device
        saved = load_file(folder / "last.ckpt") if resume and (folder / "last.ckpt").exists() else None
        if saved is not None:
            config = replace(config, model=replace(config.model, checkpoint=None))
        clips = open_clips(config)
        self.fingerprint = clips.fingerprint()
        slots = person_slots(config, clips)
        self.train = make_pipeline(config, clips, config.data.train_split, slots, training=True)
        split = config.data.val_split
        self.validation = None if split is None else make_pipeline(config, clips, split, slots)
        self.test = make_pipeline(config, clips, config.data.test_split, slots, num_clips=config.test.num_clips)
        torch.manual_seed(config.seed)
        self.model = build_model(config, clips, backend).to(device)
        t = config.train
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), t.lr, momentum=t.momentum, weight_decay=t.weight_decay, nesterov=t.momentum > 0
        )
        self.position = Position()
        if saved is not None:
            self._restore(saved)
        self.replica: nn.Module = self.model
        if world > 1:
            self.replica = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.steps = math.ceil(len(self._order(0)) / t.batch_size)
        self._local = torch.zeros(3, dtype=torch.float64)  # what this process has yet to add to the epoch's sums
        for note in clips.notes:
            self._say(note)
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
        self.folder.write("curves.png", visualize.curves_figure(p.history))

    def _epoch(self, progress: Progress) -> None:
        p, t = self.position, self.config.train
        order = self._order(p.epoch)
        batches = [order[i : i + t.batch_size] for i in range(0, len(order), t.batch_size)]
        started = time.monotonic() - p.seconds
        self.model.train()
        with ThreadPoolExecutor(max_workers=1) as loader:
            upcoming = loader.submit(self._load, batches[p.step])
            while p.step < self.steps:
                parts = upcoming.result()
                if p.step + 1 < self.steps:
                    upcoming = loader.submit(self._load, batches[p.step + 1])
                self._step(parts, len(batches[p.step]))
                p.step += 1
                p.seconds = time.monotonic() - started
                if p.step % t.save_every == 0 and p.step < self.steps:
                    self._gather()
                    self._save()
                progress.advance(fields=f"epoch {p.epoch + 1}/{t.epochs}")
        self._gather()
        loss, hits, number = p.sums
        row: dict[str, Any] = {"epoch": p.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {"train_loss": loss / number, "train_top1": hits / number}
        if self.validation is not None:
            scores = evaluation.predict_scores(self.model, self.validation, self.config.test.batch_size, quiet=True)
            metrics = evaluation.metrics_of(scores, self.validation.clipset.label)
            row |= {f"val_{key}": value for key, value in metrics.items()}
        row["seconds"] = round(time.monotonic() - started, 2)
        p.history.append(row)
        p.epoch, p.step, p.sums, p.seconds = p.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0
        if row.get("val_top1", -1.0) > p.best:
            p.best = row["val_top1"]
            if self.folder.writes:
                save_checkpoint(self.model, self.folder / "best.ckpt")
        self._save()
        self.folder.write("log.csv", _csv(p.history))

    def _step(self, parts: list[tuple[np.ndarray, Tensor, Tensor]], batch: int) -> None:
        """One optimizer step: the gradient of the mean loss over the `batch` clips of all processes."""
        p, t = self.position, self.config.train
        world, number = distributed.world_size(), p.epoch * self.steps + p.step
        seed = np.random.SeedSequence((self.config.seed, number, distributed.rank())).generate_state(1)[0]
        torch.manual_seed(int(seed))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(t.lr, number, t.epochs * self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        losses, hits = [], 0
        for i, (_, x, label) in enumerate(parts):
            together = i == len(parts) - 1 or not isinstance(self.replica, DistributedDataParallel)
            with contextlib.nullcontext() if together else self.replica.no_sync():
                logits = self.replica(x[:, 0].to(self.device))
                loss = evaluation.cross_entropy(logits, label.to(self.device), t.label_smoothing)
                (loss.sum() * (world / batch)).backward()  # DDP takes the mean over the processes
            losses.append(loss.detach())
            hits += (logits.detach().argmax(1).cpu() == label).sum()
        loss = torch.cat(losses).double().cpu()
        if not loss.isfinite().all():
            samples = np.concatenate([indices for indices, _, _ in parts])[~loss.isfinite().numpy()]
            ids = ", ".join(str(self.train.clipset.frame_dir[i]) for i in samples[:5])
            raise UserError(
                f"loss is not finite at epoch {p.epoch + 1}, iteration {p.step + 1}, in {len(samples)} clips ({ids}); "
                "look at these clips, or lower --train.lr; the last checkpoint is from before"
            )
        self.optimizer.step()
        self._local += torch.tensor([loss.sum(), hits, len(loss)], dtype=torch.float64)

    def _load(self, batch: np.ndarray) -> list[tuple[np.ndarray, Tensor, Tensor]]:
        """This process's micro-batches of a step: sample indices, clips (n, 1, M, T, V, C), labels (n,)."""
        number, t = len(self.train), self.config.train
        parts = micro_batches(batch, distributed.rank(), distributed.world_size(), t.micro_batch)
        passes = self.position.epoch * t.repeat
        return [(part % number, *self.train.batch(part % number, passes + part // number)) for part in parts]

    def _order(self, epoch: int) -> np.ndarray:
        number, repeat = len(self.train), self.config.train.repeat
        return epoch_order(number, repeat, self.config.seed, epoch, distributed.world_size())

    def _gather(self) -> None:
        """Makes sums and batch-norm statistics those of all processes."""
        sums = distributed.total(self._local.to(self.device)).tolist()
        self.position.sums = [a + b for a, b in zip(self.position.sums, sums, strict=True)]
        self._local.zero_()
        distributed.average_buffers(self.model)

    def _save(self) -> None:
        if self.folder.writes:
            training = {
                "config": asdict(self.config),
                "fingerprint": self.fingerprint,
                "optimizer": self.optimizer.state_dict(),
                "position": asdict(self.position),
            }
            save_checkpoint(self.model, self.folder / "last.ckpt", training=training)

    def _restore(self, saved: dict[str, Any]) -> None:
        path, training = self.folder / "last.ckpt", saved.get("training")
        if training is None:
            raise UserError(f"{path}: holds no training state, so the run cannot go on; choose another --run-dir")
        theirs, ours = _flat(training["config"]), _flat(asdict(self.config))
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
            self.model.load_state_dict(saved["state_dict"])
        except RuntimeError as error:
            raise UserError(f"{path}: its network is another one than this run's; choose another --run-dir") from error
        self.optimizer.load_state_dict(training["optimizer"])
        self.position = Position(**training["position"])

    def _say(self, line: str) -> None:
        if distributed.rank() == 0:
            print(line, flush=True)

    def _summary(self) -> str:
        row, epochs = self.position.history[-1], self.config.train.epochs
        line = f"epoch {row['epoch']:>3}/{epochs}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.3f}"
        if "val_top1" in row:
            line += f"  val top-1 {row['val_top1']:.3f} (best {self.position.best:.3f})"
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
        model = trainer.model
        if config.test.checkpoint == "best":
            distributed.barrier()  # best.ckpt is written by one process
            model = load_checkpoint(folder / "best.ckpt", device=device, backend=model.backend)
        return evaluation.report(model, trainer.test, folder, config.test)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        is_section = isinstance(value, dict) and key != "layout"
        flat |= _flat(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _csv(history: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()
