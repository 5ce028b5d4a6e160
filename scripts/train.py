"""Training for torchrun; the same as `msg3d-fast train`.

torchrun --standalone --nproc-per-node 8 scripts/train.py --config ntu60_xsub_2d --data.path=ntu60_2d.pkl
"""

import sys

from msg3d_fast.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
