"""Adjacency, state-dict keys and the authors' checkpoint against what the upstream code produced."""

import csv
import gzip
import re
from dataclasses import replace
from pathlib import Path

import golden_files
import numpy as np
import pytest
import torch
from golden_files import config, load
from torch import Tensor

from msg3d_fast import Recognizer, load_checkpoint, save_checkpoint
from msg3d_fast.checkpoint import convert_state_dict
from msg3d_fast.graph import adjacency, binary_adjacency, get_layout

KEYS = Path(__file__).parent / "golden"
LAYOUTS = {"ntu": "nturgb+d", "handmp": "hand21"}
AUTHORS_GRAPHS = {"ntu_rgb_d": "nturgb+d", "kinetics": "openpose"}


def adjacency_arrays() -> list[tuple[Path, str]]:
    with_A = [path for path in golden_files.files("adjacency")]
    return [(path, name) for path in with_A for name in np.load(path).files if name != "readme"]


@pytest.mark.parametrize(
    ("path", "name"), adjacency_arrays(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_adjacency_bit_for_bit(path: Path, name: str) -> None:
    exact = load(path)[name]
    label, *place, kind = name.split("/")
    stem = re.sub(r"\d+$", "", label)
    layout = get_layout(LAYOUTS.get(stem, stem))
    if kind == "A_binary":
        assert torch.equal(binary_adjacency(layout), exact)
        return
    tau = max(1, int(place[0][1:]))
    K = exact.numel() // exact.shape[-1] ** 2
    if kind == "mma2_A":
        assert torch.equal(adjacency(layout, K, tau), exact)
        assert torch.equal(adjacency(layout, K, tau, "pyskl"), exact)
    elif kind == "orig_A":  # their normalisation of mmaction2's graph, which another name keeps from being theirs
        A = adjacency(replace(layout, name="renamed"), K, tau, "original")
        assert torch.equal(A.mT.reshape(exact.shape), exact)
    else:
        assert kind == "k_adj_noself"
        identity = torch.eye(exact.shape[-1])
        assert torch.equal(((adjacency(layout, K, tau) > 0).float() - identity)[1:], exact[1:])
        assert torch.equal(exact[0], identity)


def authors_files() -> list[Path]:
    return golden_files.files("orig_model")


def authors_layout(path: Path) -> str:
    return AUTHORS_GRAPHS[config(path)["graph"].split(".")[1]]


def prefixed(path: Path, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in load(path).items() if key.startswith(prefix)}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("path", authors_files(), ids=lambda path: path.stem)
def test_authors_checkpoint_computes_the_authors_logits(tmp_path: Path, path: Path, backend: str) -> None:
    torch.save(prefixed(path, "sd/"), tmp_path / "theirs.pt")
    model = load_checkpoint(tmp_path / "theirs.pt", backend=backend)
    cfg = config(path)
    assert model.source == "original"
    assert model.hparams["layout"] == authors_layout(path)
    assert model.hparams["flavour"] == "original"
    assert model.hparams["num_classes"] == cfg["num_class"]
    assert (model.hparams["num_gcn_scales"], model.hparams["num_g3d_scales"]) == (
        cfg["num_gcn_scales"],
        cfg["num_g3d_scales"],
    )
    x = load(path)["x_NCTVM"].permute(0, 4, 2, 3, 1)
    exact = load(path)["logits_eval"].double()
    with torch.no_grad():
        assert (model(x) - exact).abs().max() < 2e-6 * exact.abs().max()
        found = model.double()(x.double())
    assert ((found - exact).abs() <= 2.0**-24 * exact.abs() + 1e-12).all()


@pytest.mark.parametrize("path", authors_files(), ids=lambda path: path.stem)
def test_authors_checkpoint_converts_to_the_expected_arrays_and_back(tmp_path: Path, path: Path) -> None:
    theirs = prefixed(path, "sd/")
    converted = convert_state_dict(theirs, "mmaction2", layout=authors_layout(path))
    for key, exact in prefixed(path, "mma2/").items():
        assert torch.equal(converted[key], exact), key
    back = convert_state_dict(converted, "original", layout=authors_layout(path))
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    model = Recognizer(**infer(tmp_path, theirs))
    model.load_state_dict(converted, strict=True)
    assert list(model.state_dict()) == list(converted)


def infer(folder: Path, theirs: dict[str, Tensor]) -> dict:
    torch.save(theirs, folder / "theirs.pt")
    return load_checkpoint(folder / "theirs.pt").hparams


def key_list(name: str) -> list[list[str]]:
    with gzip.open(KEYS / f"keys_{name}.tsv.gz", "rt") as file:
        return list(csv.reader(file, delimiter="\t"))


def described(state: dict[str, Tensor]) -> list[list[str]]:
    return [[key, str(tuple(value.shape)), str(value.dtype).removeprefix("torch.")] for key, value in state.items()]


def test_state_dict_is_mmaction2s_key_for_key() -> None:
    model = Recognizer("coco", num_classes=60)
    assert described(model.state_dict()) == key_list("mmaction2_coco17_ntu60")
    ntu = {key: shape for key, shape, _ in described(Recognizer("nturgb+d").state_dict())}
    assert list(ntu) == [key for key, *_ in key_list("mmaction2_coco17_ntu60")]
    assert ntu["backbone.gcn3d1.gcn3d.1.gcn3d.1.A"] == "(6, 125, 125)"


def test_state_dict_converts_to_the_authors_keys(tmp_path: Path) -> None:
    model = Recognizer("nturgb+d", num_classes=60, flavour="original")
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    assert described(torch.load(tmp_path / "a.pt", weights_only=True)) == key_list("original_ntu25_ntu60")
