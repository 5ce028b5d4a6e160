"""The folder of a run, and who may write in it."""

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from .errors import UserError
from .files import write_whole


class RunFolder:
    """A folder that one run at a time writes to.

    Used as a context, it creates the folder and holds a lock on it; a new folder goes again where an error came before
    the first file. The kernel drops the lock when the process ends, however it ends, so that a crash leaves nothing to
    clean up.

    Args:
        path: the folder; created with its parents.
        writes: False for the other processes of a distributed run: they neither create, lock nor write.
        option: of the command line that names it, for messages.
    """

    def __init__(self, path: str | Path, *, writes: bool = True, option: str = "--run-dir") -> None:
        self.path, self.writes, self.option = Path(path), writes, option
        self._lock: int | None = None
        self._made = False

    def __enter__(self) -> "RunFolder":
        if not self.writes:
            return self
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"run folder {self.path}: cannot be written to ({error.strerror}); choose another with {self.option}"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            reason = "another run is writing to it" if isinstance(error, BlockingIOError) else error.strerror
            raise UserError(
                f"run folder {self.path}: {reason}; wait for it, or choose another with {self.option}"
            ) from error
        for leftover in self.path.glob(".*.part"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            if value is not None and self._made and [file.name for file in self.path.iterdir()] == [".lock"]:
                shutil.rmtree(self.path, ignore_errors=True)  # of a run that never began
            os.close(self._lock)
            self._lock = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, content: str | bytes) -> None:
        """Put a file in place whole; see `write_whole`."""
        if not self.writes:
            return
        write_whole(self.path / name, content.encode() if isinstance(content, str) else content)
