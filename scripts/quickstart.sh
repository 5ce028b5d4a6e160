#!/usr/bin/env bash
# From a fresh clone to a trained and tested MS-G3D on real poses: environment, build, training, 10-clip test, figures, a table.
# The run folder is runs/quickstart in the current folder; a second call starts from what is there. ARGS go to `msg3d-fast quickstart`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "" # no extra; without an argument it would see this script's own
exec "$python" -m msg3d_fast quickstart "$@"
