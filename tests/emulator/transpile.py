"""From PTX, as nvcc emits it, to C++ on the runtime."""

from pathlib import Path


def translate(ptx: str, support: Path) -> str:
    raise NotImplementedError("route P")
