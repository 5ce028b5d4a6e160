"""Our ragged `.npz`: plain arrays, no pickle.

keypoints (sum of M*T, V, C) · num_person (N,) · total_frames (N,) · label (N,) · frame_dir (N,) · label_names
joint_names (V,) · inward (E, 2) · center    the skeleton; without them it is told from V
split_<name> (N,) bool · channels "xy" | "xys" | "xyz" · img_shape (N, 2) = (h, w)    where there are any
"""

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet, clean
from .layouts import choose_layout, named_layout, third_channel

_NEEDED = ("keypoints", "num_person", "total_frames", "frame_dir", "label", "label_names")


def read_npz(
    path: Path,
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    labelled: bool = True,
) -> ClipSet:
    """The clips of a ragged `.npz`; arguments as of `read_annotations`.

    Without `labelled` the file needs no label, label_names and frame_dir: clips are numbered and all of one class.

    Raises:
        UserError: not such a file, damaged, or arrays that do not fit together.
    """
    arrays = read_arrays(path)
    if not labelled and "total_frames" in arrays:
        count = arrays["total_frames"].size
        arrays.setdefault("frame_dir", np.arange(count))
        arrays |= {"label": np.zeros(count, np.int64), "label_names": np.array(["unlabelled"])}
    if absent := [name for name in _NEEDED if name not in arrays]:
        raise UserError(f"{path}: has no {', '.join(absent)}; found {', '.join(arrays)}")
    integers = {name: _integers(path, name, arrays[name]) for name in ("num_person", "total_frames")}
    integers["label"] = _integers(path, "label", arrays["label"], several=True)
    keypoint = arrays["keypoints"]
    if keypoint.ndim != 3 or keypoint.shape[2] not in (2, 3) or keypoint.dtype.kind not in "fiu":
        found = f"{keypoint.dtype} array of shape {keypoint.shape}"
        raise UserError(f"{path}: keypoints is a {found}, expected numbers (rows, V, 2 or 3)")
    if keypoint.dtype not in (np.float16, np.float32):
        keypoint = keypoint.astype(np.float32)
    if len({len(array) for array in integers.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in integers.items())
        raise UserError(f"{path}: entries differ in number ({lengths}); every clip needs one of each")
    if (rows := int((integers["num_person"] * integers["total_frames"]).sum())) != len(keypoint):
        raise UserError(f"{path}: keypoints has {len(keypoint)} rows, num_person * total_frames add up to {rows}")

    if layout is None and {"joint_names", "inward", "center"} <= arrays.keys():
        layout = _own_layout(path, arrays)
    if channels is None and "channels" in arrays:
        channels = str(arrays["channels"])
    skeleton = choose_layout(keypoint.shape[1], channels or "xyz", layout, str(path))
    channels = channels or third_channel(skeleton, keypoint.shape[2])
    return ClipSet(
        missing=clean(keypoint),
        keypoint=keypoint,
        **integers,
        frame_dir=arrays["frame_dir"].astype(str),
        label_names=tuple(arrays["label_names"].astype(str).reshape(-1).tolist()),
        layout=skeleton,
        splits={name[len("split_") :]: arrays[name].astype(bool) for name in arrays if name.startswith("split_")},
        channels=channels,
        img_shape=arrays.get("img_shape"),
        name=str(path),
    )


def _integers(path: Path, name: str, array: np.ndarray, several: bool = False) -> np.ndarray:
    if several and array.ndim == 2 and array.dtype.kind in "biu":  # (N, classes) of zeros and ones
        return np.where((array == 0) | (array == 1), array, 2).astype(np.uint8)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} is a {array.dtype} array of shape {array.shape}, expected integers (N,)")
    return array.astype(np.int64)


def _own_layout(path: Path, arrays: dict[str, np.ndarray]) -> Layout:
    inward, center = arrays["inward"], arrays["center"]
    if inward.ndim != 2 or inward.shape[1] != 2 or center.size != 1 or center.dtype.kind not in "iu":
        found = f"inward of shape {inward.shape} and center of shape {center.shape}"
        raise UserError(f"{path}: {found}, expected (E, 2) and one joint")
    try:
        return named_layout(arrays["joint_names"].astype(str).tolist(), inward, int(center.item()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`.

    Raises:
        UserError: not such a file, damaged, or larger than the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            _check_memory(path, sum(info.file_size for info in members))
            return {info.filename.removesuffix(".npy"): _read_array(archive, info) for info in members}
    except UserError:
        raise
    except Exception as error:  # whatever damaged bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a whole ragged .npz ({reason:.80}); it is damaged or cut off: fetch or write it again"
        ) from None


def _check_memory(path: Path, needed: int) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > there:
        raise UserError(
            f"{path}: its arrays take {needed / 2**30:.0f} GiB unpacked, this machine has {there / 2**30:.0f} GiB of "
            "memory; split the file"
        )


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects")
        # The header alone decides how much memory is asked for: hold it to what the archive says it contains.
        if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} claims the shape {shape}")
        data = file.read()
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
