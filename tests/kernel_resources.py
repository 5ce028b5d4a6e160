"""What the binary of a CUDA file needs of an architecture, as ptxas says it."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import emulator


@dataclass(frozen=True)
class Resources:
    registers: int  # of a thread
    stack: int  # bytes of local memory
    spilt: int  # bytes stored and loaded


def resources(source: str, arch: str, cubin: Path) -> dict[str, Resources]:
    """Of every kernel, by its mangled name; the code itself goes to `cubin`."""
    command = [emulator.find_nvcc(), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", "-o", cubin]
    done = subprocess.run([*map(str, command), str(emulator.ROOT / source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pattern = (
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"\s.*?Used (\d+) registers"
    )
    return {
        name: Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in re.findall(pattern, done.stderr, re.DOTALL)
    }
