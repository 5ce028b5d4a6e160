"""Configurations: what the packaged ones say, how overrides are laid over them, and one line for every mistake."""

from pathlib import Path

import pytest
import yaml

from msg3d_fast.config import PACKAGED, Config, describe, load_config, packaged_names
from msg3d_fast.errors import UserError

NTU = [
    f"{data}_{dimension}"
    for data in ("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset")
    for dimension in ("2d", "3d")
]


def test_every_promised_configuration_is_packaged() -> None:
    assert set(packaged_names()) >= {"quickstart", "synthetic", *NTU, "kinetics400_2d", "custom"}


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


@pytest.mark.parametrize("name", NTU)
def test_published_recipes_keep_the_upstream_schedule(name: str) -> None:
    config = load_config(name)
    t = config.train
    assert (t.lr, t.batch_size, t.momentum, t.weight_decay, t.epochs, t.repeat) == (0.1, 128, 0.9, 5e-4, 16, 5)
    assert (config.data.clip_len, config.test.num_clips, config.test.average) == (100, 10, "prob")
    assert config.model.num_classes == (60 if name.startswith("ntu60") else 120)
    assert config.model.layout == ("coco" if name.endswith("2d") else "nturgb+d")
    assert config.data.train_split == name.split("_")[1] + "_train"


def test_overrides_keep_their_types() -> None:
    overrides = ["--train.lr=1e-2", "train.epochs=3", "--data.stream=bm", "--name=7", "--model.num_person=null"]
    config = load_config("ntu60_xsub_2d", overrides)
    assert config.train.lr == 0.01
    assert config.train.epochs == 3
    assert (config.data.stream, config.name, config.model.num_person) == ("bm", "7", None)
    assert load_config("custom", ["--train.lr=1"]).train.lr == 1.0
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
        ("--model.head_dropout=2", ["model.head_dropout", "at most 1"]),
        ("--data.stream=joint", ["data.stream", "'joint'", "j, b, jm, bm"]),
        ("--train=3", ["train", "section"]),
        ("--train.lr.x=3", ["'train.lr.x'"]),
        ("--model.layout={a", ["model.layout", "YAML"]),
        ("--train.lr", ["--train.lr", "--train.epochs=2"]),
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
