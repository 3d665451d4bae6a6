"""``python -m larpanda``, which torchrun can start: ``torchrun --nproc-per-node 8 -m larpanda pretrain ...``."""

import sys

from larpanda.cli import main

if __name__ == "__main__":
    sys.exit(main())
