"""The shell scripts, with a stand-in for the environment's Python that notes what is asked of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/sh
if [ "$1" = - ]; then exec "{python}" "$@"; fi  # the digest
[ "$1" = -c ] || echo "$@" >>"{calls}"
"""


class Environment:
    """An active virtual environment whose Python is a stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.tools = folder / "tools"
        for place in (folder / "bin", self.tools):
            place.mkdir(parents=True)
        self.executable(folder / "bin" / "python", STAND_IN.format(python=sys.executable, calls=self.calls))

    @staticmethod
    def executable(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str) -> list[str]:
        """What the script asked of Python, line by line."""
        self.calls.write_text("")
        places = f"{self.tools}{os.pathsep}/usr/bin{os.pathsep}/bin"
        environment = os.environ | {"VIRTUAL_ENV": str(self.folder), "PATH": places, "MSG3D_CUDA": "0"}
        command = ["bash", str(ROOT / "scripts" / script), *arguments]
        ran = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return self.calls.read_text().splitlines()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if "--editable" in call]


def test_arguments_of_the_quick_start_are_its_own(environment: Environment) -> None:
    calls = environment.run("quickstart.sh", "--train.epochs=1", "--run-dir", "mine")
    assert [call.split("--editable ")[1] for call in installs(calls)] == [str(ROOT)]
    assert calls[-1] == "-m msg3d_fast quickstart --train.epochs=1 --run-dir mine"


def test_arguments_of_the_tests_go_to_pytest(environment: Environment) -> None:
    calls = environment.run("test.sh", "-q", "tests/test_ops.py")
    assert [call.split("--editable ")[1] for call in installs(calls)] == [f"{ROOT}[test]"]
    assert calls[-1] == "-m pytest --numprocesses 2 --dist loadfile -q tests/test_ops.py"


def test_a_second_call_sets_nothing_up_until_a_tool_appears(environment: Environment) -> None:
    assert installs(environment.run("quickstart.sh"))
    assert environment.run("quickstart.sh") == ["-m msg3d_fast quickstart"]
    environment.executable(environment.tools / "c++", "#!/bin/sh\n")
    assert installs(environment.run("quickstart.sh"))
