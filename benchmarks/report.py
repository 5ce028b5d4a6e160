"""From the results of a run to the README's tables and two plots.

    python -m benchmarks.report benchmarks/results/quick.json [--out FOLDER]

prints Markdown and writes time.png (a clip against rivals) and memory.png (a training step against its frames).
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .harness import SGEMM
from .rivals import RIVALS

Record = dict[str, Any]
LIBRARY = "msg3d_fast"
OURS = {"fast": "msg3d_fast, memory=fast", "low": "msg3d_fast, memory=low", "eager": "eager"}
COLOURS = {"fast": "C0", "low": "C2", "eager": "C1"}


def compact(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping of pytest-benchmark's JSON: the machine, and each case's medians and extra_info."""
    results = []
    for case in raw["benchmarks"]:
        stats, extra = case["stats"], case["extra_info"]
        results.append({"name": case["name"], **{key: stats[key] for key in ("median", "min", "rounds")}, **extra})
    return {
        "machine": raw["machine_info"].get(LIBRARY, {}),
        "date": raw["datetime"],
        "commit": raw["commit_info"].get("id", "")[:10] + ("+" if raw["commit_info"].get("dirty") else ""),
        "results": _rounded(results),
    }


def median_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the first of several runs, each in its own process, with the median of every case's medians in all."""

    def middle(series: Sequence[Record]) -> Record:
        found = {"median": statistics.median(s["median"] for s in series), "min": min(s["min"] for s in series)}
        first = [s["first"] for s in series if "first" in s]
        return found | {"first": statistics.median(first)} if first else found

    results = []
    for result in runs[0]["results"]:
        same = [result, *(other for run in runs[1:] for other in run["results"] if other["name"] == result["name"])]
        rivals = {
            name: middle([one["rivals"][name] for one in same if name in one["rivals"]])
            for name in result.get("rivals", {})
        }
        rounds = sum(one["rounds"] for one in same)
        merged = {**result, **middle(same), "rounds": rounds, "rivals": rivals, "processes": len(same)}
        results.append(merged if len(same) > 1 else result)
    return {**runs[0], "results": _rounded(results)}


def _rounded(value: Any) -> Any:
    """Keep five digits of every float: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def load(path: Path) -> dict[str, Any]:
    """Read the results of `benchmarks.run`, or pytest-benchmark's own JSON."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return compact(found) if "benchmarks" in found else found


def of_kind(results: Iterable[Record], kind: str, **case: object) -> list[Record]:
    """Return the records of one kind, and of one case as far as it is given."""
    return [r for r in results if r.get("kind") == kind and case.items() <= r["case"].items()]


def outside(record: Record) -> dict[str, float]:
    """Return the medians of the rivals that are not our own other modes, in seconds."""
    return {name: series["median"] for name, series in record["rivals"].items() if name in RIVALS}


def first_call(series: Record) -> float:
    """Return the seconds of a contender's first call after a pause; a long call's are its median."""
    return series.get("first", series["median"])


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three digits."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def describe(record: Record) -> str:
    """Return what was run, in words."""
    case = record["case"]
    persons = {1: "one person in two slots", 2: "two persons"}.get(case["persons"], case["persons"])
    clips = "1 clip" if case["clips"] == 1 else f"{case['clips']} clips"
    return f"{record['kind']}, {case['skeleton']}, {clips} of {case['frames']} frames, {persons}"


def times(results: list[Record]) -> str:
    """Return the table of times against rivals, in ms, medians."""
    rows = []
    for record in of_kind(results, "eval") + of_kind(results, "training"):
        rivals = outside(record)
        cells = [milliseconds(rivals[name]) if name in rivals else "–" for name in RIVALS]
        ratios = [f"{min(rivals.values()) / record['median']:.2f}", f"{rivals['eager'] / record['median']:.2f}"]
        rows.append([describe(record), f"**{milliseconds(record['median'])}**", *cells, *ratios])
    return table(["ms", LIBRARY, *RIVALS, "× fastest rival", "× eager"], rows)


def not_measured(results: list[Record]) -> str:
    """Return a line for each rival that is missing somewhere: why, and in which cases."""
    places: dict[tuple[str, str], list[str]] = {}
    for record in results:
        for rival, why in record.get("not_measured", {}).items():
            places.setdefault((rival, why), []).append(describe(record))
    return "\n".join(f"- {rival} not measured ({why}): {'; '.join(at)}" for (rival, why), at in places.items())


