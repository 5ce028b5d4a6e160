"""The emulators run kernels right, and see what is wrong with wrong ones."""

import os
import subprocess
import sys

import emulator
import numpy as np
import pytest
from emulator import _build

EXAMPLES = "tests/emulator/examples.cu"


needs_nvcc = pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P runs what nvcc makes of the kernels")


@pytest.fixture(scope="module")
def examples() -> emulator.Kernels:
    return emulator.build(EXAMPLES, arch="80" if emulator.find_nvcc() else None)


def gemm_operands(M: int, N: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    return draw((M, K)).astype(np.float32), draw((N, K)).astype(np.float32)


def run_gemm(kernels: emulator.Kernels, M: int = 70, N: int = 40, K: int = 104, **options: object) -> list[dict]:
    """The tensor-core example on bfloat16 against float64, exactly but for the order of additions."""
    a, b = (emulator.to_bf16(matrix) for matrix in gemm_operands(M, N, K))
    c = emulator.empty("c", (M, N), np.float32)
    counters = kernels.call("examples_gemm", emulator.upload("a", a), emulator.upload("b", b), c, M, N, K, 0, **options)
    expected = emulator.from_bf16(a).astype(np.float64) @ emulator.from_bf16(b).astype(np.float64).T
    np.testing.assert_allclose(c.numpy(), expected, atol=1e-4, rtol=1e-5)
    return counters


ROUTES = ["source", pytest.param("ptx", marks=needs_nvcc)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("n", [1, 4, 511, 512, 1003])
def test_add(examples: emulator.Kernels, n: int, route: str) -> None:
    a, b = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    out = emulator.empty("out", (n,), np.float32)
    examples.call("examples_add", emulator.upload("a", a), emulator.upload("b", b), out, n, route=route)
    np.testing.assert_array_equal(out.numpy(), a + b)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("landing", emulator.LANDINGS)
def test_gemm(examples: emulator.Kernels, route: str, landing: str) -> None:
    for seed in range(4):
        run_gemm(examples, route=route, landing=landing, seed=seed)


def run_again(variables: dict[str, str], *tests: str) -> None:
    """These tests in a process of their own with other environment variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=emulator.ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_fibers_of_other_machines() -> None:
    """ucontext, which machines other than x86-64 switch fibers by."""
    run_again({"MSG3D_EMULATOR_UCONTEXT": "1"}, "tests/test_emulator.py", "tests/test_emulator_faults.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        ["tests/test_emulator.py", "tests/test_emulator_faults.py"],
        ["tests/test_cuda_forward.py", "-k", "values or variants or no_clips"],
        ["tests/test_backward_kernels.py", "-k", "gradients or strides or empty"],
        ["tests/test_plain_kernels.py", "tests/test_temporal_kernels.py", "-k", "values"],
    ],
    ids=["emulator", "forward", "backward", "others"],
)
def test_under_sanitizers(tests: list[str]) -> None:
    """Route S and the runtime itself under the address and undefined-behaviour sanitizers."""
    libraries = [
        _build.run([*_build.CXX, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libubsan.so")
    ]
    variables = {"MSG3D_EMULATOR_SANITIZE": "address,undefined", "LD_PRELOAD": " ".join(libraries)}
    variables |= {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    run_again(variables, *tests)
