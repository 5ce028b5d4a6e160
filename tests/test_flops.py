"""Parameters and multiply-adds: against the published networks' tables and against what torch counts."""

from pathlib import Path

import pytest
import torch
from tiny import fails
from torch.utils.flop_counter import FlopCounterMode

from msg3d_fast import _library, flops
from msg3d_fast.checkpoint import save_checkpoint
from msg3d_fast.cli import main
from msg3d_fast.config import load_config
from msg3d_fast.model import Recognizer

COCO = {  # parameters by child, of the network that MMAction2 builds
    "data_bn": 204,
    "gcn3d1": 137_292,
    "sgcn1": 33_389,
    "tcn1": 12_800,
    "gcn3d2": 318_732,
    "sgcn2": 224_781,
    "tcn2": 50_176,
    "gcn3d3": 1_094_604,
    "sgcn3": 882_029,
    "tcn3": 198_656,
    "fc": 23_100,
}
MILLIONS = {  # multiply-adds of a clip of 100 frames and two persons, by hand: aggregation, convolution
    "gcn3d1.gcn3d.0.gcn3d.1": (9.36, 17.63),
    "gcn3d1.gcn3d.1.out_conv": (0, 156.67),
    "gcn3d2.gcn3d.1.gcn3d.1": (416.16, 470.02),
    "gcn3d3.gcn3d.0.out_conv": (0, 188.01),
    "sgcn2.0": (72.13, 407.35),
    "sgcn2.1": (0, 109.67),
    "sgcn3.2": (0, 167.12),
    "tcn1": (0, 41.78),
    "fc": (0, 0.02),
}


def test_tables_of_the_published_network() -> None:
    layers = {layer.name: layer for layer in flops.count(flops.network(load_config("ntu60_xsub_2d")))}
    found = dict.fromkeys(COCO, 0)
    for name, layer in layers.items():
        found[name.split(".")[0]] += layer.parameters
    assert found == COCO
    for name, (aggregation, convolution) in MILLIONS.items():
        assert layers[name].aggregation / 1e6 == pytest.approx(aggregation, abs=0.005), name
        assert layers[name].convolution / 1e6 == pytest.approx(convolution, abs=0.005), name
    assert sum(layer.aggregation for layer in layers.values()) / 1e9 == pytest.approx(1.314, abs=5e-4)
    assert sum(layer.convolution for layer in layers.values()) / 1e9 == pytest.approx(5.496, abs=1e-3)


@pytest.mark.parametrize(("name", "total"), [("ntu60_xsub_3d", 3_194_595), ("kinetics_original", 3_144_328)])
def test_parameters_are_the_published_ones(name: str, total: int) -> None:
    layers = flops.count(flops.network(load_config(name)), frames=8)
    assert sum(layer.parameters for layer in layers) == total


@torch.no_grad()
def test_torch_counts_the_same() -> None:
    model = Recognizer(layout="hand21", num_classes=5, base_channels=7, num_person=1, backend="reference").eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, 1, 13, 21, 3))
    layers = flops.count(model, frames=13)
    assert 2 * sum(layer.aggregation + layer.convolution for layer in layers) == counter.get_total_flops()


@pytest.mark.skipif(not _library.available(), reason="plans come from the native library")
def test_ours_is_the_plans_count() -> None:
    layers = flops.count(flops.network(load_config("ntu60_xsub_2d")))
    for layer in layers:
        if layer.order:
            assert layer.ours <= layer.aggregation + layer.convolution or layer.order == "aggregate_first"
        else:
            assert layer.ours == layer.convolution
    orders = {layer.name: layer.order for layer in layers}
    assert orders["gcn3d3.gcn3d.1.gcn3d.1"] == "project_first"
    third = next(layer for layer in layers if layer.name == "sgcn3.0")
    projected, aggregated = 13 * 384 // 2 * 192 * 17, 13 * 192 * 17**2  # per frame: 192 channels to 13 x 192, then A
    assert third.ours == 2 * 50 * (projected + aggregated)


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--config", "ntu60_xsub_2d", "--model.num_classes=120"]) == 0
    text = capsys.readouterr().out
    assert "2,998,863" in text
    assert "6.810 G" in text
    save_checkpoint(Recognizer(layout="coco", num_classes=4, base_channels=6), tmp_path / "net.ckpt")
    assert main(["flops", str(tmp_path / "net.ckpt"), "--frames", "20"]) == 0
    assert "(1, 4)" in capsys.readouterr().out
    assert "model.layout and model.num_classes" in fails(capsys, "flops", "--config", "custom")
    assert "--config" in fails(capsys, "flops")
    assert "expected at least 1" in fails(capsys, "flops", "--config", "ntu60_xsub_2d", "--frames", "0")
    assert "leave one out" in fails(capsys, "flops", str(tmp_path / "net.ckpt"), "--config", "ntu60_xsub_2d")
    assert "--model.x=1" in fails(capsys, "flops", str(tmp_path / "net.ckpt"), "--model.x=1")
