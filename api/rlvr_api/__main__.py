"""`python -m rlvr_api` is `rlvr`, for places without the console script on their path."""

import sys

from rlvr_api.cli import main

if __name__ == "__main__":
    sys.exit(main())
