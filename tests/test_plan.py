"""The plan of ms_g3d: a pure function of sizes that counts operations and bounds the workspace."""

import json
import os
import subprocess
import sys

import pytest
import torch

from msg3d_fast import _library
from msg3d_fast._library import Sizes
from msg3d_fast.errors import UserError

DIRECTIONS = ("forward", "backward_input", "backward_parameters")
LAYERS = {  # (C, V), K, O, window: the default network's layers
    "stage1_gcn": ((3, 17), 13, 96, (1, 1, 1)),
    "stage1_w5": ((3, 25), 6, 96, (5, 1, 1)),
    "stage2_gcn": ((96, 17), 13, 96, (1, 1, 1)),
    "stage2_w5": ((96, 17), 6, 192, (5, 2, 1)),
    "stage3_gcn": ((192, 25), 13, 192, (1, 1, 1)),
    "stage3_w3": ((192, 25), 6, 192, (3, 2, 1)),
}


def plan(layer: str, N: int = 4, T: int = 100, **options: object) -> dict[str, object]:
    (C, V), K, O, window = LAYERS[layer]  # noqa: E741
    return _library.plan(Sizes((N, C, T, V), K, O, *window), **options)


@pytest.mark.parametrize("layer", LAYERS)
def test_fewer_operations_win(layer: str) -> None:
    chosen = plan(layer)
    counts = {order: chosen[f"{order}_macs"] for order in ("project_first", "aggregate_first")}
    assert chosen["order"] == min(counts, key=counts.get)
    assert chosen["order"] == ("aggregate_first" if layer.startswith("stage1") else "project_first")
    assert not chosen["forced"]


def test_the_counts_are_the_products() -> None:
    found = _library.plan(Sizes((2, 4, 10, 5), 3, 16, 3, 2, 1))
    T_out, nodes, outputs = 5, 15, -(-16 // found["panel_width"]) * found["panel_width"]
    assert found["project_first_macs"] == 2 * outputs * (10 * 5 * 3 * 4 + T_out * 3 * nodes * nodes)
    assert found["aggregate_first_macs"] == 2 * T_out * nodes * 3 * 4 * (nodes + outputs)


@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_workspace_grows_neither_with_batch_nor_with_time(layer: str, direction: str, float64: bool) -> None:
    options = {"direction": direction, "float64": float64}
    usual = plan(layer, 8, 100, **options)  # enough for every part of the parameters' sums
    for N, T in ((8, 300), (64, 100), (256, 3000)):
        larger = plan(layer, N, T, **options)
        assert (larger["shared_bytes"], larger["worker_bytes"]) == (usual["shared_bytes"], usual["worker_bytes"])


@pytest.mark.parametrize("layer", LAYERS)
def test_workspace_is_far_below_the_aggregate(layer: str) -> None:
    """Eager materialises (N, K*C, T_out, tau*V); the forward pass on one thread needs a small part of it."""
    (C, V), K, _, (tau, stride, _) = LAYERS[layer]
    found = plan(layer, 32, 300)
    aggregate = 4 * 32 * K * C * (300 // stride) * tau * V
    assert found["shared_bytes"] + found["worker_bytes"] < aggregate / 4


def test_an_order_can_be_forced() -> None:
    for order in ("project_first", "aggregate_first"):
        _library.set_order(order)
        try:
            assert plan("stage1_gcn")["order"] == order
            assert plan("stage1_gcn")["forced"]
        finally:
            _library.set_order("auto")
    with pytest.raises(UserError, match="order of evaluation is 'middle_first'; expected one of auto, project_first"):
        _library.set_order("middle_first")


def test_an_unknown_instruction_set() -> None:
    with pytest.raises(UserError, match=r"instruction set is 'mmx'; expected auto or .*: .*portable"):
        _library.set_isa("mmx")


def test_sizes_that_are_no_problem() -> None:
    with pytest.raises(RuntimeError, match="plan: sizes of no valid problem"):
        _library.plan(Sizes((1, 3, 1, 5), 2, 8, 2))
    with pytest.raises(RuntimeError, match="plan: pass is sideways; expected forward, backward_input or backward_p"):
        _library.plan(Sizes((1, 3, 8, 5), 2, 8), direction="sideways")


def in_a_new_process(environment: dict[str, str]) -> dict[str, object]:
    code = "import json; from msg3d_fast import _library; print(json.dumps(_library.info()))"
    environment = {**os.environ, **environment}
    return json.loads(
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    )


def test_environment_variables() -> None:
    found = in_a_new_process({"MSG3D_ISA": "portable", "MSG3D_ORDER": "aggregate_first"})
    assert found["available"]
    assert found["isa"] == found["wide_isa"] == "portable"
    found = in_a_new_process({"MSG3D_ISA": "mmx"})
    assert not found["available"]
    assert found["reason"].startswith("MSG3D_ISA or MSG3D_ORDER in the environment is wrong: instruction set is 'mmx'")


def test_info_without_a_gpu() -> None:
    found = _library.info()
    assert found["available"]
    assert {found["isa"], found["wide_isa"]} <= set(found["supported_isas"])
    runtime = found["cuda_runtime"]
    assert (runtime is None) == (not found["cuda_archs"])
    if runtime and not torch.cuda.is_available():
        assert runtime["devices"] == []
        assert runtime["error"] != 0, "a build with CUDA code asks the runtime, and says why there is no device"
