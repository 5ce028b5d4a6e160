"""Files that hold weights: read without running anything in them, written whole or not at all.

    .pth .pt .ckpt   what torch.save writes, as a zip file with a checksum for each record, or in its form before 1.6
    .safetensors     our published form: arrays, and JSON in the header with the sha256 of each and of itself

Unpickling allows tensors and plain values. What OpenMMLab's training files hold beside them (histories, hubs,
configurations, NumPy values) comes back as inert stand-ins: its names are known, its code is not run nor looked for.
Sources: mmengine `runner/checkpoint.py`, `logging/history_buffer.py`; mmcv 1.x `runner/checkpoint.py`.
"""

import hashlib
import io
import json
import os
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .files import write_whole

# Packages and modules whose objects an upstream's training file may hold; getattr is how pickle writes a method's name.
_PACKAGES = ("mmengine", "mmcv", "mmaction", "mmcls", "mmdet", "mmpose", "pyskl", "addict", "numpy", "datetime")
_NAMES = (
    *("getattr", "_codecs.encode", "argparse.Namespace", "copyreg._reconstructor", "object", "set", "frozenset"),
    *("bytearray", "collections.defaultdict", "collections.deque", "pathlib.Path", "pathlib.PosixPath"),
    *("pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath"),
)
_MOST_STAND_INS = 200
_HEADER = "msg3d_fast"  # key of our JSON in the header of a safetensors file


class _Inert:
    """Stands in for an object that is not wanted: takes anything, keeps and does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


def load_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict in a file that `torch.save`, `save_file` or `save_published` wrote, on the CPU.

    Code in the file is refused, never run. Every record that has a checksum is held against it.

    Raises:
        UserError: no such file, an empty, truncated, damaged or foreign one, one that asks for code, or one that holds
            no dict.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"checkpoint {path} is a folder; give a file in it, such as {path / 'last.ckpt'}")
        if not path.stat().st_size:
            raise UserError(f"checkpoint {path} is empty; copy or save it again")
        with path.open("rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":  # 8 bytes of length, then JSON
            return _load_published(path)
        _check_sums(path)
        found = _load_pickle(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # what a broken pickle raises depends on where it breaks
        if wanted := _refused_name(error):
            raise UserError(
                f"checkpoint {path} asks for {wanted}, which is no data; nothing was run: use a file of weights only"
            ) from error
        if "Unsupported operand" in str(error) and zipfile.is_zipfile(path):
            raise UserError(
                f"checkpoint {path} was saved in a newer pickle protocol than can be read without running it; save it "
                "again with torch.save(content, file), as torch does by default"
            ) from error
        if "Unsupported operand" in str(error):
            raise UserError(
                f"checkpoint {path} is a pickle that torch.save did not write; nothing was run: save the weights with "
                "torch.save(model.state_dict(), file)"
            ) from error
        kind = type(error).__name__
        raise UserError(f"checkpoint {path} is truncated or no PyTorch file ({kind}); copy or save it again") from error
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {path} holds a {type(found).__name__}, expected a dict; save model.state_dict()")
    return found


def _load_pickle(path: Path) -> Any:
    """torch.load with weights_only, again with a stand-in for each of the known names that it stops at."""
    stand_ins: dict[str, type] = {}
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals([(c, n) for n, c in stand_ins.items()]):
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            name = _refused_name(error)
            known = name is not None and (name in _NAMES or name.split(".")[0] in _PACKAGES)
            if known and _qualified(name) not in stand_ins and len(stand_ins) < _MOST_STAND_INS:
                stand_ins[_qualified(name)] = type(name.rpartition(".")[2], (_Inert,), {})
                continue
            # A class that is filled item by item is a kind of dict or list.
            filled = re.search(r"Can only (SETITEM|append|extend).* got <class '(.*)'>", str(error))
            whose = filled and [n for n, c in stand_ins.items() if f"{c.__module__}.{c.__qualname__}" == filled[2]]
            if not whose:
                raise
            stand_ins |= dict.fromkeys(whose, OrderedDict if filled[1] == "SETITEM" else list)


def _refused_name(error: Exception) -> str | None:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else None


def _qualified(name: str) -> str:
    """The name by which an allow-list knows what an error message calls `name`."""
    return name if "." in name else f"builtins.{name}"


def _check_sums(path: Path) -> None:
    """Raise UserError where a record of a zip file is not what was written; other files have no checksums."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            packed = [info.filename for info in file.infolist() if info.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else file.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); copy or save it again") from error
    if packed:
        raise UserError(f"checkpoint {path}: its record {packed[0]} is compressed, which torch.save never does")
    if damaged is not None:
        raise UserError(
            f"checkpoint {path} is damaged: its record {damaged} does not have the checksum that was written with it; "
            "copy or save it again"
        )


def save_file(content: Any, path: str | os.PathLike[str]) -> None:
    """Write what `load_file` reads; the file appears whole or, if that fails, the one before it stays.

    Raises:
        UserError: the folder or the disk does not take it.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with buffer.getbuffer() as content:  # given back even if writing fails: the error's traceback holds the buffer
        write_whole(path, content, "checkpoint")


def save_published(state: Mapping[str, Tensor], about: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write weights as a safetensors file that any reader of that format opens and `load_file` can check.

    Args:
        state: the arrays.
        about: what JSON can hold; stands in the header under "msg3d_fast".
        path: the file; it appears whole or not at all.

    Raises:
        UserError: the folder or the disk does not take it.
    """
    from safetensors.torch import save

    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    described = {**about, "sha256": {key: _digest(value) for key, value in state.items()}}
    header = json.dumps({**described, "digest": _json_digest(described)})
    write_whole(path, _in_order(save(state, {"format": "pt", _HEADER: header})), "checkpoint")


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its header's keys in order: the library draws it, and equal weights have equal names."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # as the format aligns its arrays
    return len(header).to_bytes(8, "little") + header + file[end:]


def _load_published(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file under "state_dict", beside the JSON of its header where it is ours."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError(f"checkpoint {path} needs the package safetensors; pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} is damaged or truncated ({reason:.80}); copy or save it again") from error
    if header is None:
        return {"state_dict": state}
    try:
        about = json.loads(header)
        sums, digest = about["sha256"], about.pop("digest")
        whole = digest == _json_digest(about) and isinstance(sums, dict)
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            f"checkpoint {path} is damaged: the description in its header does not have the checksum that was written "
            "with it; copy or save it again"
        )
    for key in sums.keys() | state.keys():
        if key not in state or key not in sums or _digest(state[key]) != sums[key]:
            raise UserError(
                f"checkpoint {path} is damaged: {key} does not have the checksum that was written with it; copy or "
                "save it again"
            )
    return {**about, "state_dict": {key: state[key] for key in sums}}  # in the order in which they were saved


def _digest(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _json_digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
