"""Alternate measurement: every contender once per round, a pause before each, medians over the rounds.

After a pause a contender is called twice, and the second call is its time: it finds caches and processor as its own
work leaves them, not as another's did. What the first call took is kept beside it. Idle cores need some milliseconds to
come up to speed, which counts for more the shorter a call is.

A processor is also slower for a while after it had both cores busy, so another rival is the first of each round, and
another one the last before ours.

A shared machine drifts by more than the differences that matter, so only ratios within one run are claimed. Ours is
timed by pytest-benchmark; its rivals run in the set-up of each of its rounds and stand in the same record, under
`extra_info`:

    rivals         {name: {"median": seconds, "min": seconds, "first": seconds}}
    first          seconds: ours, the first call after a pause, median
    not_measured   {name: why}

The pause lets one OpenMP, TBB or own thread pool stop spinning before the next one is timed.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PAUSE = 0.03  # seconds
LONG = 0.5  # seconds: how so long a call began matters little, and it is not repeated
FEWEST_ROUNDS, MOST_ROUNDS = 3, 40
SGEMM = "torch.mm 2048^3"
OURS = "ours"
SGEMM_FLOPS = 2 * 2048**3


def summary(seconds: Sequence[float], first: Sequence[float] = ()) -> dict[str, float]:
    """Return median and minimum of a series of timings, and the median of the first calls if there were such."""
    found = {"median": statistics.median(seconds), "min": min(seconds)}
    return found | {"first": statistics.median(first)} if first else found


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference over the norm of `exact`, in double precision."""
    exact = exact.detach().double()
    return float((found.detach().double() - exact).norm() / exact.norm().clamp_min(1e-300))


def assert_parity(found: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Assert that `found` errs against float64 at most twice as much as eager's float32, plus a tiny floor."""
    ours, theirs = relative_error(found, exact), relative_error(eager, exact)
    assert ours <= 2 * theirs + 1e-7, f"relative error {ours:.2g}, eager has {theirs:.2g}: no ratio of unequal results"


def keep_equal(
    calls: Mapping[str, Callable[[], Tensor]], expected: Tensor, tolerance: float = 1e-4
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Split rivals into those that compute `expected` and those that do not or fail: (calls, {name: why not})."""
    kept, refused = {}, {}
    for name, call in calls.items():
        try:
            error = relative_error(call(), expected)
        except Exception as problem:  # a rival's failure is a finding about the rival
            refused[name] = failure(problem)
            continue
        if error <= tolerance:
            kept[name] = call
        else:
            refused[name] = f"gives another result: relative error {error:.1g}"
    return kept, refused


def failure(problem: Exception) -> str:
    """Return the one line that says why a rival is not measured."""
    if isinstance(problem, ModuleNotFoundError):
        return f"{problem.name} is not installed"
    return f"{type(problem).__name__}: {(str(problem).strip() or 'no message').splitlines()[0][:120]}"


def compare(
    benchmark: Any,
    ours: Callable[[], object],
    rivals: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 8.0,
    pause: float = PAUSE,
    not_measured: Mapping[str, str] | None = None,
    threads: Mapping[str, int] | None = None,
    **info: object,
) -> None:
    """Time `ours` through pytest-benchmark and every rival between its rounds.

    Args:
        benchmark: pytest-benchmark's fixture.
        ours: what the case is about.
        rivals: name -> call with the same result.
        seconds: about how long to measure; decides the number of rounds, at least 3 and at most 40.
        pause: seconds of sleep before each contender.
        not_measured: name -> why, of the rivals that are missing.
        threads: name -> number of threads, set before its time is taken; "ours" is ours. The rest have the process's.
        info: what else the record shall hold.
    """
    calls = {**rivals, OURS: ours}
    first: dict[str, list[float]] = {name: [] for name in calls}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    repeated: set[str] = set()
    everyone, threads = torch.get_num_threads(), threads or {}
    turns, order = itertools.count(), list(rivals)

    def prepare(name: str) -> None:
        torch.set_num_threads(threads.get(name, everyone))
        time.sleep(pause)
        if name in repeated:
            first[name].append(timed(calls[name]))

    def others() -> None:
        begin = next(turns) % max(1, len(order))
        for name in order[begin:] + order[:begin]:
            prepare(name)
            taken[name].append(timed(rivals[name]))
        prepare(OURS)

    for _ in range(2):  # the first call of each allocates, packs and compiles
        start = time.perf_counter()
        others()
        taken[OURS].append(timed(ours))
        one_round = time.perf_counter() - start
        if one_round > seconds / 4:
            break
    repeated |= {name for name, series in taken.items() if series[-1] <= LONG}
    one_round += sum(taken[name][-1] for name in repeated)
    for series in taken.values():
        series.clear()
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / one_round)))
    benchmark.pedantic(ours, setup=others, rounds=rounds, iterations=1)
    torch.set_num_threads(everyone)
    benchmark.extra_info.update(info)
    benchmark.extra_info["rivals"] = {name: summary(taken[name], first[name]) for name in rivals}
    if first[OURS]:
        benchmark.extra_info["first"] = statistics.median(first[OURS])
    benchmark.extra_info["not_measured"] = dict(not_measured or {})


def record(benchmark: Any, measured: Callable[[], Mapping[str, object]], **info: object) -> None:
    """Put what `measured()` returns on record; the time that it takes is recorded too, as nobody's claim."""
    benchmark.extra_info.update(benchmark.pedantic(measured, rounds=1, iterations=1), **info)


def sgemm() -> Callable[[], Tensor]:
    """Return a call of torch.mm on two matrices of 2048 x 2048, whose rate counts as the machine's peak."""
    a, b = torch.randn(2, 2048, 2048)
    out = torch.empty(2048, 2048)
    return lambda: torch.mm(a, b, out=out)


def with_threads(threads: int, call: Callable[[], object]) -> Callable[[], object]:
    """Return `call` run on so many threads; restores the number afterwards."""

    def run() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return call()
        finally:
            torch.set_num_threads(before)

    return run
