"""LLaVA's ``python -m llava.eval.model_vqa``: answers a JSONL file of questions, with long answers."""

import sys

from llava.eval.vqa_command import VqaCommand, questions_of

COMMAND = VqaCommand("model_vqa", "Answer a file of questions.", load=questions_of)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
