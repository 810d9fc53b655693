"""`python -m train.routing`, the command that shipped findings record."""

import sys

from train.studies.routing import main

if __name__ == "__main__":
    sys.exit(main())
