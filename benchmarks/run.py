"""One command: measure, keep the results, print the report.

    python -m benchmarks.run --quick        # every figure of the table of aims, a quarter of an hour on two cores
    python -m benchmarks.run --full         # also long clips, batches, every block, growth: more than an hour
    python -m benchmarks.run --quick -k eval

Cases are pytest-benchmark's (`python -m pytest benchmarks`); what this adds is the compact results file, the report,
the warning that the machine has other work, and more than one process: where memory lies is a matter of luck, which
moves a contender's medians by up to a tenth from process to process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from msg3d_fast.bench import busy

from .report import compact, median_of, write

FOLDER = Path(__file__).parent
REPEATED = "(test_eval and 1-100) or test_threads"
NOTHING_SELECTED = 5  # pytest's exit code
SELECTED = Path("runs/benchmarks/selected.json")  # a part must not replace the results of a whole run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--quick", action="store_true", help="the default")
    scope.add_argument("--full", action="store_true")
    parser.add_argument("--compile-training", action="store_true", help="torch.compile the training step too: minutes")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--processes", type=int, default=5, help="for single clips and 1 to 2 threads; the rest has one"
    )
    parser.add_argument("--out", type=Path, help="results file; default benchmarks/results/{quick,full}.json")
    only = f"only the cases that pytest -k selects; kept in {SELECTED}"
    parser.add_argument("-k", default="", metavar="EXPRESSION", help=only)
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}, expected 1 or more")
    whole = FOLDER / "results" / ("full.json" if arguments.full else "quick.json")
    target = arguments.out or (SELECTED if arguments.k else whole)
    if warning := busy():
        print(warning, file=sys.stderr)
    options = ["-v", "--durations=0", "--durations-min=5", "-p", "no:cacheprovider", "--benchmark-quiet"]
    options += ["--full"] * arguments.full + ["--compile-training"] * arguments.compile_training
    options += [f"--threads={arguments.threads}"]
    runs, status = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for process in range(arguments.processes):
            raw = Path(folder) / f"{process}.json"
            selected = f"({REPEATED}) and ({arguments.k or 'test'})" if process else arguments.k
            command = [sys.executable, "-m", "pytest", FOLDER, *options, f"--benchmark-json={raw}", "-k", selected]
            code = subprocess.run(command).returncode
            if code != NOTHING_SELECTED or not process:
                status = status or code
            if raw.exists() and raw.stat().st_size:
                runs.append(compact(json.loads(raw.read_text(encoding="utf-8"))))
    if not runs:
        return status
    found = median_of(runs)
    report = write(found, target.parent)
    partial = target.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
    os.replace(partial, target)
    print(f"\n{report}\n\nWrote {target}; plots of what was measured stand beside it.")
    return status


if __name__ == "__main__":
    sys.exit(main())
