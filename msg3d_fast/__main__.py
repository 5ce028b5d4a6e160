"""`python -m msg3d_fast VERB ...`: the command line without the console script."""

import sys

from .cli import main

sys.exit(main())
