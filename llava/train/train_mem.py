"""`llava.train.train` with flash attention where it is installed and the machine has it."""

from llava.train.train import end, main

if __name__ == "__main__":
    end(main("flash_attention_2"))
