"""Configurations: what the packaged ones say, how overrides are laid over them, and one line for every mistake."""

from pathlib import Path

import pytest
import yaml

from msg3d_fast.config import PACKAGED, Config, describe, load_config, packaged_names
from msg3d_fast.errors import UserError
from msg3d_fast.experiment import open_clips

NTU = [
    f"{data}_{dimension}"
    for data in ("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset")
    for dimension in ("2d", "3d")
]


def test_every_promised_configuration_is_packaged() -> None:
    authors = {f"{name}_original" for name in AUTHORS}
    assert set(packaged_names()) >= {"quickstart", "synthetic", *NTU, "kinetics400_2d", "custom", *authors}


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_files_hold_differences_only(name: str) -> None:
    def check(values: dict, defaults: object, where: str) -> None:
        for key, value in values.items():
            default = getattr(defaults, key)
            if isinstance(value, dict):
                check(value, default, f"{where}{key}.")
            else:
                assert value != default, f"{where}{key} is the default"

    load_config(name)
    check(yaml.safe_load((PACKAGED / f"{name}.yaml").read_text()), Config(), "")


@pytest.mark.parametrize("name", ["quickstart", "synthetic"])
def test_configurations_that_bring_their_data_name_its_splits(name: str) -> None:
    config = load_config(name)
    clips = open_clips(config)
    for split in (config.data.train_split, config.data.val_split, config.data.test_split):
        assert len(clips.subset(split))


# The published hyperparameters: mmaction2 `projects/msg3d/configs` and pyskl `configs/msg3d` (80 passes as 16 epochs of
# 5, 8 GPUs x 16 clips), MS-G3D `config/*/train_joint.yaml` (where 16 or 4 x 16 clips go forward at a time).
SGD = {"optimizer": "sgd", "momentum": 0.9, "clip_grad": None, "ema": 0.0, "warmup_epochs": 0.0, "lr_batch": None}
PLAIN = {"loss": "auto", "label_smoothing": 0.0, "class_weights": None, "class_prob": None}
NATURAL = {**SGD, **PLAIN, "precision": "fp32", "sync_bn": False, "micro_batch": 16}
COSINE = {**NATURAL, "epochs": 16, "repeat": 5, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "drop_last": False}
COSINE |= {"schedule": "cosine", "milestones": []}
STEPS = {**NATURAL, "repeat": 1, "drop_last": True, "schedule": "step", "gamma": 0.1}
NTU_STEPS = {**STEPS, "batch_size": 32, "lr": 0.05, "weight_decay": 5e-4}
AUTHORS = {
    "ntu60_xsub": NTU_STEPS | {"epochs": 50, "milestones": [30, 40]},
    "ntu60_xview": NTU_STEPS | {"epochs": 50, "milestones": [30, 40]},
    "ntu120_xsub": NTU_STEPS | {"epochs": 60, "milestones": [30, 50]},
    "ntu120_xset": NTU_STEPS | {"epochs": 60, "milestones": [30, 50]},
    "kinetics": STEPS | {"epochs": 65, "milestones": [45, 55], "batch_size": 128, "lr": 0.1, "weight_decay": 3e-4},
}
NETWORK = {"base_channels": 96, "num_person": 2, "tcn_dropout": 0.0, "head_dropout": 0.0}


def holds(section: object, expected: dict) -> None:
    assert {key: getattr(section, key) for key in expected} == expected


@pytest.mark.parametrize("name", [*NTU, "kinetics400_2d"])
@pytest.mark.parametrize("stream", ["j", "b", "jm", "bm"])
def test_mmaction2s_and_pyskls_recipes(name: str, stream: str) -> None:
    flat = name.endswith("2d")
    for theirs in ("mmaction2", "pyskl"):
        overrides = [f"--data.stream={stream}", f"--data.semantics={theirs}", f"--model.flavour={theirs}"]
        config = load_config(name, overrides)
        classes = {"ntu60": 60, "ntu120": 120}.get(name.split("_")[0], 400)
        holds(config.train, COSINE)
        holds(config.model, {**NETWORK, "num_gcn_scales": 13, "num_g3d_scales": 6, "flavour": theirs})
        holds(config.model, {"layout": "coco" if flat else "nturgb+d", "num_classes": classes})
        holds(config.data, {"clip_len": 100, "stream": stream, "normalize": "2d" if flat else "3d"})
        assert config.data.augment == Config().data.augment  # none
        holds(config.test, {"num_clips": 10, "average": "prob"})
        if name in NTU:
            split = name.split("_")[1]
            holds(config.data, {"train_split": f"{split}_train", "test_split": f"{split}_val"})
        assert config.name == name + ("" if stream == "j" else f"_{stream}")


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_recipe(name: str) -> None:
    config = load_config(f"{name}_original")
    kinetics = name == "kinetics"
    scales = {"num_gcn_scales": 8, "num_g3d_scales": 8} if kinetics else {"num_gcn_scales": 13, "num_g3d_scales": 6}
    holds(config.train, AUTHORS[name])
    holds(config.model, {**NETWORK, **scales, "flavour": "original", "layout": "openpose" if kinetics else "nturgb+d"})
    holds(config.data, {"clip_len": 300, "semantics": "original", "normalize": "none" if kinetics else "3d"})
    holds(config.test, {"num_clips": 1})
    assert config.model.num_classes == {"ntu60": 60, "ntu120": 120}.get(name.split("_")[0], 400)
    assert config.data.train_split == ("train" if kinetics else name.split("_")[1] + "_train")


