"""``python -m vae_fast`` is the command ``vae-fast``."""

import sys

from vae_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
