"""The memory-mapped store: whole or absent, checked, and the same clips as before."""

import contextlib
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_sets import annotations, npz_arrays, small, write_pickle

from msg3d_fast.data import ClipSet, check_store, open_dataset, prepare, store, store_writer, write_store
from msg3d_fast.errors import UserError


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("layout", ["coco", {"num_node": 3, "inward": [(0, 1), (2, 1)], "center": 1, "name": "three"}])
def test_a_store_holds_the_clips(tmp_path: Path, dtype: str, layout: str | dict) -> None:
    clips = small(layout=layout, num_person=2)
    seen = []
    write_store(clips, tmp_path / "s", dtype, progress=lambda done, rows: seen.append((done, rows)))
    found = check_store(tmp_path / "s")
    assert isinstance(found.keypoint, np.memmap)
    np.testing.assert_array_equal(found.keypoint, clips.keypoint.astype(dtype))
    assert found.fingerprint() == clips.fingerprint(np.dtype(dtype))
    assert (found.layout, found.channels, found.label_names) == (clips.layout, clips.channels, clips.label_names)
    assert found.splits.keys() == clips.splits.keys()
    assert seen[-1] == (len(clips), len(clips))
    assert contents(tmp_path)[0] == "s"
    assert not list(tmp_path.glob("*.partial"))


def test_a_subset_is_stored_alone_and_stays_on_disk(tmp_path: Path) -> None:
    whole = open_dataset(write_store(small(num_person=2), tmp_path / "whole"))
    part = whole.subset("val")
    assert part.keypoint is whole.keypoint
    stored = open_dataset(write_store(part, tmp_path / "part"))
    assert stored.fingerprint() == part.fingerprint()
    assert len(stored.keypoint) == part.num_rows.sum() < len(whole.keypoint)
    for i in range(len(part)):
        np.testing.assert_array_equal(stored.clip(i), part.clip(i))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: (s / "meta.json").unlink(), "not a store: meta.json: No such file"),
        (lambda s: (s / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda s: (s / "meta.json").write_text("[]"), "does not describe a store"),
        (lambda s: rewrite(s, version=9), "store version 9, this program reads 2; update the program"),
        (lambda s: rewrite(s, version=1), "store version 1, this program reads 2; prepare the store again"),
        (lambda s: rewrite(s, layout={"num_node": 17}), "layout dict lacks"),
        (lambda s: rewrite(s, layout="hand21"), "clips have 17 joints, layout 'hand21' has 21"),
        (lambda s: rewrite(s, label_names=3), "meta.json does not fit"),
        (lambda s: rewrite(s, label_names=["a"]), "label 1, expected 0 to 0"),
        (lambda s: (s / "label.npy").unlink(), "label.npy is missing"),
        (lambda s: os.truncate(s / "keypoint.npy", 500), "keypoint.npy is missing, cut off or damaged"),
        (lambda s: os.truncate(s / "label.npy", 140), "label.npy is damaged or cut off"),
        (lambda s: (s / "frame_dir.npy").write_bytes(b""), "frame_dir.npy is damaged or cut off"),
    ],
)
def test_a_store_that_is_not_whole(tmp_path: Path, change: object, said: str) -> None:
    place = write_store(small(), tmp_path / "s")
    change(place)
    with pytest.raises(UserError, match=said) as error:
        open_dataset(place)
    assert "\n" not in str(error.value)


