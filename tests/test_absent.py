"""Absent persons computed once: the padded computation's outputs, gradients and statistics."""

import copy
from pathlib import Path

import pytest
import torch
from test_distributed import torchrun
from torch import Tensor, nn

from msg3d_fast import Recognizer, UserError, absent

SIZE = {"base_channels": 12, "num_gcn_scales": 3, "num_g3d_scales": 2, "num_classes": 5}

# (clips, persons absent as (clip, slot))
BATCHES = {
    "nobody": (3, []),
    "one": (3, [(1, 1)]),
    "some_second": (4, [(0, 1), (2, 1)]),
    "all_second": (3, [(0, 1), (1, 1), (2, 1)]),
    "both_slots": (4, [(0, 0), (1, 0), (1, 1), (3, 1)]),
    "everybody": (2, [(0, 0), (0, 1), (1, 0), (1, 1)]),
    "single_clip": (1, [(0, 1)]),
}


def model(**options: object) -> Recognizer:
    """In float64, with biases that keep every ReLU away from an input of exactly zero."""
    network = Recognizer("coco", **SIZE, **options).double().train()
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    return network


def clips(name: str) -> Tensor:
    count, missing = BATCHES[name]
    x = torch.randn(count, 2, 9, 17, 3, dtype=torch.float64)
    for clip, slot in missing:
        x[clip, slot] = 0
    x[0, 0, :4] = 0 if (0, 0) in missing else x[0, 0, :4] * 0  # zero in some frames only is present
    return x


def results(network: Recognizer, x: Tensor) -> dict[str, Tensor]:
    out = network(x)
    nn.functional.cross_entropy(out, torch.arange(len(x))).backward()
    found = {"out": out.detach(), **{f"gp/{name}": p.grad for name, p in network.named_parameters()}}
    return found | {f"b/{name}": buffer.clone() for name, buffer in network.named_buffers()}


def rows_computed(network: Recognizer, x: Tensor) -> int:
    seen = []
    handle = network.backbone.tcn3.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    network(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BATCHES)
def test_results_are_those_of_the_padded_computation(name: str, training: bool, memory: str) -> None:
    network, x = model(memory=memory).train(training), clips(name)
    padded = copy.deepcopy(network)
    padded.backbone.skip_absent = False
    upstream = copy.deepcopy(network)
    upstream.backend = "reference"
    found = results(network, x)
    for other in (padded, upstream):
        for key, exact in results(other, x).items():
            torch.testing.assert_close(found[key], exact, rtol=1e-10, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("name", "rows"), [("nobody", 6), ("one", 6), ("some_second", 7), ("both_slots", 6)])
def test_one_row_for_all_absent_of_a_slot(name: str, rows: int) -> None:
    assert rows_computed(model(), clips(name)) == rows
    assert rows_computed(model().eval(), clips(name)) == rows
    assert rows_computed(model(skip_absent=False), clips(name)) == 2 * BATCHES[name][0]


def test_merge_names_rows_and_copies() -> None:
    merged = absent.merge(clips("both_slots"))
    assert merged is not None
    assert merged.rows.tolist() == [0, 1, 3, 4, 5, 6]
    assert merged.row_of.tolist() == [0, 1, 0, 2, 3, 4, 5, 2]
    assert merged.multiplicity.tolist() == [2, 1, 2, 1, 1, 1]
    assert absent.merge(clips("one")) is None


def test_a_person_without_numbers_is_present() -> None:
    x = clips("all_second")
    x[:, 1, 0, 0, 0] = torch.nan
    assert absent.merge(x) is None


def test_gradients_of_the_clips_are_those_of_the_padded_computation() -> None:
    network, x = model(), clips("some_second")
    grads = []
    for skip_absent in (True, False):
        network.backbone.skip_absent = skip_absent
        leaf = x.clone().requires_grad_()
        network(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
    assert grads[0][2, 1].any()


def test_not_merged_where_copies_would_differ_or_statistics_not_know() -> None:
    x = clips("some_second")
    assert rows_computed(model(tcn_dropout=0.5), x) == 8
    assert rows_computed(model(tcn_dropout=0.5).eval(), x) == 7
    assert rows_computed(model(backend="reference"), x) == 8
    frozen = model()
    frozen.backbone.tcn1.branches[0][1].eval()
    assert rows_computed(frozen, x) == 8


# What each of two processes does: a step on clips of its own, some of which lack persons, gradients averaged by DDP.
DISTRIBUTED = """
import sys
import torch
from test_absent import clips, model, results
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
network = model()
torch.manual_seed(1 + rank)
found = results(torch.nn.parallel.DistributedDataParallel(network), clips(("some_second", "one")[rank]))
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_each_process_merges_its_own(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(DISTRIBUTED)
    done = torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr
    exact = []
    for rank, name in enumerate(("some_second", "one")):
        torch.manual_seed(0)
        padded = model(skip_absent=False)
        torch.manual_seed(1 + rank)
        exact.append(results(padded, clips(name)))
    for rank in range(2):
        found = {key.replace("module.", ""): value for key, value in torch.load(tmp_path / f"{rank}.pt").items()}
        for key in exact[0]:
            expected = (exact[0][key] + exact[1][key]) / 2 if key.startswith("gp/") else exact[rank][key]
            torch.testing.assert_close(found[key], expected, rtol=1e-10, atol=1e-10)


def test_unknown_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"memory is 'huge', expected fast or low"):
        Recognizer("coco", **SIZE, memory="huge")
