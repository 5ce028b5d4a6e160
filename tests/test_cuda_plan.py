"""The plan of ms_g3d for GPUs, which needs none: the code that runs there, asked for any device, and forced."""

import os
import subprocess
import sys
from collections.abc import Iterator

import emulated
import pytest
import torch
from emulated import raw
from problems import Problem, reference_answer
from test_plan import LAYERS
from tolerance import error

from msg3d_fast import _library, ops
from msg3d_fast._library import Sizes

LIMITS = {
    name: dict(zip(("arch", "multiprocessors", "shared_bytes"), numbers, strict=True))
    for name, numbers in emulated.DEVICES.items()
}


def plan(layer: str, device: str, dtype: torch.dtype = torch.bfloat16, **options: object) -> dict[str, object]:
    (C, V), K, O, window = LAYERS[layer]  # noqa: E741
    return _library.cuda_plan(Sizes((4, C, 100, V), K, O, *window), dtype=dtype, limits=LIMITS[device], **options)


@pytest.fixture
def forced() -> Iterator[None]:
    yield
    _library.set_cuda_plan("auto")


@pytest.mark.parametrize("device", ["A100", "RTX 3090", "H100"])
@pytest.mark.parametrize("layer", LAYERS)
def test_tensor_cores_where_there_are_any(layer: str, device: str) -> None:
    found = plan(layer, device)
    kind = "few_channels" if "stage1" in layer else "frames" if "gcn" in layer else "windows"
    assert found["kernel"] == kind
    assert found["tile"]
    assert found["shared_bytes"] <= LIMITS[device]["shared_bytes"]
    assert found["blocks"] >= found["waves"] >= 1
    assert all(lost["tile"] and lost["why"] for lost in found["rejected"])


def test_refusals_say_why() -> None:
    assert plan("stage2_gcn", "T4")["refused"] == "tensor cores for this need compute capability 8.0"
    assert plan("stage2_gcn", "H100", torch.float32)["refused"] == "float32 runs in full precision"
    assert plan("stage2_gcn", "H100", torch.float32)["kernel"] == "plain"
    assert plan("stage2_gcn", "H100", torch.float64, tf32=True)["refused"] == "float64 has no tensor-core path"


@pytest.mark.parametrize("device", ["A100", "RTX 3090", "H100"])
@pytest.mark.parametrize("layer", LAYERS)
def test_tf32_fits_or_says_what_it_needs(layer: str, device: str) -> None:
    found = plan(layer, device, torch.float32, tf32=True)
    kind = "few_channels" if "stage1" in layer else "frames" if "gcn" in layer else "windows"
    if found["kernel"] == "plain":  # layer's smallest tile is larger than a block may be
        assert kind == "windows"
        assert f"a block may have {LIMITS[device]['shared_bytes']}" in found["refused"]
    else:
        assert found["kernel"] == kind
        assert found["shared_bytes"] <= LIMITS[device]["shared_bytes"]
    small = f"no tile of four warps fits into {LIMITS[device]['shared_bytes']} bytes of shared memory"
    small = small if (layer, device) == ("stage1_w5", "RTX 3090") else ""  # five frames of 25 joints at once
    assert found["backward"]["input_refused"] == (small and f"grad_x: {small}")
    assert found["backward"]["parameters_refused"] == (small and f"grad_weight: {small}")


def test_the_collapse_has_a_plan_of_its_own() -> None:
    alone, with_it = (plan("stage2_w5", "A100", collapse=channels) for channels in (0, 192))
    assert with_it["kernel"] == "windows"
    assert with_it["workspace_bytes"] > alone["workspace_bytes"]


def test_sizes_and_devices_that_are_none() -> None:
    limits = LIMITS["A100"]
    with pytest.raises(RuntimeError, match="plan: sizes of no valid problem"):
        _library.cuda_plan(Sizes((1, 3, 1, 5), 2, 8, 2), dtype=torch.float32, limits=limits)
    with pytest.raises(RuntimeError, match="plan: limits of no device: compute capability 8, 0 multiproc"):
        _library.cuda_plan(Sizes((1, 3, 9, 5), 2, 8), dtype=torch.float32, limits=limits | {"multiprocessors": 0})
    with pytest.raises(RuntimeError, match="plan: dtype is int8; expected float32"):
        _library.cuda_plan(Sizes((1, 3, 9, 5), 2, 8), dtype=torch.int8, limits=limits)


def test_a_tile_can_be_forced(forced: None) -> None:
    usual = plan("stage2_gcn", "A100")
    other = next(lost["tile"] for lost in usual["rejected"] if "slower" in lost["why"])
    _library.set_cuda_plan(other)
    found = plan("stage2_gcn", "A100")
    assert (found["tile"], found["forced"], usual["forced"]) == (other, True, False)
    assert {"tile": usual["tile"], "why": "another one is forced"} in found["rejected"]
    windows = plan("stage2_w5", "A100")  # has no tile of that name
    assert not windows["forced"]
    assert windows["kernel"] == "windows"


def test_the_plain_path_can_be_forced(forced: None) -> None:
    _library.set_cuda_plan("plain")
    found = plan("stage2_w5", "A100")
    assert (found["kernel"], found["refused"], found["forced"]) == ("plain", "forced", True)
    assert found["backward"] == {"input_refused": "forced", "parameters_refused": "forced"}


def test_the_environment_forces_it() -> None:
    code = (
        "import torch; from msg3d_fast import _library;"
        "limits = dict(arch=80, multiprocessors=108, shared_bytes=166912);"
        "sizes = _library.Sizes((4, 96, 100, 17), 13, 96);"
        "print(_library.cuda_plan(sizes, dtype=torch.bfloat16, limits=limits)['kernel'])"
    )
    environment = {**os.environ, "MSG3D_CUDA_PLAN": "plain"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "plain\n"


@pytest.mark.usefixtures("emulated_backend")
def test_what_is_forced_is_what_runs() -> None:
    """On the emulator: another tile gives the same values, the plain path needs one launch instead of two."""
    problem = Problem("forced", N=1, C=48, O=48, K=2, V=17, T=5)
    inputs = {name: tensor.detach() for name, tensor in problem.inputs(torch.bfloat16).items()}
    exact, eager = (reference_answer(problem, dtype)["y"] for dtype in (torch.float64, torch.bfloat16))
    sizes = Sizes((problem.N, problem.C, problem.T, problem.V), problem.K, problem.O)
    limits = _library.device_limits(backend="emulated")
    assert limits == LIMITS["A100"]
    launches = {}
    for name in ("auto", "1 frame of 24", "plain"):
        raw.ms_g3d_set_cuda_plan(name)
        found = _library.cuda_plan(sizes, dtype=torch.bfloat16, limits=limits, backend="emulated")
        assert found["forced"] == (name != "auto")
        assert name in (found["tile"], found["kernel"], "auto") or name in found["tile"]
        before = raw.launches()
        y = ops.ms_g3d(*inputs.values(), backend="emulated", window_size=1)
        launches[name] = raw.launches() - before
        assert error(y, exact) <= 2 * error(eager, exact) + 2.0**-21
    assert launches == {"auto": 2, "1 frame of 24": 2, "plain": 1}