def test_overrides_keep_their_types() -> None:
    overrides = ["--train.lr=1e-2", "train.epochs=3", "--data.stream=bm", "--name=7", "--model.num_person=null"]
    config = load_config("ntu60_xsub_2d", overrides)
    assert config.train.lr == 0.01
    assert config.train.epochs == 3
    assert (config.data.stream, config.name, config.model.num_person) == ("bm", "7", None)
    assert load_config("custom", ["--train.lr=1"]).train.lr == 1.0
    lists = load_config("custom", ["--train.milestones=[3, 5]", "--train.class_weights=[1, 2e-1]"])
    assert (lists.train.milestones, lists.train.class_weights) == ([3, 5], [1.0, 0.2])
    assert load_config("custom", ["--train.class_prob={0: 2, 3: 0.5}"]).train.class_prob == {0: 2, 3: 0.5}
    assert load_config("custom").train.milestones == []
    layout = "{num_node: 2, inward: [[1, 0]], center: 0}"
    assert load_config("custom", [f"--model.layout={layout}"]).model.layout == yaml.safe_load(layout)


def test_run_name_tells_configuration_and_stream() -> None:
    assert load_config("custom").name == "custom"
    assert load_config("custom", ["--data.stream=jm"]).name == "custom_jm"
    assert load_config("quickstart").name == "quickstart"


def test_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config("quickstart", ["--train.lr=0.3", "--data.augment.scale=0.2"])
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    assert load_config(file, ["--train.lr=0.4"]).train.lr == 0.4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--train.epoch=3", ["'train.epoch'", "did you mean 'epochs'"]),
        ("--trian.epochs=3", ["'trian'", "did you mean 'train'"]),
        ("--data.augment.flop=1", ["'data.augment.flop'", "did you mean 'flip'"]),
        ("--train.lr=fast", ["train.lr", "'fast'", "a number"]),
        ("--train.epochs=1.5", ["train.epochs", "1.5", "a whole number"]),
        ("--train.epochs=true", ["train.epochs", "True", "a whole number"]),
        ("--train.epochs=0", ["train.epochs", "0", "at least 1"]),
        ("--train.lr=.nan", ["train.lr", "nan"]),
        ("--train.lr=.inf", ["train.lr", "inf", "at least 0"]),
        (f"--train.lr=1{400 * '0'}", ["train.lr", "inf"]),
        ("--train.lr_batch=0", ["train.lr_batch", "0", "at least 1"]),
        (f"--seed={2**63}", ["seed", "at most"]),
        ("--model.num_gcn_scales=65", ["model.num_gcn_scales", "at most 64"]),
        ("--model.head_dropout=2", ["model.head_dropout", "at most 1"]),
        ("--data.stream=joint", ["data.stream", "'joint'", "j, b, jm, bm"]),
        ("--train=3", ["train", "section"]),
        ("--train.lr.x=3", ["'train.lr.x'"]),
        ("--model.layout={a", ["model.layout", "YAML"]),
        ("--name=2026-02-30", ["name", "2026-02-30", "YAML"]),
        (f"--name={2000 * '['}", ["name", "[[[", "YAML"]),
        ("--train.lr", ["--train.lr", "--train.epochs=2"]),
        ("--train.milestones=3", ["train.milestones", "3", "a list"]),
        ("--train.milestones=[3, x]", ["train.milestones[1]", "'x'", "a whole number"]),
        ("--train.milestones=[0]", ["train.milestones[0]", "at least 1"]),
        ("--train.class_weights=[1, a]", ["train.class_weights[1]", "'a'", "a number"]),
        ("--train.class_weights=[1, .nan]", ["train.class_weights[1]", "nan", "a finite number"]),
    ],
)
def test_mistakes_are_named_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config("custom", [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_mistakes_in_files_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for content, words in (
        ("train:\n  epochz: 3\n", ["mine.yaml", "train.epochz", "'epochs'"]),
        ("train: [1", ["mine.yaml", "YAML"]),
        ("name: 2026-02-30", ["mine.yaml", "YAML"]),
        (2000 * "[", ["mine.yaml", "YAML"]),
        ("- a\n", ["mine.yaml", "list"]),
    ):
        file.write_text(content)
        with pytest.raises(UserError) as caught:
            load_config(file)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_config("quikstart")
    with pytest.raises(UserError, match="not found"):
        load_config(tmp_path / "absent.yaml")


def test_description_lists_every_setting() -> None:
    text = describe()
    for key in ("--train.batch_size=128", "--data.augment.flip=0.0", "--seed=0", "--test.num_clips=10"):
        assert key in text
