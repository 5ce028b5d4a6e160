"""A published result reproduced: the data checked, recipe, seeds and test run, mean and spread beside the figure.

The recipes stand in recipes.yaml. A run that was stopped goes on where it was, and finished parts are not run again.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import data, training
from .config import Config, load_config, suggest
from .ensemble import ensemble
from .errors import UserError
from .run_folder import RunFolder

RECIPES = Path(__file__).with_name("recipes.yaml")
STREAMS = ("j", "b", "jm", "bm")
FUSIONS = {"2s": ("j", "b"), "4s": STREAMS}
TITLES = {
    "j": "joint",
    "b": "bone",
    "jm": "joint motion",
    "bm": "bone motion",
    "2s": "joint + bone, 1:1",
    "4s": "all four, 2:2:1:1",
}


@dataclass(frozen=True)
class Recipe:
    """What is run, on which data, and what was published; see the head of recipes.yaml."""

    name: str
    config: str
    clips: Mapping[str, int]
    published: Mapping[str, float | str]
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None

    def settings_for(self, stream: str, seed: int) -> list[str]:
        """The overrides of the configuration for one run."""
        return [*(f"{key}={value}" for key, value in self.settings.items()), f"data.stream={stream}", f"seed={seed}"]


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    content = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    return {name: Recipe(name=name, **entry) for name, entry in content.items()}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    known = recipes()
    if name not in known:
        raise UserError(f"recipe {name!r}: unknown; {suggest(name, list(known))}")
    return known[name]


def reproduce(
    name: str,
    out: str | Path,
    *,
    data_path: str | Path | None = None,
    seeds: Sequence[int] = (0,),
    streams: Sequence[str] = STREAMS,
    overrides: Sequence[str] = (),
    any_data: bool = False,
) -> dict[str, Any]:
    """Checks the data, trains and tests every stream with every seed, fuses them, and writes the comparison.

    Args:
        name: of the recipe.
        out: folder; holds seed<S>/<stream> with a run each, seed<S>/2s and seed<S>/4s, reproduce.json and .md.
        data_path: the data set; by default where the recipe's configuration looks for it.
        seeds: one run of every stream for each.
        streams: which to run; fusions need theirs.
        overrides: "a.b=value" settings that differ from the recipe; the comparison names them.
        any_data: go on although the data are not those of the recipe; the comparison says so.

    Returns:
        The content of reproduce.json: `top1` in percent by stream and seed, `mean`, `spread`, `published`, `notes`.

    Raises:
        UserError: an unknown recipe or stream, or data that are not the recipe's.
    """
    recipe = find_recipe(name)
    place = [] if data_path is None else [f"data.path={data_path}"]
    settings = _settings(recipe, seeds, streams, [*overrides, *place])
    configs = {run: load_config(recipe.config, some) for run, some in settings.items()}
    notes = check_data(recipe, next(iter(configs.values())), any_data=any_data)
    notes += [f"with {' '.join(overrides)}"] if overrides else []
    out = Path(out)
    top1: dict[str, dict[str, float]] = {}
    for (seed, stream), config in configs.items():
        print(f"{recipe.name}: seed {seed}, {TITLES[stream]}", flush=True)
        metrics = _run(config, out / f"seed{seed}" / stream)
        top1.setdefault(stream, {})[str(seed)] = round(100 * metrics["top1"], 2)
    for fusion, members in FUSIONS.items():
        for seed in seeds if set(members) <= set(streams) else ():
            folder = out / f"seed{seed}"
            metrics = ensemble([folder / stream for stream in members], folder / fusion)
            top1.setdefault(fusion, {})[str(seed)] = round(100 * metrics["top1"], 2)
    result = {
        "recipe": recipe.name,
        "config": recipe.config,
        "settings": dict(recipe.settings),
        "top1": top1,
        "mean": {key: round(float(np.mean(list(one.values()))), 2) for key, one in top1.items()},
        "spread": {
            key: round(float(np.std(list(one.values()), ddof=1)), 2) for key, one in top1.items() if len(one) > 1
        },
        "published": dict(recipe.published),
        "source": recipe.source,
        "notes": notes,
    }
    with RunFolder(out, option="--out") as folder:
        folder.write("reproduce.md", table(result))
        folder.write("reproduce.json", json.dumps(result, indent=2) + "\n")
    return result


def _settings(
    recipe: Recipe, seeds: Sequence[int], streams: Sequence[str], more: Sequence[str]
) -> dict[tuple[int, str], list[str]]:
    """The overrides of every run, by seed and stream."""
    if unknown := [stream for stream in streams if stream not in STREAMS]:
        raise UserError(f"stream {unknown[0]!r}: unknown; {suggest(unknown[0], list(STREAMS))}")
    if not seeds or not streams:
        raise UserError("reproduce: no seeds or no streams; give at least one of each")
    return {(seed, stream): [*recipe.settings_for(stream, seed), *more] for seed in seeds for stream in streams}


def check_data(recipe: Recipe, config: Config, *, any_data: bool = False) -> list[str]:
    """One line about the data, if they are the recipe's: the fingerprint, or the counts where none is known.

    Raises:
        UserError: no data, or others, unless `any_data`.
    """
    path = config.data.path
    if path is None:
        raise UserError(f"reproduce {recipe.name}: no data given; add --data=FILE")
    clips = data.open_dataset(path, layout=config.model.layout)
    splits = {"train": config.data.train_split, "test": config.data.test_split}
    found = {key: len(clips.subset(split) if split else clips) for key, split in splits.items()}
    found["classes"] = clips.num_classes
    wrong = [key for key in found if found[key] != recipe.clips[key]]
    ours, theirs = (", ".join(f"{counts[key]} {key}" for key in wrong) for counts in (found, recipe.clips))
    what = f"{ours} where the recipe has {theirs}" if wrong else ""
    fingerprint = clips.fingerprint(np.dtype("float16"))
    if not what and recipe.fingerprint not in (None, fingerprint):
        what = f"fingerprint {fingerprint[:12]} where the recipe has {recipe.fingerprint[:12]}"
    if what and not any_data:
        raise UserError(
            f"reproduce {recipe.name}: {path} is not the data set of the recipe: {what}; prepare it again, or go on "
            "with --any-data, which the comparison will say"
        )
    if what:
        return [f"other data than the recipe's: {what}"]
    checked = "fingerprint" if recipe.fingerprint else "counts of clips and classes"
    return [f"data checked by {checked}, {fingerprint[:12]}"]


def table(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table, accuracies in percent."""
    lines = [
        f"{result['recipe']}: `{result['config']}`" + "".join(f" `--{k}={v}`" for k, v in result["settings"].items()),
        "",
        "| stream | top-1 | spread | seeds | published |",
        "|---|---:|---:|---:|---:|",
    ]
    for key in (key for key in TITLES if key in result["top1"]):
        spread = f"{result['spread'][key]:.2f}" if key in result["spread"] else ""
        published = result["published"].get(key, "")
        lines.append(
            f"| {TITLES[key]} | {result['mean'][key]:.2f} | {spread} | {len(result['top1'][key])} | {published} |"
        )
    lines += ["", f"Published: {result['source']}.", *(f"Note: {note}." for note in result["notes"])]
    return "\n".join(lines) + "\n"


