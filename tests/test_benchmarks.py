"""The benchmarks' own machinery: alternation, parity before ratios, counts, the report. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness, report, rivals, run, workload
from msg3d_fast import Recognizer

ROOT = Path(__file__).resolve().parents[1]


class Fixture:
    """What `compare` uses of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict = {}
        self.rounds = 0

    def pedantic(self, call, setup=None, rounds=1, iterations=1):
        self.rounds = rounds
        for _ in range(rounds):
            if setup:
                setup()
            result = call()
        return result


def test_contenders_take_turns():
    order: list[str] = []
    fixture = Fixture()
    contenders = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    harness.compare(fixture, lambda: order.append("ours"), contenders, seconds=0, pause=0, kind="eval")
    assert fixture.rounds == harness.FEWEST_ROUNDS
    # One round of warming up, longer than all the time there is; then a call to begin with and one that counts.
    there, back = ["a", "b", "ours"], ["b", "a", "ours"]
    assert order == there + [name for turn in (back, there, back) for name in turn for _ in range(2)]
    for taken in [fixture.extra_info, *fixture.extra_info["rivals"].values()]:
        assert taken["first"] > 0
    assert set(fixture.extra_info["rivals"]) == {"a", "b"}
    assert fixture.extra_info["kind"] == "eval"


def test_long_calls_are_not_repeated(monkeypatch):
    monkeypatch.setattr(harness, "LONG", 0)
    order: list[str] = []
    fixture = Fixture()
    harness.compare(fixture, lambda: order.append("ours"), {"a": lambda: order.append("a")}, seconds=0, pause=0)
    assert order == ["a", "ours"] * (1 + fixture.rounds)
    assert "first" not in fixture.extra_info
    assert "first" not in fixture.extra_info["rivals"]["a"]


def test_a_quick_contender_gets_many_rounds_but_not_endless_ones():
    fixture = Fixture()
    harness.compare(fixture, lambda: None, {}, seconds=1, pause=0)
    assert fixture.rounds == harness.MOST_ROUNDS


def test_summary_is_median_and_minimum():
    assert harness.summary([3.0, 1.0, 2.0, 100.0]) == {"median": 2.5, "min": 1.0}
    assert harness.summary([1.0], first=[3.0, 5.0, 4.0]) == {"median": 1.0, "min": 1.0, "first": 4.0}


def test_unequal_results_have_no_ratio():
    exact = torch.randn(100, dtype=torch.float64)
    eager = exact.float()
    harness.assert_parity(eager.clone(), eager, exact)
    with pytest.raises(AssertionError, match="unequal results"):
        harness.assert_parity(eager + 1e-4, eager, exact)


def test_rivals_that_fail_or_differ_are_named():
    expected = torch.ones(3)

    def broken():
        raise ValueError("no such thing\nsecond line")

    calls = {"same": lambda: torch.ones(3), "other": lambda: torch.zeros(3), "broken": broken}
    kept, refused = harness.keep_equal(calls, expected)
    assert list(kept) == ["same"]
    assert refused == {
        "other": "gives another result: relative error 1",
        "broken": "ValueError: no such thing",
    }


def test_a_rival_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    calls, missing = rivals.build(["eager", "OpenVINO"], nn.Identity(), torch.zeros(1))
    assert list(calls) == ["eager"]
    assert missing == {"OpenVINO": "openvino is not installed"}


