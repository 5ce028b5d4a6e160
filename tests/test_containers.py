"""Files that hold weights: checksums, stand-ins, and a correct read or a clean error for every damaged one."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from test_checkpoint import clip, lived_in, one_line, same
from upstream_files import MessageHub, upstream_installed, write_mmaction2

from msg3d_fast import Layout, UserError, load_checkpoint, save_checkpoint
from msg3d_fast.checkpoint import convert_state_dict, load_file
from msg3d_fast.containers import save_file


@pytest.mark.parametrize(
    "arguments",
    [{}, {"layout": Layout(("a", "b", "c"), ((0, 1), (2, 1)), 1, ((0, 2),))}, {"in_channels": 2}],
    ids=["coco", "custom_layout", "flat"],
)
def test_published_file_builds_the_same_model(tmp_path: Path, arguments: dict) -> None:
    model = lived_in(**arguments)
    save_checkpoint(model, tmp_path / "a.safetensors", about={"top1": 0.9, "trained_on": "mine"})
    again = load_checkpoint(tmp_path / "a.safetensors", backend="reference")
    assert again.source == "msg3d_fast"
    assert again.hparams == model.hparams
    assert again.layout == model.layout
    assert same(again.state_dict(), model.state_dict())
    x = clip(model)
    assert torch.equal(again(x), model(x))
    assert load_file(tmp_path / "a.safetensors")["about"] == {"top1": 0.9, "trained_on": "mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors"}


def test_published_file_is_open_to_everyone(tmp_path: Path) -> None:
    model = lived_in()
    save_checkpoint(model, tmp_path / "a.safetensors")
    theirs = load_safetensors(tmp_path / "a.safetensors")
    assert all(torch.equal(theirs[key], value) for key, value in model.state_dict().items())
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        about = json.loads(file.metadata()["msg3d_fast"])
    assert about["hparams"]["num_classes"] == 5
    assert about["sha256"].keys() == model.state_dict().keys()


def test_safetensors_of_others_load_as_what_their_names_say(tmp_path: Path) -> None:
    model = lived_in(layout="nturgb+d", flavour="original")
    theirs = {key: value.clone() for key, value in convert_state_dict(model.state_dict(), "original").items()}
    save_safetensors(theirs, tmp_path / "a.safetensors")
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert again.source == "original"
    assert same(again.state_dict(), model.state_dict())


def test_published_files_have_no_place_for_more(tmp_path: Path) -> None:
    model = lived_in()
    with pytest.raises(UserError, match="a published file has no place for our training state"):
        save_checkpoint(model, tmp_path / "a.safetensors", training={"epoch": 3})
    with pytest.raises(UserError, match=r"pyskl does not read safetensors; name a .pth file"):
        save_checkpoint(model, tmp_path / "a.safetensors", format="pyskl")
    assert not list(tmp_path.iterdir())


def test_a_corrupted_byte_of_a_published_file_is_found_and_named(tmp_path: Path) -> None:
    """One bit flipped in every array in turn, in the description, and at random places anywhere."""
    path = tmp_path / "a.safetensors"
    save_checkpoint(lived_in(base_channels=6), path, about={"top1": 0.5})
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    rng = np.random.default_rng(0)
    names = [name for name in header if name != "__metadata__"]
    for name in rng.choice(names, 25, replace=False).tolist():
        begin, end = header[name]["data_offsets"]
        flip(path, whole, 8 + size + int(rng.integers(begin, end)))
        with pytest.raises(UserError, match=r"is damaged") as error:
            load_file(path)
        assert f": {name} does not have the checksum" in one_line(error)
        assert str(path) in one_line(error)
    place = whole.index(b"num_classes")
    flip(path, whole, place + 3)
    with pytest.raises(UserError, match="is damaged: the description in its header does not have the checksum"):
        load_file(path)
    for place in rng.integers(0, len(whole), 60).tolist():
        flip(path, whole, place)
        with pytest.raises(UserError, match=r"a\.safetensors") as error:
            load_file(path)
        one_line(error)


def flip(path: Path, whole: bytes, place: int) -> None:
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


def test_stand_ins_are_inert_and_temporary(tmp_path: Path) -> None:
    """What stands beside the weights is neither kept nor run, and nothing is left allowed afterwards."""
    model = lived_in()
    before = set(torch.serialization.get_safe_globals())
    write_mmaction2(tmp_path / "a.pth", model.state_dict(), {})
    content = load_file(tmp_path / "a.pth")
    assert vars(content["message_hub"]["hub"]) == {}
    assert vars(content["message_hub"]["log_scalars"]["loss"]) == {}
    assert dict(content["meta"]["dataset_meta"]) == {"classes": ["a", "b"]}
    assert same(content["state_dict"], model.state_dict())
    assert set(torch.serialization.get_safe_globals()) == before


class Smuggler:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.system, "touch smuggled"),
        (eval, "open('smuggled', 'w')"),
        (exec, "open('smuggled', 'w')"),
        (open, "smuggled"),
    ],
    ids=["system", "eval", "exec", "open"],
)
def test_code_beside_what_is_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: object, argument: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (argument, "w") if function is open else (argument,)
    with upstream_installed():
        content = {"hub": MessageHub(), "state_dict": lived_in().state_dict(), "more": Smuggler(function, *arguments)}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for \S+, which is no data; nothing was run"):
        load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "smuggled").exists()


def test_functions_of_allowed_packages_are_not_called(tmp_path: Path) -> None:
    """NumPy's names are allowed as names only: np.save would write a file."""
    content = {"state_dict": lived_in().state_dict(), "more": Smuggler(np.savetxt, str(tmp_path / "smuggled"), [1.0])}
    torch.save(content, tmp_path / "a.pth")
    load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "smuggled").exists()


