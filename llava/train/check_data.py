"""`llava.data.check_data` under the name that it had before: ``python -m llava.train.check_data``."""

import sys

from llava.data.check_data import main

if __name__ == "__main__":
    sys.exit(main())