def figures(results: list[Record]) -> list[tuple[str, str, float | None, float, str]]:
    """Return (figure, at least or at most, aim, measured, unit) of everything that the project set out to reach."""
    found = []
    for persons, name, fastest, plain in ((2, "two persons", 2.0, 2.8), (1, "one person in two slots", 4.0, 5.2)):
        for r in of_kind(results, "eval", clips=1, frames=100, persons=persons):
            rivals, what = outside(r), f"eval, {r['case']['skeleton']}, {name}"
            best = min(rivals, key=rivals.__getitem__)
            found.append((f"{what}: {best} / ours", "≥", fastest, rivals[best] / r["median"], "×"))
            after_pause = first_call(r["rivals"][best]) / first_call(r)
            found.append((f"{what}: {best} / ours, first call after a pause", "≥", None, after_pause, "×"))
            found.append((f"{what}: eager / ours", "≥", plain, rivals["eager"] / r["median"], "×"))
    for persons, aim in (("all present", 2.8), ("NTU's mix", 4.0)):
        for r in of_kind(results, "training", persons=persons):
            rivals, what = outside(r), f"training, {r['case']['skeleton']}, {persons}"
            found.append((f"{what}: eager / ours", "≥", aim, rivals["eager"] / r["median"], "×"))
            low = rivals["eager"] / r["rivals"]["low"]["median"]
            found.append((f"{what}: eager / ours with memory=low", "≥", None, low, "×"))
            if "torch.compile" in rivals:
                found.append((f"{what}: torch.compile / ours", "≥", 1.0, rivals["torch.compile"] / r["median"], "×"))
    for contender, aim in (("eager", None), ("fast", 80), ("low", 45)):
        for r in of_kind(results, "saved for backward", skeleton="coco-17", contender=contender):
            found.append((f"saved for backward, {OURS[contender]}", "≤", aim, r["bytes_per_clip"] / 1e6, "MB per clip"))
    for r in of_kind(results, "eval", clips=1, frames=100, persons=2):
        share = r["flops"] / r["median"] / (r["sgemm_flops"] / r["rivals"][SGEMM]["median"])
        found.append((f"share of {SGEMM}'s rate, eval, {r['case']['skeleton']}", "≥", 80, 100 * share, "%"))
    for r in of_kind(results, "tiles"):
        slowest = min(r["tiles"], key=lambda tile: tile["gflops"])
        what = f"slowest of {len(r['tiles'])} sizes of product / {SGEMM}, 1 thread, {r['case']['skeleton']}"
        found.append((what, "≥", 90, 100 * slowest["gflops"] / r["sgemm_gflops"], "%"))
    for r in of_kind(results, "threads"):
        what = f"1 to 2 threads, {r['case']['skeleton']}, {r['case']['persons']}"
        what += {1: " person", 2: " persons"}.get(r["case"]["persons"], "")
        found.append((what, "≥", 1.85, r["rivals"]["1 thread"]["median"] / r["median"], "×"))
        after_pause = first_call(r["rivals"]["1 thread"]) / first_call(r)
        found.append((f"{what}, first call after a pause", "≥", None, after_pause, "×"))
    for r in of_kind(results, "first result"):
        found.append((f"fuse and first result, {r['case']['skeleton']}", "≤", 1, r["seconds"], "s"))
    for r in of_kind(results, "data"):
        stream, kept = r["case"]["stream"], r["case"]["kept"]
        aim = 4000 if (stream, kept) == ("joint", "store") else None
        found.append((f"data pipeline, {stream}, from {kept}", "≥", aim, r["case"]["clips"] / r["median"], "clips/s"))
    return found


def figure_rows(results: list[Record]) -> list[list[str]]:
    """Return the rows of the table of figures, each with its verdict."""
    rows = []
    for what, sense, aim, measured, unit in figures(results):
        reached = aim is None or (measured >= aim if sense == "≥" else measured <= aim)
        goal = "" if aim is None else f"{sense} {aim:g}"
        rows.append([what, f"{measured:,.0f}" if measured >= 1000 else f"{measured:.3g}", unit, goal])
        rows[-1].append("" if aim is None else "yes" if reached else "no")
    return rows


def exponent(x: list[float], y: list[float]) -> float:
    """Return b of the least-squares fit log y = a + b log x."""
    X, Y = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_x, mean_y = sum(X) / len(X), sum(Y) / len(Y)
    return sum((u - mean_x) * (v - mean_y) for u, v in zip(X, Y, strict=True)) / sum((u - mean_x) ** 2 for u in X)


def growth(results: list[Record]) -> list[list[str]]:
    """Return, for each axis, the fitted exponents of operations, time and memory against it."""
    rows = []
    for axis in ("N", "T", "V", "K"):
        points = sorted(of_kind(results, "growth", axis=axis), key=lambda r: r["case"]["value"])
        if len(points) < 2:
            continue
        values = [r["case"]["value"] for r in points]
        series = [[r["flops"] for r in points], [r["median"] for r in points]]
        series += [[r["rivals"]["eager"]["median"] for r in points], [r["saved_bytes"] for r in points]]
        rows.append([axis, " ".join(map(str, values)), *[f"{exponent(values, y):.2f}" for y in series]])
    return rows


