"""Blocks and whole networks against upstream's numbers: outputs, every gradient, every batch statistic."""

from functools import cache
from pathlib import Path

import golden_files
import pytest
import torch
from golden_files import expected, load, results
from tolerance import assert_as_good_as_eager, error
from torch import Tensor

CASES = [pytest.param(path, mode, id=f"{path.stem}-{mode}") for path, mode in golden_files.cases()]
BACKENDS = ("reference", "native")


def scales(path: Path, mode: str) -> dict[str, float]:
    """What an error of each result is relative to.

    Gradients of parameters to the largest of them, for a bias before a batch normalisation has none but rounding; the
    loss, a sum, to the sum of its magnitudes.
    """
    exact = expected(path, mode)
    largest = max(value.abs().max().item() for key, value in exact.items() if key.startswith("gp/"))
    scale = {key: largest if key.startswith("gp/") else value.abs().max().item() for key, value in exact.items()}
    return scale | {"loss": (exact["out"] * load(path)["g"]).abs().sum().item()}


def groups(found: dict[str, Tensor], path: Path, mode: str) -> dict[str, float]:
    """The error of each group of results: out, loss, gx, gp, b, stage."""
    scale = scales(path, mode)
    worst: dict[str, float] = {}
    for key, exact in expected(path, mode).items():
        group = key.partition("/")[0]
        worst[group] = max(worst.get(group, 0.0), error(found[key], exact, scale[key]))
    return worst


@cache
def eager_error(path: Path, mode: str) -> dict[str, float]:
    return groups(results(path, mode, "reference", torch.float32), path, mode)


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_file_and_module_name_the_same_results(path: Path, mode: str) -> None:
    found, named = set(results(path, mode, "reference", torch.float32)), set(expected(path, mode))
    assert named <= found
    assert all(key.startswith("stage/") for key in found - named)  # a selection may leave out what stands in between


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("path", "mode"), CASES)
def test_float64_agrees_to_the_rounding_of_the_file(path: Path, mode: str, backend: str) -> None:
    found, scale = results(path, mode, backend, torch.float64), scales(path, mode)
    for key, exact in expected(path, mode).items():
        deviation = (found[key].double() - exact.double()).abs()
        allowed = 2.0**-24 * exact.double().abs() + 1e-12 * scale[key]
        assert (deviation <= allowed).all(), f"{key}: off by {deviation.max():.2e}"


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_native_float32_is_as_good_as_eager(path: Path, mode: str) -> None:
    for group, found in groups(results(path, mode, "native", torch.float32), path, mode).items():
        assert_as_good_as_eager(found, eager_error(path, mode)[group], group)


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_eager_float32_is_as_good_as_upstreams_own(path: Path, mode: str) -> None:
    upstream = load(path)[f"{mode}/f32_rel_err"].tolist()
    for group, theirs in zip(("out", "gx"), upstream, strict=True):
        assert eager_error(path, mode)[group] <= 10 * theirs
