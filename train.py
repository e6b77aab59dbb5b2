"""The checkout's front door: `python train.py encoder=resnet34 optim.lr=1e-4`."""

import sys

from segsweep.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
