"""Training files of the upstreams: weights, optimizer states and notes taken over, everything else left alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_checkpoint import lived_in, one_line, same
from tiny import fails
from torch import Tensor
from torch.func import functional_call
from upstream_files import write_authors, write_mmaction2, write_mmcv

from msg3d_fast import Recognizer, UserError, load_checkpoint, save_checkpoint
from msg3d_fast.checkpoint import convert_state_dict, describe_file, load_file, load_optimizer, optimizer_file
from msg3d_fast.cli import main

SETTINGS = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def trained(steps: int = 2, **arguments: object) -> tuple[Recognizer, torch.optim.SGD]:
    """A small model in double precision and its optimizer after some steps."""
    torch.manual_seed(0)
    model = lived_in(layout="nturgb+d", num_gcn_scales=3, base_channels=6, **arguments).double()
    optimizer = torch.optim.SGD(model.parameters(), **SETTINGS)
    for step in range(steps):
        one_step(model, optimizer, step)
    return model, optimizer


def clips(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 2, 5, 25, 3, generator=generator, dtype=torch.float64)
    return x, torch.tensor([step % 5, (step + 2) % 5])


def one_step(model: Recognizer, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, labels = clips(step)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(("write", "format"), [(write_mmaction2, "mmaction2"), (write_mmcv, "pyskl")])
def test_training_of_openmmlab_goes_on_as_it_would_have(
    tmp_path: Path, write: Callable, format: str, zipped: bool
) -> None:
    model, optimizer = trained()
    theirs = {f"module.{key}": value for key, value in convert_state_dict(model.state_dict(), format).items()}
    write(tmp_path / "epoch_16.pth", theirs, optimizer.state_dict(), zipped=zipped)
    again = load_checkpoint(tmp_path / "epoch_16.pth", backend="reference")
    assert again.source == format
    assert same(again.state_dict(), model.state_dict())
    follower = torch.optim.SGD(again.parameters(), lr=1.0)
    follower.load_state_dict(load_optimizer(tmp_path / "epoch_16.pth", again))
    assert follower.param_groups[0]["momentum"] == 0.9
    one_step(model, optimizer, 2)
    one_step(again, follower, 2)
    assert same(again.state_dict(), model.state_dict())


def test_training_of_the_authors_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """Steps taken on A_res as the authors hold it, (K*V, V) and destination-first, are steps on PA transposed."""
    model, _ = trained(steps=0, flavour="original")
    x, labels = clips(0)
    held = {key: value.detach().clone() for key, value in model.state_dict().items()}
    leaves = {}
    for key, _ in model.named_parameters():
        value = held[key]
        flat = value.mT.reshape(-1, value.shape[2]) if key.endswith("PA") else value
        leaves[key] = flat.clone().requires_grad_()
    optimizer = torch.optim.SGD(list(leaves.values()), **SETTINGS)

    def as_ours() -> dict[str, Tensor]:
        return {key: leaf.reshape(held[key].shape).mT if key.endswith("PA") else leaf for key, leaf in leaves.items()}

    for step in range(2):
        x, labels = clips(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(functional_call(model, as_ours(), (x,)), labels).backward()
        optimizer.step()
    state = {**model.state_dict(), **{key: value.detach() for key, value in as_ours().items()}}
    weights, states = write_authors(tmp_path, convert_state_dict(state, "original"), optimizer.state_dict())
    again = load_checkpoint(weights, backend="reference")
    follower = torch.optim.SGD(again.parameters(), lr=1.0)
    follower.load_state_dict(load_optimizer(states, again))
    one_step(again, follower, 2)
    x, labels = clips(2)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(functional_call(model, as_ours(), (x,)), labels).backward()
    optimizer.step()
    for key, value in as_ours().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_untransposed_momentum_would_be_another_step(tmp_path: Path) -> None:
    model, optimizer = trained(flavour="original")
    state = optimizer.state_dict()
    save_checkpoint(model, tmp_path / "a.pt", format="original", optimizer=state)
    found = load_optimizer(optimizer_file(tmp_path / "a.pt"), model)
    names = [name for name, _ in model.named_parameters()]
    number = names.index("backbone.sgcn1.0.PA")
    right = state["state"][number]["momentum_buffer"]
    assert torch.equal(found["state"][number]["momentum_buffer"], right)
    assert not torch.equal(right, right.mT)
    theirs = load_file(optimizer_file(tmp_path / "a.pt"))["optimizer_states"]["state"][number]["momentum_buffer"]
    assert theirs.shape == (3 * 25, 25)
    assert torch.equal(theirs.reshape(3, 25, 25), right.mT)


@pytest.mark.parametrize("format", ["mmaction2", "pyskl"])
def test_optimizer_goes_along_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    model, optimizer = trained()
    write_mmaction2(tmp_path / "epoch_16.pth", model.state_dict(), optimizer.state_dict())
    source, out = str(tmp_path / "epoch_16.pth"), tmp_path / "out.pth"
    assert main(["checkpoint", "convert", source, str(out), "--format", format]) == 0
    assert "optimizer state and history left out" in capsys.readouterr().out
    assert set(load_file(out)) == {"meta", "state_dict"}
    assert main(["checkpoint", "convert", source, str(out), "--format", format, "--optimizer"]) == 0
    found, expected = load_file(out)["optimizer"], optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for number, entry in expected["state"].items():
        assert torch.equal(found["state"][number]["momentum_buffer"], entry["momentum_buffer"])
    assert "no optimizer state in it" in fails(
        capsys, "checkpoint", "convert", str(_published(model, tmp_path)), str(out), "--format", format, "--optimizer"
    )
    assert "leave it out" in fails(capsys, "checkpoint", "convert", source, str(tmp_path / "a.ckpt"), "--optimizer")


def _published(model: Recognizer, folder: Path) -> Path:
    save_checkpoint(model, folder / "published.pth", format="pyskl")
    return folder / "published.pth"


def test_optimizer_of_another_network_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = optimizer.state_dict()
    write_mmcv(tmp_path / "a.pth", model.state_dict(), state)
    with pytest.raises(UserError, match=r"its momentum_buffer of backbone\.data_bn\.weight is \(150,\), expected"):
        load_optimizer(tmp_path / "a.pth", lived_in())
    state["param_groups"][0]["params"].pop()
    write_mmcv(tmp_path / "a.pth", model.state_dict(), state)
    with pytest.raises(UserError, match=r"of 458 parameters, the network has 459") as error:
        load_optimizer(tmp_path / "a.pth", model)
    assert str(tmp_path / "a.pth") in one_line(error)


def test_authors_optimizer_file_holds_no_weights(tmp_path: Path) -> None:
    model, optimizer = trained(flavour="original")
    _, states = write_authors(tmp_path, convert_state_dict(model.state_dict(), "original"), optimizer.state_dict())
    with pytest.raises(UserError, match=r"the optimizer's state alone; .*weights/weights-"):
        load_checkpoint(states)


def test_what_info_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = trained()
    write_mmaction2(tmp_path / "epoch_16.pth", model.state_dict(), optimizer.state_dict())
    found = describe_file(tmp_path / "epoch_16.pth")
    assert found["format"] == "mmaction2"
    assert found["hparams"]["num_classes"] == 5
    assert found["about"]["epoch"] == 16
    assert found["about"]["experiment_name"] == "msg3d_20230309"
    assert "cfg" not in found["about"]
    assert found["optimizer"]["arrays_of"] == 459
    assert found["optimizer"]["settings"]["weight_decay"] == 5e-4
    assert main(["checkpoint", "info", str(tmp_path / "epoch_16.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(tmp_path / "epoch_16.pth"), **found}
    assert main(["checkpoint", "info", str(tmp_path / "epoch_16.pth")]) == 0
    out = capsys.readouterr().out
    assert "format mmaction2" in out
    assert "optimizer settings: " in out


def test_fine_tuning_starts_from_a_fresh_head_that_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lived_in()
    save_checkpoint(model, tmp_path / "a.pth", format="mmaction2")
    for name in ("one", "two"):
        convert = ["checkpoint", "convert", str(tmp_path / "a.pth"), str(tmp_path / f"{name}.ckpt")]
        assert main([*convert, "--finetune", "7"]) == 0
    one, two = (load_checkpoint(tmp_path / f"{name}.ckpt") for name in ("one", "two"))
    assert one.hparams["num_classes"] == 7
    assert same(one.state_dict(), two.state_dict())
    assert same(one.backbone.state_dict(), model.backbone.state_dict())
    assert "expected 1 or more" in fails(capsys, *convert, "--finetune", "0")
    assert "leave out --finetune or --optimizer" in fails(capsys, *convert, "--finetune", "7", "--optimizer")


@pytest.mark.parametrize("name", ["model_state_dict", "model", "net"])
def test_other_places_and_prefixes(tmp_path: Path, name: str) -> None:
    model = lived_in()
    state = {f"_orig_mod.module.{key}": value for key, value in model.state_dict().items()}
    torch.save({name: state | {"data_preprocessor.mean": torch.zeros(3, 1)}, "epoch": 3}, tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt").state_dict(), model.state_dict())