@pytest.mark.parametrize("layout", workload.LAYOUTS.values())
def test_operations_are_those_that_torch_counts(layout):
    model = Recognizer(layout, backend="reference").to("meta").eval()
    x = torch.empty(1, 2, 100, model.layout.num_joints, 3, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    upstream, best = (workload.flops(model, 1, 100, order) for order in ("upstream", "best"))
    assert upstream == counter.get_total_flops()
    assert 0.8 < best / upstream < 0.9


def test_blocks_are_all_blocks_of_the_network():
    model = Recognizer("coco", base_channels=12, backend="reference")
    found = workload.blocks(model, N=1, T=20)
    # Each stage: a graph convolution per frame, three temporal blocks, a window block and its two graph convolutions.
    assert len(found) == 3 * 7
    assert {block.name for block in found} == set(workload.block_names())
    shapes = {block.name: block.shape for block in found}
    assert shapes["sgcn1.0"] == (2, 3, 20, 17)
    assert shapes["tcn3"] == (2, 48, 5, 17)
    for block in found:
        assert block.module(torch.zeros(block.shape)).shape[0] == 2


def test_saved_bytes_count_each_storage_once_and_no_parameters():
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(8, 4)
    assert workload.saved_bytes(lambda: layer(x), layer) == x.nbytes
    y = torch.randn(8, 4, requires_grad=True)
    assert workload.saved_bytes(lambda: y * y.view(4, 8).view(8, 4), layer) == y.nbytes


@pytest.mark.parametrize("present", [(2,), (1,), (2, 1, 1)])
def test_clips_hold_the_persons_that_they_say(present):
    x = workload.clips("coco", 5, 4, present)
    found = (x != 0).flatten(2).any(2).sum(1)
    assert found.tolist() == [present[n % len(present)] for n in range(5)]


@pytest.fixture
def results() -> dict:
    """What pytest-benchmark writes, with easy numbers."""

    def case(kind: str, median: float, rivals: dict, **extra) -> dict:
        stats = {"median": median, "min": median, "rounds": 5, "data": [median] * 5}
        series = {name: {"median": seconds, "min": seconds} for name, seconds in rivals.items()}
        return {"name": kind, "stats": stats, "extra_info": {"kind": kind, "rivals": series, **extra}}

    size = {"skeleton": "coco-17", "frames": 100}
    clip = size | {"clips": 1}
    taken = {"eager": 0.3, "OpenVINO": 0.2, harness.SGEMM: 0.1}
    benchmarks = [
        case("eval", 0.1, taken, case=clip | {"persons": 2}, flops=9e9, sgemm_flops=10e9),
        case("eval", 0.05, taken, case=clip | {"persons": 1}, flops=4e9, sgemm_flops=10e9),
        case("training", 1.0, {"eager": 3.0, "low": 1.5}, case=size | {"clips": 4, "persons": "all present"}),
        case("threads", 0.1, {"1 thread": 0.19}, case=clip | {"persons": 2}, first=0.11),
        case("data", 0.02, {}, case={"clips": 128, "stream": "joint", "kept": "store"}),
        case("first result", 9.0, {"eager": 1.0}, case=clip | {"persons": 1}, seconds=0.5),
    ]
    benchmarks[3]["extra_info"]["rivals"]["1 thread"]["first"] = 0.198
    benchmarks[0]["extra_info"]["not_measured"] = {"TorchScript": "RuntimeError: out of luck"}
    for contender, megabytes in (("eager", 240), ("fast", 70), ("low", 50)):
        for kind in ("saved for backward", "peak memory"):
            benchmarks.append(case(kind, 1.0, {}, case=clip | {"contender": contender}, bytes_per_clip=1e6 * megabytes))
    tiles = [{"size": [17, 1, 1, 96, 96], "times": 3, "gflops": gflops} for gflops in (99.0, 92.0)]
    benchmarks.append(case("tiles", 1.0, {}, case={"skeleton": "coco-17"}, tiles=tiles, sgemm_gflops=100.0))
    for value in (1, 2, 4):
        info = {"case": {"axis": "N", "value": value}, "flops": 1e9 * value, "saved_bytes": 1e6 * value}
        benchmarks.append(case("growth", 0.1 * value**2, {"eager": 1.0}, **info))
    machine = {"cpu": "A CPU", "threads": 2, "cores": 2, "isa": "AVX2", "torch": "2.13", "load": 0.1}
    commit = {"id": "0123456789abcdef", "dirty": False}
    return {
        "machine_info": {"msg3d_fast": machine},
        "commit_info": commit,
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": benchmarks,
    }


def test_report_states_ratios_and_what_is_missing(results, tmp_path):
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(results))
    found = report.load(path)
    text = report.write(found, tmp_path)
    assert "A CPU, 2 threads of 2 cores" in text
    assert "commit 0123456789" in text
    where = "eval, coco-17, 1 clip of 100 frames, two persons"
    assert f"- TorchScript not measured (RuntimeError: out of luck): {where}\n" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["eval, coco-17, two persons: OpenVINO / ours"] == ["2", "×", "≥ 2", "yes"]
    assert by_name["eval, coco-17, one person in two slots: eager / ours"] == ["6", "×", "≥ 5.2", "yes"]
    assert by_name["training, coco-17, all present: eager / ours"] == ["3", "×", "≥ 2.8", "yes"]
    assert by_name["saved for backward, msg3d_fast, memory=low"] == ["50", "MB per clip", "≤ 45", "no"]
    assert by_name["1 to 2 threads, coco-17, 2 persons"] == ["1.9", "×", "≥ 1.85", "yes"]
    assert by_name["1 to 2 threads, coco-17, 2 persons, first call after a pause"] == ["1.8", "×", "", ""]
    same = by_name["eval, coco-17, two persons: OpenVINO / ours, first call after a pause"]
    assert same == ["2", "×", "", ""]  # long calls are not repeated
    assert by_name[f"share of {harness.SGEMM}'s rate, eval, coco-17"] == ["90", "%", "≥ 80", "yes"]
    slowest = f"slowest of 2 sizes of product / {harness.SGEMM}, 1 thread, coco-17"
    assert by_name[slowest] == ["92", "%", "≥ 90", "yes"]
    assert by_name["fuse and first result, coco-17"] == ["0.5", "s", "≤ 1", "yes"]
    assert by_name["data pipeline, joint, from store"] == ["6,400", "clips/s", "≥ 4000", "yes"]
    assert by_name["N"] == ["1 2 4", "1.00", "2.00", "0.00", "1.00"]
    for plot in ("time.png", "memory.png"):
        assert 0 < (tmp_path / plot).stat().st_size < 100_000


