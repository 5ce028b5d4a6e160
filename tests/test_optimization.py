"""What surrounds an optimizer step: clipping, averages, mixed precision, and stopping at what is not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import config, write_clips

from msg3d_fast import training
from msg3d_fast.checkpoint import load_checkpoint, load_file
from msg3d_fast.config import TrainConfig
from msg3d_fast.errors import UserError
from msg3d_fast.optimization import Descent
from msg3d_fast.run_folder import RunFolder
from msg3d_fast.training import Trainer

STEP = np.arange(8)


def trainer(clips: Path, folder: Path, *more: str) -> Trainer:
    with RunFolder(folder) as run:
        return Trainer(config(clips, "--model.tcn_dropout=0", *more), run, torch.device("cpu"))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def line(steps: int = 3, **changes: object) -> tuple[list[float], Descent]:
    """A descent along y = x^2 / 2 from x = 1: where it went."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    descent = Descent(model, TrainConfig(epochs=10, schedule="step", weight_decay=0.0, **changes), 1)
    places = []
    for step in range(steps):
        descent.begin(step)
        descent.backward(model(model.weight).sum() / 2)
        assert descent.finish()
        places.append(model.weight.item())
    return places, descent


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_steps_are_torchs(kind: str) -> None:
    places, descent = line(optimizer=kind, lr=0.1, momentum=0.8)
    x = torch.ones(1, requires_grad=True)
    optimizer = {
        "sgd": lambda: torch.optim.SGD([x], 0.1, 0.8, nesterov=True),
        "adam": lambda: torch.optim.Adam([x], 0.1, (0.8, 0.999)),
        "adamw": lambda: torch.optim.AdamW([x], 0.1, (0.8, 0.999), weight_decay=0),
    }[kind]()
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        (x * x / 2).sum().backward()
        optimizer.step()
        expected.append(x.item())
    assert places == pytest.approx(expected, rel=1e-6)
    assert descent.tested is descent.model


def test_weights_decay_everywhere(clips: Path, tmp_path: Path) -> None:
    t = trainer(clips, tmp_path / "run")
    (group,) = t.descent.optimizer.param_groups
    assert len(group["params"]) == len(list(t.model.parameters()))
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (5e-4, 0.9, True)


def test_long_gradients_are_clipped() -> None:
    places, _ = line(lr=0.5, momentum=0.0, clip_grad=0.25)
    assert places == pytest.approx([0.875, 0.75, 0.625], rel=1e-5)
    places, _ = line(lr=0.5, momentum=0.0, clip_grad=2.0)
    assert places == pytest.approx([0.5, 0.25, 0.125])


def test_average_of_the_weights() -> None:
    places, descent = line(lr=0.5, momentum=0.0, ema=0.75)
    average = places[0]
    for place in places[1:]:
        average = 0.75 * average + 0.25 * place
    assert descent.tested.weight.item() == pytest.approx(average)
    with pytest.raises(UserError, match=r"train\.ema is 1"):
        line(ema=1.0)


def test_overflow_in_half_precision_lowers_the_scale_and_then_stops() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    descent = Descent(model, TrainConfig(precision="fp16", ema=0.5), 1)
    before, halved = model.weight.item(), 0
    for step in range(20):
        descent.begin(step)
        descent.backward(model(torch.ones(1, 1)).sum() * float("inf"))
        if not descent.finish():
            break
        halved += 1
        assert model.weight.item() == before
    assert halved == 16  # from 65536 to 1
    assert descent._average.n_averaged == 0


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.95), ("fp16", 0.99)])
def test_mixed_precision_gives_nearly_the_same_gradient(
    clips: Path, tmp_path: Path, precision: str, least: float
) -> None:
    found = []
    for chosen in ("fp32", precision):
        t = trainer(clips, tmp_path / chosen, f"--train.precision={chosen}", "--train.lr=0")
        t._step(t._load(STEP), STEP)
        assert next(t.model.parameters()).dtype == torch.float32
        found.append(gradient(t.model))
    assert not torch.equal(*found)
    assert torch.cosine_similarity(*found, dim=0) > least
    assert found[0].norm() == pytest.approx(float(found[1].norm()), rel=0.1)