def blocks(results: list[Record]) -> list[list[str]]:
    """Return the rows of the table of blocks and operators: forward and with backward, ours and eager's time in ms."""
    rows = []
    for r in of_kind(results, "block forward") + of_kind(results, "operator forward"):
        same = {key: r["case"][key] for key in ("skeleton", "block")}
        back = of_kind(results, r["kind"].replace("forward", "backward"), **same)
        cells = [f"{r['case']['skeleton']} {r['case']['block']}", r["case"]["module"]]
        for record in [r, *back]:
            eager = record["rivals"]["eager"]["median"]
            cells += [milliseconds(record["median"]), milliseconds(eager), f"{eager / record['median']:.2f}"]
        rows.append(cells)
    return rows


def markdown(found: dict[str, Any]) -> str:
    """Return the whole report."""
    machine, results = found["machine"], found["results"]
    about = f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, {machine['isa']}"
    about += f", torch {machine['torch']}, {found['date'][:10]}, commit {found['commit']}, load {machine['load']}"
    parts = [f"Machine: {about}. Medians of a round's second call, contenders alternately."]
    if (processes := max((r.get("processes", 1) for r in results), default=1)) > 1:
        parts[0] += f" Single clips and threads: the median of {processes} processes."
    if of_kind(results, "eval") + of_kind(results, "training"):
        parts.append(times(results))
    parts.append(not_measured(results))
    if rows := figure_rows(results):
        parts.append(table(["figure", "measured", "", "aim", "reached"], rows))
    peaks = [r["case"] | {"MB": f"{r['bytes_per_clip'] / 1e6:.0f}"} for r in of_kind(results, "peak memory")]
    if peaks:
        frames = sorted({p["frames"] for p in peaks})
        by = {(p["contender"], p["frames"]): p["MB"] for p in peaks}
        rows = [[OURS[c], *[by.get((c, T), "–") for T in frames]] for c in OURS]
        parts.append(table(["peak of a training step, MB per clip", *[f"T = {T}" for T in frames]], rows))
    if rows := growth(results):
        header = ["axis", "values", "operations", "time", "eager's time", "saved for backward"]
        parts.append("Exponents of growth:\n\n" + table(header, rows))
    if rows := blocks(results):
        header = ["block", "", "forward", "eager", "×", "with backward", "eager", "×"]
        parts.append("Blocks and operators, ms:\n\n" + table(header, rows))
    return "\n\n".join(part for part in parts if part)


def plot_times(results: list[Record], path: Path) -> None:
    """Draw ms per clip of every contender: single clips in eval mode, and training steps."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    panels = {"eval": of_kind(results, "eval", clips=1, frames=100), "training step": of_kind(results, "training")}
    panels = {title: records for title, records in panels.items() if records}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 4), squeeze=False, layout="constrained")
    names = [LIBRARY, *RIVALS]
    for axis, (title, records) in zip(axes[0], panels.items(), strict=True):
        for row, record in enumerate(records):
            taken = {LIBRARY: record["median"], **outside(record)}
            shown = [name for name in names if name in taken]
            for place, name in enumerate(shown):
                ms = 1e3 * taken[name] / record["case"]["clips"]
                axis.barh(row + 0.13 * (place - (len(shown) - 1) / 2), ms, 0.13, color=f"C{names.index(name)}")
        kinds = {1: "one person", 2: "two persons"}
        ticks = [f"{r['case']['skeleton']}\n{kinds.get(r['case']['persons'], r['case']['persons'])}" for r in records]
        axis.set(title=title, xlabel="ms per clip of 100 frames", yticks=range(len(records)), yticklabels=ticks)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=f"C{place}", label=name) for place, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(names), frameon=False, fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot_memory(results: list[Record], path: Path) -> None:
    """Draw the peak memory of a training step against the frames of its clips."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for contender, label in OURS.items():
        points = sorted((r["case"]["frames"], r["bytes_per_clip"] / 1e6) for r in _peaks(results, contender))
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", color=COLOURS[contender], label=label)
    axis.set(xlabel="frames", ylabel="peak of a training step, MB per clip", xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _peaks(results: list[Record], contender: str) -> list[Record]:
    return of_kind(results, "peak memory", contender=contender)


def write(found: dict[str, Any], folder: Path) -> str:
    """Write the plots that the results allow into `folder`; return the Markdown."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    results = found["results"]
    if of_kind(results, "eval", clips=1, frames=100) + of_kind(results, "training"):
        plot_times(results, folder / "time.png")
    if of_kind(results, "peak memory"):
        plot_memory(results, folder / "memory.png")
    return markdown(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the plots; default the results'")
    arguments = parser.parse_args()
    print(write(load(arguments.results), arguments.out or arguments.results.parent))


if __name__ == "__main__":
    main()
