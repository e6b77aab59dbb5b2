"""`python -m segsweep` is the `segsweep` command."""

import sys

from segsweep.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