def test_a_run_with_everything_goes_on_bit_for_bit(clips: Path, tmp_path: Path) -> None:
    options = [
        "--train.epochs=2",
        "--train.repeat=1",
        "--train.micro_batch=8",
        "--train.ema=0.9",
        "--train.precision=fp16",
        "--train.optimizer=adamw",
        "--train.lr=0.01",
        "--train.clip_grad=1",
        "--train.warmup_epochs=0.5",
        "--train.class_prob=balanced",
        "--train.class_weights=effective",
        "--train.loss=focal",
        "--train.save_every=1",
        "--train.drop_last=true",
    ]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run = config(clips, *options)
    training.train(run, straight)
    with RunFolder(broken) as folder:
        t = Trainer(run, folder, torch.device("cpu"))
        saves, save = [], t._save

        def stop() -> None:
            save()
            saves.append(1)
            if len(saves) == 3:
                raise InterruptedError

        t._save = stop
        with pytest.raises(InterruptedError):
            t.run()
    training.train(run, broken)
    one, other = (load_file(folder / "last.ckpt") for folder in (straight, broken))
    for part in ("state_dict", "weights"):
        a, b = (state["training"].get(part) or state[part] for state in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a), part
    averaged, raw = one["state_dict"]["cls_head.fc.weight"], one["training"]["weights"]["cls_head.fc.weight"]
    assert not torch.equal(averaged, raw)
    assert torch.equal(load_checkpoint(straight / "last.ckpt").cls_head.fc.weight, averaged)
    scores = [np.load(folder / "scores.npz")["scores"] for folder in (straight, broken)]
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_layer_and_the_clips_are_named(clips: Path, tmp_path: Path, precision: str) -> None:
    t = trainer(clips, tmp_path / "run", f"--train.precision={precision}")
    place = "backbone.sgcn2.1.branches.2.0"
    bad = [3, 5]

    def poison(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[[i for i in range(len(output)) if i in bad]] = float("inf")
        return output

    t.model.get_submodule(place).register_forward_hook(poison)
    t.model.backend = "reference"  # the fused step has no such layer
    t.config.train.micro_batch = 8
    with pytest.raises(UserError) as caught:
        t._step(t._load(STEP), STEP)
    message = str(caught.value)
    assert "\n" not in message
    assert "epoch 1, iteration 1: the first value that is not finite is in the output of " + place in message
    named = [word for word in message.split() if word.startswith("clip") and word[4:].isdigit()]
    assert sorted(named) == sorted(t.train.clipset.frame_dir[STEP[i]] for i in bad)


def test_clips_that_overflow_are_named_largest_first(tmp_path: Path) -> None:
    path = write_clips(tmp_path / "clips.npz")
    arrays = dict(np.load(path))
    rows = np.cumsum(arrays["total_frames"]) - arrays["total_frames"]
    arrays["keypoints"][rows[4] + 1, 2] = 1e25
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"in the statistics of backbone\.data_bn, in clips clip04 \(up to 1e\+25\)"):
        training.train(config(path, "--data.normalize=none", "--data.augment.scale=0"), tmp_path / "run")


def test_the_loss_and_gradients_are_watched_too(clips: Path, tmp_path: Path) -> None:
    t = trainer(clips, tmp_path / "run")
    loss = t.loss

    class Broken(type(loss)):
        def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.where(labels == 2, super().__call__(logits, labels) * float("nan"), 1.0 * logits[:, 0])

    t.loss = Broken("auto", 4)
    with pytest.raises(UserError, match=r"not finite is in the loss, in clips clip\d\d") as caught:
        t._step(t._load(STEP), STEP)
    named = [word for word in str(caught.value).split() if word.startswith("clip") and word[4:].isdigit()]
    assert all(int(name[4:]) % 4 == 2 for name in named)

    t.loss = loss
    t.model.cls_head.fc.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(UserError, match=r"in the gradient of cls_head\.fc\.weight"):
        t._step(t._load(STEP), STEP)
