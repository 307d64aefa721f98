"""LLaVA's ``python -m llava.eval.model_vqa_loader``: answers a JSONL file of questions in few words."""

import sys

from llava.eval.vqa_command import VqaCommand, questions_of

COMMAND = VqaCommand(
    "model_vqa_loader",
    "Answer a file of questions; answers have at most 128 tokens unless --max_new_tokens says more.",
    load=questions_of,
    max_new_tokens=128,
    adapts_template=True,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
