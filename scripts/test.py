"""Testing for torchrun; the same as `msg3d-fast test`.

torchrun --standalone --nproc-per-node 8 scripts/test.py --run-dir runs/ntu60_xsub_2d
"""

import sys

from msg3d_fast.cli import main

sys.exit(main(["test", *sys.argv[1:]]))
