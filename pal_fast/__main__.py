"""`python -m pal_fast`: the command `pal-fast`, for `torchrun -m pal_fast` and `accelerate launch -m pal_fast`."""

from __future__ import annotations

import sys

from pal_fast.cli import main

sys.exit(main())
