"""ruff and clang-format are clean, with the versions that pyproject.toml pins."""

import subprocess
import sys
from pathlib import Path

import clang_format
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(command: list[str]) -> None:
    run(sys.executable, "-m", "ruff", *command, ".")


def test_clang_format() -> None:
    sources = sorted(str(p) for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu"})
    assert sources
    run(clang_format.get_executable("clang-format"), "--dry-run", "--Werror", *sources)