def test_a_compressed_archive_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(10_000))
    with pytest.raises(UserError, match=r"its record a/data.pkl is compressed"):
        load_file(tmp_path / "a.pth")


def test_a_whole_model_object_is_named(tmp_path: Path) -> None:
    with upstream_installed():
        torch.save(MessageHub(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds a MessageHub, expected a dict; save model.state_dict"):
        load_file(tmp_path / "a.pth")


WRITERS = {
    "ours": lambda path, model: save_checkpoint(model, path, training={"position": {"epoch": 1}, "name": "x"}),
    "published": lambda path, model: save_checkpoint(model, path.with_suffix(".safetensors")),
    "mmaction2": lambda path, model: write_mmaction2(path, model.state_dict(), {"state": {}, "param_groups": []}),
    "old": lambda path, model: write_mmaction2(path, model.state_dict(), {}, zipped=False),
    "original": lambda path, model: save_checkpoint(model, path, format="original"),
}


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A copy with flipped, removed, repeated or foreign bytes; half of the time near the start, where structure is."""
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 4000)
        place, length = int(rng.integers(0, max(reach, 1))), int(rng.integers(1, 40))
        kind = rng.integers(0, 5)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place : place + length] = rng.bytes(length)
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


def outcome(path: Path) -> str | dict[str, torch.Tensor]:
    try:
        return load_checkpoint(path).state_dict()
    except UserError as error:
        return str(error)


def fuzz(tmp_path: Path, kind: str, number: int, seed: int) -> None:
    """Every mutated file is refused in one line that names it or, where it has checksums, read as it was."""
    torch.manual_seed(0)
    model = lived_in(base_channels=6, num_gcn_scales=2, layout="openpose", flavour="original")
    WRITERS[kind](tmp_path / "a.pth", model)
    (path,) = tmp_path.iterdir()
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    expected = load_checkpoint(path).state_dict()
    refused = 0
    for _ in range(number):
        path.write_bytes(mutated(whole, rng))
        found = outcome(path)
        if isinstance(found, str):
            assert str(path) in found
            assert "\n" not in found
            refused += 1
        else:
            assert found.keys() == expected.keys()
            assert all(found[key].shape == value.shape for key, value in expected.items())
            if kind != "old":  # the form before torch 1.6 has no checksums
                assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert refused > number // 3
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", WRITERS)
def test_some_damaged_files(tmp_path: Path, kind: str) -> None:
    fuzz(tmp_path, kind, 25, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_many_damaged_files(tmp_path: Path, kind: str) -> None:
    fuzz(tmp_path, kind, 1000, seed=1)


def test_pickles_of_a_newer_protocol(tmp_path: Path) -> None:
    torch.save({"state_dict": lived_in().state_dict()}, tmp_path / "a.pth", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    with pytest.raises(UserError, match="a newer pickle protocol"):
        load_file(tmp_path / "a.pth")


def test_a_device_is_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe cannot be written: it exists and is no regular file"):
        save_file({"a": torch.ones(1)}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
