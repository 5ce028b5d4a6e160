# Sourced by quickstart.sh and test.sh: leaves in $python an interpreter that has msg3d_fast built from this clone.
#
#   source environment.sh EXTRA     EXTRA: an optional-dependency group of pyproject.toml, or ""
#
# It uses the active virtual environment if there is one, else .venv in the clone, which it creates. A stamp in the environment, a digest of
# what the build depends on, makes every later call free; native sources or metadata that changed build again.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="$1"

fail() {
  echo "msg3d_fast: $*" >&2
  exit 2
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
  environment="$VIRTUAL_ENV"
elif [ -n "${CONDA_PREFIX:-}" ]; then
  environment="$CONDA_PREFIX"
else
  environment="$root/.venv"
fi
python="$environment/bin/python"

if [ ! -x "$python" ]; then
  base=""
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      base="$candidate"
      break
    fi
  done
  [ -n "$base" ] || fail "no Python 3.10 or later on the PATH; install one, or activate an environment that has it"
  echo "msg3d_fast: creating $environment with $("$base" --version)"
  "$base" -m venv "$environment" || fail "$base cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "$environment has $("$python" --version 2>&1); Python 3.10 or later is needed: activate another environment"

# A clone is built for the machine it stands on: for its GPUs, or where there are none for one architecture (with PTX for later ones), which
# takes a fraction of the time. `pip install .` builds for all.
if [ -z "${MSG3D_CUDA_ARCHS:-}" ]; then
  MSG3D_CUDA_ARCHS="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | awk '$1 >= 7.5' | sort -u | paste -sd ';')" || true
  export MSG3D_CUDA_ARCHS="${MSG3D_CUDA_ARCHS:-8.0}"
fi

# What the build depends on: the clone's place, metadata, native sources, the interpreter, torch, the switches of setup.py and the tools.
digest() {
  "$python" - "$root" "$extra" <<'PY'
import hashlib, importlib.metadata, os, pathlib, shutil, sys
root, extra = pathlib.Path(sys.argv[1]), sys.argv[2]
digest = hashlib.sha256(repr((str(root), extra, sys.version)).encode())
try:
    digest.update(importlib.metadata.version("torch").encode())
except importlib.metadata.PackageNotFoundError:
    pass
for name in ("CXX", "CUDA_HOME", "MSG3D_CUDA", "MSG3D_CUDA_ARCHS"):
    digest.update(f"{name}={os.environ.get(name)}".encode())
for name in ("c++", "g++", "clang++", "nvcc"):
    digest.update(f"{name}={shutil.which(name)}".encode())
for path in [root / "pyproject.toml", root / "setup.py", *sorted(p for p in (root / "csrc").rglob("*") if p.is_file())]:
    digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
print(digest.hexdigest())
PY
}

stamp="$environment/msg3d_fast${extra:+-$extra}.stamp"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$(digest)" ]; then
  install=("$python" -m pip install --quiet --disable-pip-version-check)
  if ! "$python" -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13))' 2>/dev/null; then
    echo "msg3d_fast: installing torch"
    "${install[@]}" "torch==2.13.0" || fail "pip could not install torch 2.13.0; install torch 2.13 or later into $environment yourself and call again"
  fi
  if [ "$extra" = test ] && [ "${MSG3D_CUDA:-auto}" != 0 ] && ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    echo "msg3d_fast: installing nvcc, which this machine does not have, from Python packages"
    "${install[@]}" nvidia-cuda-{nvcc,crt,runtime,cccl}==13.0.* nvidia-nvvm==13.0.* ||
      echo "msg3d_fast: pip could not install nvcc; going on without the CUDA part" >&2
  fi
  echo "msg3d_fast: building and installing into $environment"
  "${install[@]}" "setuptools>=77" wheel ninja || fail "pip could not install the build tools setuptools, wheel and ninja"
  "${install[@]}" --no-build-isolation --editable "$root${extra:+[$extra]}" || fail "the build failed; the lines above say where"
  digest >"$stamp"
  "$python" -m msg3d_fast doctor | sed -n 's/^native  */msg3d_fast: native library /p'
fi
