"""One process or several: what training and testing need of torch.distributed, as functions that hold for one too.

torchrun sets RANK, WORLD_SIZE and LOCAL_RANK for the processes it starts; without them there is one process, no group.
"""

import os
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError

T = TypeVar("T")


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means for this process.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r}: unknown; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UserError(f"device {name!r}: not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= count:
            raise UserError(
                f"device {name!r}: found {count} CUDA devices, expected number {index}; use another, or --device=cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def devices(name: str) -> list[str]:
    """All devices that `auto`, `cpu`, `cuda` or `cuda:N` may mean, one for each process that could run."""
    if name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [name]


def launched() -> bool:
    """Whether torchrun started this process as one of several.

    Raises:
        UserError: something else set some of its variables.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not number.isdecimal() or (int(number) > 1 and absent):
        others = f" and {', '.join(absent)} not" if absent else ""
        raise UserError(
            f"WORLD_SIZE is {number!r} in the environment{others}; start several processes with torchrun, or unset it"
        )
    return int(number) > 1


def start(device: torch.device) -> None:
    """Joins the process group when torchrun started this process: nccl on CUDA, gloo on the CPU."""
    if launched() and not dist.is_initialized():
        store, own, number = next(dist.rendezvous("env://"))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_fresh(store, own, number), rank=own, world_size=number)


def _fresh(store: dist.Store, own: int, number: int) -> dist.Store:
    """The part of torchrun's store that belongs to the processes of this start.

    torchrun keeps its store when it starts killed workers again, and with it the addresses of the dead ones. So the
    first process picks a name and waits until all have answered it; the others answer whatever name stands there until
    one comes back with their own answer. A count of restarts would not do: every node has its own.
    """
    mark, deadline = uuid.uuid4().hex, time.monotonic() + 600
    if own == 0:
        store.set("first", mark)
        answers = [f"{mark}/{other}" for other in range(1, number)]
        store.wait(answers)
        store.set(f"{mark}/all", " ".join(store.get(answer).decode() for answer in answers))
        return dist.PrefixStore(mark, store)
    while time.monotonic() < deadline:
        if store.check(["first"]):
            first = store.get("first").decode()
            store.set(f"{first}/{own}", mark)
            if store.check([f"{first}/all"]) and mark in store.get(f"{first}/all").decode().split():
                return dist.PrefixStore(first, store)
        time.sleep(0.02)
    raise UserError(f"process {own} of {number} found no others in ten minutes; start all of them, or fewer")


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Waits for every process."""
    if dist.is_initialized():
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """Sum of `values` over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def shared(make: Callable[[], T]) -> T:
    """What `make` returns on the first process, on all of them: only that one needs to see the file it reads."""
    made = [make() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(made)
    return made[0]


def average_buffers(model: nn.Module) -> None:
    """Replaces every floating-point buffer by its mean over the processes: each has seen its own batches."""
    if dist.is_initialized():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()
