"""Files that come from elsewhere: what is read, what is refused, and what the message says."""

import builtins
import contextlib
import copyreg
import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_sets import annotations, npz_arrays, small, write_pickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msg3d_fast.data import open_dataset
from msg3d_fast.data.annotations import read_annotations
from msg3d_fast.errors import UserError


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_annotations_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = annotations()
    clips = open_dataset(write_pickle(tmp_path / "a.pkl", content, protocol))
    assert (clips.layout.name, clips.channels, clips.keypoint.dtype) == ("coco", "xys", np.float16)
    assert clips.num_classes == 3
    assert clips.img_shape.tolist() == [[1080, 1920]] * 6
    for i, clip in enumerate(content["annotations"]):
        np.testing.assert_array_equal(clips.clip(i)[..., :2], clip["keypoint"])
        np.testing.assert_array_equal(clips.clip(i)[..., 2], clip["keypoint_score"])
    assert clips.subset("val").frame_dir.tolist() == ["clip_3", "clip_4", "clip_5"]


def test_older_numpy_and_fortran_arrays_and_scalars(tmp_path: Path) -> None:
    content = annotations(flat=False, joints=25)
    first = content["annotations"][0]
    expected = first["keypoint"].copy()
    first["keypoint"] = np.asfortranarray(first["keypoint"])
    first["label"], first["total_frames"] = np.int64(2), np.int16(3)
    written = pickle.dumps(content, protocol=2)
    assert b"numpy._core.multiarray" in written
    path = tmp_path / "old.pkl"
    path.write_bytes(written.replace(b"cnumpy._core.", b"cnumpy.core."))
    clips = open_dataset(path)
    assert (clips.layout.name, clips.channels) == ("nturgb+d", "xyz")
    assert clips.label[0] == 2
    np.testing.assert_array_equal(clips.clip(0), expected)


def test_a_list_of_annotations_and_filenames(tmp_path: Path) -> None:
    clips = annotations()["annotations"]
    for clip in clips:
        clip["filename"] = clip["frame_dir"] + ".avi"
    found = open_dataset(write_pickle(tmp_path / "list.pkl", clips))
    assert found.frame_dir[0] == "clip_0.avi"
    assert found.splits == {}


RAN = []


def _touch(*args: object) -> None:
    RAN.append(args)


class Smuggle:
    """Pickles as a call of anything."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.reduced = (call, args)

    def __reduce__(self) -> tuple:
        return self.reduced


class Named:
    """Pickles as the bare name module.name, whether or not it exists."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        """Makes pickle accept it as what a reduction calls."""


def dump(content: Any, protocol: int = 4) -> bytes:
    """Pickle with `Named` objects written as the names they stand for."""

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Named):
                if self.proto >= 4:
                    self.save(obj.module)
                    self.save(obj.name)
                    self.write(pickle.STACK_GLOBAL)
                else:
                    self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            else:
                super().save(obj, save_persistent_id)

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(content)
    return stream.getvalue()


def in_a_score(payload: Any) -> Any:
    content = annotations()
    content["annotations"][1]["keypoint_score"] = payload
    return content


def in_a_split(payload: Any) -> Any:
    content = annotations()
    content["split"]["train"] = [payload]
    return content


SMUGGLED = {
    "os.system": (Smuggle(os.system, "touch ran"), "system"),
    "eval": (Smuggle(builtins.eval, "RAN.append(1)"), "builtins.eval"),
    "getattr": (Smuggle(getattr, Smuggle(Named("os", "path")), "join"), "builtins.getattr"),
    "own function": (Smuggle(_touch, 1), "_touch"),
    "numpy.load": (Smuggle(Named("numpy", "load"), "x"), "numpy.load"),
    "numpy.f2py": (Smuggle(Named("numpy.f2py.crackfortran", "getlincoef"), "x", []), "numpy.f2py.crackfortran"),
    "numpy.testing": (Smuggle(Named("numpy.testing._private.utils", "runstring"), "RAN.append(1)", {}), "runstring"),
    "dotted": (Named("numpy", "ndarray.tofile"), "numpy.ndarray.tofile"),
    "exec of python 2": (Smuggle(Named("__builtin__", "execfile"), "x"), "builtins.execfile"),
    "copyreg": (Smuggle(copyreg._reconstructor, dict, dict, {}), "_reconstructor"),
    "harmless class": (OrderedDict(a=1), "collections.OrderedDict"),
    "codec": (Smuggle(Named("_codecs", "encode"), "x" * 10, "zip"), "codec 'zip'"),
    "object dtype": (np.array([{"a": 1}], dtype=object), "arrays of type 'O8'"),
    "code in an object array": (np.array([Smuggle(os.system, "touch ran")], dtype=object), "arrays of type 'O8'"),
    "record dtype": (np.zeros(2, [("a", "f4")]), "arrays of type 'V4'"),
    "name inside a dtype": (Smuggle(np.dtype, Smuggle(os.system, "touch ran")), "system"),
    "huge bytearray": (Smuggle(bytearray, 1 << 60), "byte array"),
    "scalar of objects": (Smuggle(Named("numpy.core.multiarray", "scalar"), np.dtype("O"), b""), "arrays of type 'O8'"),
}


@pytest.mark.parametrize("place", [lambda x: x, in_a_score, in_a_split], ids=["alone", "score", "split"])
@pytest.mark.parametrize("name", SMUGGLED)
def test_smuggled_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    payload, wanted = SMUGGLED[name]
    path = tmp_path / "evil.pkl"
    for protocol in (2, 4):
        path.write_bytes(dump(place(payload), protocol))
        with pytest.raises(UserError) as error:
            open_dataset(path)
        message = one_line(error)
        assert wanted in message
        assert str(path) in message
        assert "nothing was run" in message
    assert RAN == []
    assert os.listdir(tmp_path) == ["evil.pkl"]


def test_the_table_itself_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD on a name sets its attributes in an ordinary unpickler."""
    from msg3d_fast.data import unpickle

    before = dict(vars(unpickle._encode))
    path = tmp_path / "build.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(UserError, match="set the state"):
        open_dataset(path)
    assert vars(unpickle._encode) == before