def test_no_process_measures_nothing(capsys):
    with pytest.raises(SystemExit):
        run.main(["--processes", "0"])
    assert "--processes is 0, expected 1 or more" in capsys.readouterr().err


def test_kept_results_are_compact(results, tmp_path):
    results["benchmarks"][0]["stats"]["median"] = 0.123456789
    found = report.compact(results)
    assert found["results"][0]["median"] == 0.12346
    assert not any("data" in record or "stats" in record for record in found["results"])
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(found))
    assert report.load(path) == found


def test_several_processes_count_by_their_median(results):
    runs = []
    for ours, openvino in ((0.1, 0.2), (0.3, 0.1), (0.2, 0.6)):
        results["benchmarks"][0]["stats"] |= {"median": ours, "min": ours / 2}
        times = {"median": openvino, "min": openvino / 2, "first": 2 * openvino}
        results["benchmarks"][0]["extra_info"]["rivals"]["OpenVINO"] = times
        runs.append(report.compact(json.loads(json.dumps(results | {"benchmarks": results["benchmarks"][:1]}))))
    del runs[2]["results"][0]["rivals"]["eager"]
    found = report.median_of([report.compact(results), *runs])["results"]
    assert [found[0][key] for key in ("median", "min", "rounds", "processes")] == [0.2, 0.05, 20, 4]
    assert found[0]["rivals"]["OpenVINO"] == {"median": 0.4, "min": 0.05, "first": 0.8}
    assert found[0]["rivals"]["eager"] == {"median": 0.3, "min": 0.3}
    assert "processes" not in found[2]
    text = report.markdown({**report.compact(results), "results": found})
    assert "Single clips and threads: the median of 4 processes." in text


def test_cases_are_collected_without_the_rivals():
    script = "import sys; sys.modules.update(openvino=None, onnxruntime=None, onnx=None); import pytest; "
    script += "sys.exit(pytest.main(['benchmarks', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "benchmarks/test_network.py::test_eval[coco-17-1-100-two-persons]" in done.stdout
    assert "32-300" not in done.stdout  # what takes an hour waits for --full
