#!/usr/bin/env bash
# From a fresh clone to the default test suite: environment, build, tests. `bash scripts/test.sh ARGS` hands ARGS to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$root"
exec "$python" -m pytest --numprocesses 2 --dist loadfile "$@"