@pytest.mark.parametrize(
    "state", ["(3, '<', None, ('a',), None, -1, -1, 0)", "(3, '<', ('f4', (2,)), None, None, -1, -1, 0)"]
)
def test_fields_in_the_state_of_a_dtype(tmp_path: Path, state: str) -> None:
    class Odd:
        def __reduce__(self) -> tuple:
            return (np.dtype, ("f4", False, True), eval(state))

    with pytest.raises(UserError, match="arrays with fields"):
        open_dataset(write_pickle(tmp_path / "d.pkl", Odd()))


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    whole = pickle.dumps(annotations(2), protocol=4)
    path = tmp_path / "cut.pkl"
    for size in [*range(0, 60), *range(60, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError) as error:
            open_dataset(path)
        assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello", "starts with"),
        (b"\x89PNG", "starts with"),
        (b"PK\x03\x04 but no zip", "not a whole ragged .npz"),
        (b"\x80\x04x", "no instruction has the number 120"),
        (pickle.dumps({"state_dict": {}}), "keys state_dict"),
        (pickle.dumps(3), "holds a int"),
        (pickle.dumps([]), "holds no clips"),
        (pickle.dumps([1, 2]), "is a int, expected a dict"),
        (pickle.dumps({"annotations": [], "split": []}), "holds no clips"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "foreign.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_dataset(path)
    assert said in one_line(error)
    assert str(path) in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        open_dataset(tmp_path / "nothing.pkl")


BAD_CLIPS = {
    "label below 0": ({"label": -1}, "label is -1"),
    "label of another type": ({"label": "walk"}, "label is 'walk'"),
    "several labels": ({"label": [1, 2]}, r"label is \[1, 2\]"),
    "absurd label": ({"label": 1 << 40}, "label is 1099511627776"),
    "no pose": ({"keypoint": None}, "keypoint is a NoneType"),
    "three axes": ({"keypoint": np.zeros((3, 17, 2), np.float16)}, r"shape \(3, 17, 2\)"),
    "frames": ({"total_frames": 9}, "total_frames is 9, keypoint has 3 frames"),
    "score": ({"keypoint_score": np.zeros((1, 4, 17), np.float16)}, "keypoint_score of shape"),
    "joints": (
        {"keypoint": np.zeros((1, 3, 18, 2), np.float16), "keypoint_score": np.zeros((1, 3, 18), np.float16)},
        "has 18 joints x 3 channels, most clips of the file have 17 x 3",
    ),
    "another width": ({"keypoint_score": np.zeros((1, 3, 17, 1), np.float16)}, "keypoint_score is a float16 array"),
    "nobody": (
        {"keypoint": np.zeros((0, 3, 17, 2), np.float16), "keypoint_score": np.zeros((0, 3, 17), np.float16)},
        "keypoint has the shape",
    ),
    "text": ({"keypoint": np.full((1, 3, 17, 2), "a")}, "keypoint is a <U1 array"),
    "image": ({"img_shape": (0, 1920)}, "img_shape is"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_bad_clip_is_named_or_skipped(tmp_path: Path, name: str) -> None:
    change, said = BAD_CLIPS[name]
    content = annotations()
    content["annotations"][0] |= change
    path = write_pickle(tmp_path / "bad.pkl", content)
    with pytest.raises(UserError, match=f"clip clip_0: .*{said}"):
        open_dataset(path)
    skipped: list[str] = []
    clips = read_annotations(path, skipped=skipped)
    assert clips.frame_dir.tolist() == [f"clip_{i}" for i in range(1, 6)]
    assert len(skipped) == 1
    assert clips.splits["train"].tolist() == [True, True, False, False, False]
    assert clips.notes == ("split 'train': 1 of its 3 ids have no clip: clip_0",)


def test_scores_are_no_third_dimension(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "flat.pkl", annotations())
    assert open_dataset(path, channels="xys").channels == "xys"
    with pytest.raises(UserError, match=r"channels is 'xyz', but its clips hold \(x, y\) and a score"):
        open_dataset(path, channels="xyz")


def test_all_clips_bad(tmp_path: Path) -> None:
    content = annotations(2)
    for clip in content["annotations"]:
        clip["label"] = None
    path = write_pickle(tmp_path / "bad.pkl", content)
    with pytest.raises(UserError, match="none of its 2 clips can be used: clip clip_0: label is None"):
        read_annotations(path, skipped=[])


def test_ids_without_clips_are_counted(tmp_path: Path) -> None:
    content = annotations()
    content["split"]["val"] = [f"gone_{i}" for i in range(5)]
    clips = open_dataset(write_pickle(tmp_path / "a.pkl", content))
    assert clips.notes == ("split 'val': 5 of its 5 ids have no clip: gone_0, gone_1, gone_2, ...",)
    with pytest.raises(UserError, match=r"split 'val' is empty; splits there are: train \(3 clips\), val \(0 clips\)"):
        clips.subset("val")


def test_clips_of_one_id_are_counted(tmp_path: Path) -> None:
    content = annotations()
    for i in (1, 2):
        content["annotations"][i]["frame_dir"] = "clip_0"
    clips = open_dataset(write_pickle(tmp_path / "a.pkl", content))
    assert clips.notes[-1].startswith("2 clips have the id of another one")
    assert not any("id of another" in note for note in open_dataset("synthetic").notes)


def test_the_skeleton_is_told_or_asked_for(tmp_path: Path) -> None:
    cases = [(17, True, "coco"), (18, True, "openpose"), (25, True, "openpose25"), (25, False, "nturgb+d")]
    for joints, flat, name in cases:
        path = write_pickle(tmp_path / "a.pkl", annotations(joints=joints, flat=flat))
        assert open_dataset(path).layout.name == name
    path = write_pickle(tmp_path / "b.pkl", annotations(joints=21))
    with pytest.raises(UserError, match=r"21 joints do not tell the skeleton; name its layout .*hand21"):
        open_dataset(path)
    assert open_dataset(path, layout="hand21").layout.name == "hand21"
    with pytest.raises(UserError, match="clips have 21 joints, layout 'coco' has 17"):
        open_dataset(path, layout="coco")
    path = write_pickle(tmp_path / "c.pkl", annotations(joints=24))
    with pytest.raises(UserError, match="24 joints do not tell the skeleton"):
        open_dataset(path)


def test_nan_and_infinite_joints_become_missing(tmp_path: Path) -> None:
    content = annotations()
    content["annotations"][0]["keypoint"][0, 1, 2] = np.nan
    content["annotations"][1]["keypoint"][0, 0, 5, 1] = np.inf
    content["annotations"][1]["keypoint_score"][1, 0, 6] = np.nan
    clips = open_dataset(write_pickle(tmp_path / "nan.pkl", content))
    assert clips.missing == 3
    assert np.isfinite(clips.keypoint).all()
    assert not clips.clip(0)[0, 1, 2].any()
    assert not clips.clip(1)[0, 0, 5].any()
    assert not clips.clip(1)[1, 0, 6].any()
    assert clips.clip(1)[0, 0, 4].all()


def test_npz_holds_what_was_written(tmp_path: Path) -> None:
    for name, channels in (("coco", "xy"), ("openpose25", "xys"), ("kinect20", "xyz"), ("hand21", "xys")):
        clips = small(layout=name, channels=channels, num_person=2)
        np.savez_compressed(tmp_path / "a.npz", **npz_arrays(clips))
        found = open_dataset(tmp_path / "a.npz")
        assert found.fingerprint() == clips.fingerprint()
        assert found.layout == clips.layout
        assert found.channels == channels


def test_npz_with_its_own_skeleton(tmp_path: Path) -> None:
    arrays = npz_arrays(small(layout="kinect20", channels="xyz"))
    arrays["joint_names"] = np.array([f"my_{name}" for name in arrays["joint_names"]])
    np.savez(tmp_path / "a.npz", **arrays)
    layout = open_dataset(tmp_path / "a.npz").layout
    assert layout.name == "custom"
    assert (4, 8) in layout.flip_pairs  # shoulders, by their names


BAD_ARRAYS = {
    "no label": ({"label": None}, "has no label; found keypoints"),
    "rows": ({"total_frames": np.full(12, 5)}, "num_person \\* total_frames add up to 60"),
    "entries": ({"label": np.zeros(3, int)}, "label 3"),
    "label range": ({"label": np.full(12, 3)}, "has label 3, expected 0 to 2 for 3 classes; 12 of 12"),
    "negative label": ({"label": np.full(12, -1)}, "has label -1, expected 0 to 2"),
    "float counts": ({"num_person": np.ones(12)}, "num_person is a float64 array"),
    "two axes": ({"keypoints": np.zeros((4, 5))}, "keypoints is a float64 array of shape"),
    "ids": ({"frame_dir": np.array(["a"])}, "frame_dir has 1 entries for 12 clips"),
    "split": ({"split_train": np.ones(3, bool)}, "split 'train' has 3 entries for 12 clips"),
    "edge": ({"inward": np.array([[0, 99]])}, "inward"),
    "channels": ({"channels": np.array("abc")}, "channels are 'abc'"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_npz_that_does_not_fit_together(tmp_path: Path, name: str) -> None:
    change, said = BAD_ARRAYS[name]
    arrays = {key: array for key, array in (npz_arrays(small()) | change).items() if array is not None}
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=said) as error:
        open_dataset(path)
    assert str(path) in one_line(error)


def test_npz_with_objects_or_a_false_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **npz_arrays(small()) | {"label_names": np.array([Smuggle(_touch, 1)], object)})
    with pytest.raises(UserError, match="holds Python objects"):
        open_dataset(path)
    assert RAN == []
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 17, 2), }".ljust(117) + b"\n"
        archive.writestr("keypoints.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match="claims the shape"):
        open_dataset(path)


PICKLED = pickle.dumps(annotations(2), protocol=2), pickle.dumps(annotations(2), protocol=4)
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read_mutated(path: Path, whole: bytes, changes: list[tuple[int, int]]) -> None:
    """Damaged bytes give clips that fit together or one line that says so, and nothing else."""
    data = bytearray(whole)
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    outcome = ""
    with contextlib.suppress(UserError):
        try:
            outcome = "clips" if np.isfinite(open_dataset(path).keypoint).all() else "not finite"
        except UserError as error:
            outcome = "one line" if "\n" not in str(error) else str(error)
            raise
    assert outcome in ("clips", "one line")


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)


@settings(BUSY, max_examples=150)
@given(changes=CHANGES, which=st.integers(0, 1))
def test_damaged_pickles(tmp_path: Path, changes: list[tuple[int, int]], which: int) -> None:
    read_mutated(tmp_path / "a.pkl", PICKLED[which], changes)


@pytest.mark.slow
@settings(BUSY, max_examples=20000)
@given(changes=CHANGES, which=st.integers(0, 1))
def test_damaged_pickles_at_length(tmp_path: Path, changes: list[tuple[int, int]], which: int) -> None:
    read_mutated(tmp_path / "a.pkl", PICKLED[which], changes)


def test_every_damaged_opcode(tmp_path: Path) -> None:
    """Opcodes in the place of others: where a reader in C could be made to allocate at will."""
    whole = PICKLED[0]
    places = [place for _, _, place in pickletools.genops(whole)][:60]
    for place in places[::3]:
        for value in range(0, 256, 5):
            read_mutated(tmp_path / "a.pkl", whole, [(place, value)])


@settings(BUSY, max_examples=60)
@given(changes=CHANGES)
def test_damaged_npz(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    source = tmp_path / "whole.npz"
    if not source.exists():
        np.savez(source, **npz_arrays(small(num_clips=3)))
    read_mutated(tmp_path / "a.npz", source.read_bytes(), changes)
