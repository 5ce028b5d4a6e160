"""Who may depend on whom: the arrows of CONTRIBUTING's picture, read from the sources without running them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "msg3d_fast"

# What a module of the package may import from the package. One that is not listed has no place in the picture yet.
OPERATORS = {"_library", "errors", "reference", "ops"}
MODEL = OPERATORS | {
    "absent",
    "blocks",
    "gpu_blocks",
    "graph",
    "normalization",
    "modules",
    "model",
    "conversion",
    "files",
    "containers",
    "checkpoint",
}
DATA = {"data", "errors", "graph"}
SERVICES = {"config", "distributed", "progress", "run_folder", "visualize"}  # know nothing of networks and data
STEP = {"losses", "schedule", "optimization", "guard"}  # what one training step is made of
RUN = MODEL | DATA | SERVICES | STEP | {"inference", "experiment", "training", "evaluation", "baselines"}
RUN |= {"preprocessing"}
MAY_IMPORT = {
    "__init__": MODEL | DATA | {"export", "inference", "predict"},
    "__main__": {"cli"},
    "errors": set(),
    "files": {"errors"},
    "_library": {"errors"},
    "reference": set(),
    "ops": {"_library", "errors", "reference"},
    "graph": {"errors"},
    "absent": set(),
    "watch": set(),
    "blocks": {"_library"},
    "gpu_blocks": {"blocks", "normalization", "ops"},
    "modules": {"blocks", "errors", "gpu_blocks", "graph", "normalization", "ops"},
    "normalization": set(),
    "model": {"absent", "blocks", "errors", "graph", "modules", "ops"},
    "conversion": {"errors", "graph"},
    "containers": {"errors", "files"},
    "checkpoint": {"containers", "conversion", "errors", "graph", "model", "modules"},
    "folding": {"errors", "modules"},
    "folded": {"_library", "folding", "modules", "ops"},
    "inference": {"_library", "absent", "errors", "folded", "folding", "graph", "model", "modules", "watch"},
    "data": DATA,
    **{name: {"errors"} for name in SERVICES - {"run_folder"}},
    "run_folder": {"errors", "files"},
    "losses": {"errors"},
    "schedule": {"config", "errors"},
    "optimization": {"config", "errors", "schedule"},
    "guard": MODEL,
    "baselines": DATA,
    "experiment": MODEL | DATA | {"config", "score_files"},
    "export": MODEL | {"experiment", "__init__"},
    "evaluation": RUN - {"training", "preprocessing"},
    "preprocessing": {"config", "data", "errors", "model"},
    "predict": RUN - {"training"},
    "predictions": DATA | {"evaluation", "files", "predict"},
    "serve": {"errors", "predict"},
    "cli_predict": DATA | {"config", "predict", "predictions", "preprocessing", "progress"},
    "score_files": DATA,
    "ensemble": DATA | {"evaluation", "run_folder", "score_files"},
    "training": RUN,
    "quickstart": RUN,
    "reproduce": {"config", "data", "ensemble", "errors", "run_folder", "training"},
    "doctor": RUN,
    "multistream": {"config", "distributed", "ensemble", "errors", "training"},
    "flops": MODEL | {"config"},
    "bench": MODEL | {"doctor", "inference"},
    "view": DATA | {"files", "score_files", "visualize"},
    "cli_models": RUN | {"bench", "export", "flops", "view"},
    "cli": RUN
    | {"cli_models", "cli_predict", "doctor", "ensemble", "multistream", "quickstart", "reproduce", "__init__"},
}
FOREIGN = {"reference": {"torch"}}  # modules that may import nothing but these from outside


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The package's own modules and the outside packages that a file imports, anywhere in it."""
    own, outside = set(), set()
    package = ["msg3d_fast", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "msg3d_fast" else [stem]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "msg3d_fast":
                outside.add(parts[0])
            elif len(parts) > 1 and not parts[1].startswith("__version"):
                own.add(parts[1])
    return own, outside


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_python_arrows(path: Path) -> None:
    name = module_name(path)
    own, outside = imports(path)
    assert name in MAY_IMPORT, f"{name} is in no layer: give it a place in this picture"
    assert own - {name} <= MAY_IMPORT[name], f"{name} may not import {sorted(own - {name} - MAY_IMPORT[name])}"
    assert not outside & {"scripts", "benchmarks", "tests"}
    if name in FOREIGN:
        assert outside <= FOREIGN[name]


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".inl"}),
    ids=lambda p: p.name,
)
def test_native_arrows(path: Path) -> None:
    """library.cpp -> torch/ -> kernels/<op>/ -> kernels/{gemm,simt}/; torch headers only in the first two."""
    place = path.relative_to(ROOT / "csrc").parts
    for include in re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(encoding="utf-8"), re.MULTILINE):
        if place[0] == "kernels":
            assert not re.match(r"(torch|ATen|c10)/", include), f"{path.name} includes {include}"
            resolved = (path.parent / include).resolve()
            if resolved.exists() and resolved.is_relative_to(ROOT / "csrc"):
                target = resolved.relative_to(ROOT / "csrc").parts
                shared = len(target) == 2 or target[1] in {
                    "gemm",
                    "simt",
                }  # a header of kernels/, or what every op shares
                assert target[0] == "kernels", f"{path.name} includes {include}"
                assert target[1] == place[1] or shared, f"{path.name} includes {include}"


def test_no_file_outgrows_its_budget() -> None:
    sources = [p for top in ("msg3d_fast", "csrc", "benchmarks", "scripts", "tests") for p in (ROOT / top).rglob("*")]
    long = {
        p.name: n
        for p in sources
        if p.suffix in {".py", ".cpp", ".h", ".cu"} and (n := len(p.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long, f"over 450 lines: split by concept: {long}"
