"""``python -m omniquant``: the command line."""

import sys

from omniquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