def commands(
    name: str,
    out: str | Path,
    *,
    data_path: str | Path | None = None,
    seeds: Sequence[int] = (0,),
    streams: Sequence[str] = STREAMS,
    overrides: Sequence[str] = (),
) -> list[str]:
    """The single commands that `reproduce` with the same arguments stands for, to share them out over devices or
    machines; lines for a shell."""
    recipe, lines = find_recipe(name), []
    place = [] if data_path is None else [f"data.path={data_path}"]
    settings = _settings(recipe, seeds, streams, [*overrides, *place])
    for seed in seeds:
        folder = f"{out}/seed{seed}"
        for stream in streams:
            some = settings[seed, stream]
            load_config(recipe.config, some)  # what is wrong with them, here and not on every machine
            words = ["train", "--config", recipe.config, "--run-dir", f"{folder}/{stream}"]
            lines.append(shlex.join(["msg3d-fast", *words, *(f"--{setting}" for setting in some)]))
        for fusion, members in FUSIONS.items():
            if set(members) <= set(streams):
                files = [f"{folder}/{stream}" for stream in members]
                lines.append(shlex.join(["msg3d-fast", "ensemble", *files, "--out", f"{folder}/{fusion}"]))
    return lines


def _run(config: Config, folder: Path) -> dict[str, Any]:
    """The metrics of a run, from its folder if it is finished there with the same settings."""
    try:
        if (folder / "config.yaml").read_text() == config.to_yaml():
            return json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        pass
    return training.train(config, folder)
