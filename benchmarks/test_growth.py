"""Time and memory against clips, frames, joints and scales, one varied at a time, beside the operation count."""

import pytest

from msg3d_fast import fuse

from .harness import compare
from .rivals import eager
from .workload import Trainer, clips, flops, labels, network, saved_bytes, tree

pytestmark = pytest.mark.full
BASE = {"N": 2, "T": 100, "V": 17, "K": 13}
AXES = {"N": (1, 2, 4, 8), "T": (50, 100, 200, 400), "V": (11, 17, 25, 50), "K": (3, 6, 9, 13)}


@pytest.mark.parametrize(
    ("axis", "value"), [(axis, value) for axis, values in AXES.items() for value in values], ids=lambda part: str(part)
)
def test_growth(benchmark, axis: str, value: int) -> None:
    size = BASE | {axis: value}
    N, T, layout = size["N"], size["T"], tree(size["V"])
    scales = {"num_gcn_scales": size["K"], "num_g3d_scales": (size["K"] + 1) // 2}
    trainer = Trainer("fast", layout, **scales)
    x = clips(layout, N, T)
    saved = saved_bytes(lambda: trainer.loss(x, labels(N)), trainer.model)
    ours, plain = fuse(network(layout, **scales).eval()), eager(network(layout, "reference", **scales).eval(), x)
    compare(
        benchmark,
        lambda: ours(x),
        {"eager": lambda: plain(x)},
        seconds=3,
        kind="growth",
        case={"axis": axis, "value": value},
        flops=flops(network(layout, **scales), N, T),
        saved_bytes=saved,
    )