def rewrite(place: Path, **change: object) -> None:
    meta = json.loads((place / "meta.json").read_text())
    meta |= change
    (place / "meta.json").write_text(json.dumps(meta | {"checksum": store.meta_checksum(meta)}))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_a_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    """Every byte of every file counts; of the poses, the clip is named."""
    clips = small(num_clips=5)
    place = write_store(clips, tmp_path / "s")
    row = clips.keypoint[0].size * 2
    size = (place / "keypoint.npy").stat().st_size
    start = size - len(clips.keypoint) * row
    for i in range(len(clips)):
        for within in (0, row * clips.num_rows[i] - 1):
            where = start + int(clips.offsets[i]) * row + int(within)
            flip(place / "keypoint.npy", where)
            with pytest.raises(UserError, match=f"pose of clip {clips.frame_dir[i]} is not what was written: keypoint"):
                check_store(place)
            with pytest.raises(UserError, match="is not what was written"):
                open_dataset(place).subset(np.array([i])).fingerprint()
            flip(place / "keypoint.npy", where)
    for path in sorted(place.iterdir()):
        size = path.stat().st_size
        for where in range(0, size, max(1, size // 60)):
            before = path.read_bytes()
            flip(path, where)
            if path.name == "meta.json" and not before[where : where + 1].strip():
                with contextlib.suppress(UserError):  # the space between its words says nothing
                    check_store(place)
            elif path.name != "keypoint.npy" or where < start:
                with pytest.raises(UserError, match=f"{path.name}|store version"):
                    check_store(place)
            path.write_bytes(before)
    check_store(place)


@pytest.mark.parametrize("limit", [0, 100, 1500, 4000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """Files may not grow beyond `limit` bytes, so that the operating system refuses a write as a full disk does."""
    clips = small()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large; nothing was left there"):
            write_store(clips, tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == []
    write_store(clips, tmp_path / "s")
    assert check_store(tmp_path / "s").fingerprint() == clips.fingerprint(np.dtype("float16"))


def test_an_interrupted_run_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(small(), tmp_path / "s", progress=stop)
    assert contents(tmp_path) == []
    (tmp_path / "s.partial").mkdir()  # left by a run that was killed
    (tmp_path / "s.partial" / "junk.npy").write_text("junk")
    write_store(small(), tmp_path / "s")
    assert contents(tmp_path / "s") == sorted(
        [
            *(f"{name}.npy" for name in ("digest", "frame_dir", "keypoint", "label", "num_person", "splits")),
            "meta.json",
            "skipped.txt",
            "total_frames.npy",
        ]
    )


def test_values_too_large_for_half_precision(tmp_path: Path) -> None:
    clips = small()
    clips.keypoint[0, 0, 0] = 1e5
    with pytest.raises(UserError, match=r"coordinates up to 1e\+05 do not fit float16; use dtype float32"):
        write_store(clips, tmp_path / "s")
    assert contents(tmp_path) == []
    write_store(clips, tmp_path / "s", "float32")
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        write_store(clips, tmp_path / "t", "int8")


def test_prepare_names_what_it_skips_and_cleans(tmp_path: Path) -> None:
    content = annotations()
    content["annotations"][0]["label"] = "walk"
    content["annotations"][1]["keypoint"][0, 0, 3] = np.nan
    source = write_pickle(tmp_path / "a.pkl", content)
    stored = prepare(source, tmp_path / "s")
    assert len(stored) == 5
    assert stored.missing == 1
    assert stored.notes == (
        "skipped clip_0: label is 'walk', expected one class number",
        "1 joints held NaN or infinity and count as missing",
        "split 'train': 1 of its 3 ids have no clip: clip_0",
    )
    assert open_dataset(tmp_path / "s").missing == 1


def test_prepare_keeps_the_same_and_never_overwrites_another(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **npz_arrays(small()))
    np.savez(tmp_path / "b.npz", **npz_arrays(small(seed=1)))
    prepare(tmp_path / "a.npz", tmp_path / "s")
    written = (tmp_path / "s" / "keypoint.npy").stat().st_mtime_ns
    again = prepare(tmp_path / "a.npz", tmp_path / "s")
    assert (tmp_path / "s" / "keypoint.npy").stat().st_mtime_ns == written
    assert isinstance(again, ClipSet)
    for other in (
        lambda: prepare(tmp_path / "b.npz", tmp_path / "s"),
        lambda: prepare(tmp_path / "a.npz", tmp_path / "s", dtype="float32"),
    ):
        with pytest.raises(UserError, match="holds other clips than"):
            other()
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="exists and is no store"):
        prepare(tmp_path / "a.npz", tmp_path / "notes")
    with pytest.raises(UserError, match="exists already"):
        write_store(small(), tmp_path / "notes")


def test_what_reads_back_differently_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = store_writer.StoreWriter.append

    def wrong(self: store_writer.StoreWriter, batch: store_writer.Batch) -> None:
        batch.rows = bytes([batch.rows[0] ^ 1]) + batch.rows[1:]
        honest(self, batch)

    monkeypatch.setattr(store_writer.StoreWriter, "append", wrong)
    with pytest.raises(UserError, match="is not what was written"):
        prepare("synthetic", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_fingerprint_knows_no_order(tmp_path: Path) -> None:
    clips = small(num_person=2)
    order = np.random.default_rng(0).permutation(len(clips))
    mixed = open_dataset(write_store(clips.subset(order), tmp_path / "mixed"))
    assert mixed.frame_dir.tolist() == clips.frame_dir[order].tolist() != clips.frame_dir.tolist()
    assert mixed.fingerprint() == clips.fingerprint(np.dtype("float16")) != clips.fingerprint()
    assert clips.subset(order[1:]).fingerprint() != clips.fingerprint()
    swapped = clips.label[np.roll(np.arange(len(clips)), 1)]
    for change in (
        {"label": swapped},
        {"frame_dir": np.roll(clips.frame_dir, 1)},
        {"splits": {}},
        {"splits": {"train": clips.splits["val"], "val": clips.splits["train"]}},
        {"label_names": ("a", "b", "c")},
        {"img_shape": np.full((len(clips), 2), 100)},
        {"keypoint": clips.keypoint + np.float32(1e-3)},
    ):
        assert replace(clips, **change).fingerprint() != clips.fingerprint(), change.keys()


def test_the_embedded_set() -> None:
    clips = open_dataset("embedded")
    assert (len(clips), clips.num_classes, clips.layout.name, clips.channels) == (665, 20, "openpose25", "xys")
    assert {name: int(mask.sum()) for name, mask in clips.splits.items()}.keys() == {"block_train", "block_test"}
    assert not (clips.splits["block_train"] & clips.splits["block_test"]).any()
    assert len(open_dataset("embedded", "block_test")) == int(clips.splits["block_test"].sum())
    licence = Path(store.__file__).parent / "embedded" / "LICENSE.pose-classification-kit.txt"
    assert "MIT License" in licence.read_text()
