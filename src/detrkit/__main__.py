"""`python -m detrkit`, which is what torchrun starts: `torchrun --nproc-per-node 8 -m detrkit train ...`."""

import sys

from detrkit.cli import main

sys.exit(main())
