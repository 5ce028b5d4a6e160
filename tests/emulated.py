"""Builds the backend `emulated` once a session, from the sources as they are; quick where it is up to date.

Tests ask for it by the fixture `emulated_backend`.
"""

import fcntl
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Devices by arch, multiprocessors and the shared memory that one block may have.
DEVICES = {
    "A100": (80, 108, 163 << 10),
    "RTX 3090": (86, 82, 99 << 10),
    "H100": (90, 132, 227 << 10),
    "T4": (75, 40, 64 << 10),
}
raw = torch.ops.msg3d_fast_emulated  # its operators are there once it is built


@cache
def build() -> None:
    command = [sys.executable, "setup.py", "-q", "build_emulated"]
    environment = {**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS", "2")}
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "emulated.lock", "w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
