"""`llava.data.prepare_data` under the name that it had before: ``python -m llava.train.prepare_data``."""

import sys

from llava.data.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
