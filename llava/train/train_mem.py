"""`llava.train.train` with flash attention where it is installed and the machine has it."""

import sys

from llava.train.train import main

if __name__ == "__main__":
    sys.exit(main("flash_attention_2"))
