"""Files that appear whole or not at all."""

import contextlib
import os
from pathlib import Path

from .errors import UserError


def write_whole(path: str | os.PathLike[str], content: bytes | memoryview, what: str = "file") -> None:
    """Write a file that appears whole or, if that fails, leaves the one before it; errors call it `what`.

    Raises:
        UserError: the folder or the disk does not take it, or something stands there that is no file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a file moved to /dev/null would take the place of the device
        raise UserError(f"{what} {path} cannot be written: it exists and is no regular file; choose another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be written: {error.strerror or error}; nothing was changed: "
            "free space or choose another folder, and save again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
