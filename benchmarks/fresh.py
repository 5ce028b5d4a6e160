"""What only a process of its own can tell: the peak memory of a training step, the time to a first result.

    python -m benchmarks.fresh peak  CONTENDER [--clips N] [--frames T] [--layout NAME]   # bytes above those before
    python -m benchmarks.fresh first CONTENDER [--clips N] [--frames T] [--layout NAME]   # seconds to logits

CONTENDER is eager, fast or low for the first, eager or fused for the second. One number is printed.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from msg3d_fast import fuse

from .workload import Trainer, clips, labels, network

ROOT = Path(__file__).resolve().parents[1]


def measure(what: str, contender: str, N: int, T: int, layout: str = "coco") -> float:
    """Return "peak" (bytes) or "first" (seconds) as measured in a new process with as many threads as this one uses."""
    command = [sys.executable, "-m", "benchmarks.fresh", what, contender]
    command += [f"--clips={N}", f"--frames={T}", f"--layout={layout}", f"--threads={torch.get_num_threads()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return float(done.stdout)


def resident(field: str) -> int:
    """Return this process's resident bytes, "VmRSS" now, "VmHWM" at most so far; without /proc getrusage's maximum."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_of_step(contender: str, N: int, T: int, layout: str) -> int:
    """Return how far a training step of N clips of T frames raises the resident memory, in bytes."""
    trainer = Trainer(contender, layout)
    trainer.step(clips(layout, 1, 8), labels(1))  # libraries loaded, gradients and momentum allocated
    before = resident("VmRSS")
    trainer.step(clips(layout, N, T), labels(N))
    return resident("VmHWM") - before


def time_to_first_result(contender: str, N: int, T: int, layout: str) -> float:
    """Return the seconds from a model in memory to its first logits, N clips of T frames with one person each."""
    model = network(layout, "reference" if contender == "eager" else "native").eval()
    x = clips(layout, N, T, [1])
    start = time.perf_counter()
    with torch.inference_mode():
        (model if contender == "eager" else fuse(model))(x)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fresh", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["peak", "first"])
    parser.add_argument("contender", choices=[*Trainer.CONTENDERS, "fused"])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--layout", default="coco")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = peak_of_step if arguments.what == "peak" else time_to_first_result
    print(measured(arguments.contender, arguments.clips, arguments.frames, arguments.layout))


if __name__ == "__main__":
    main()
