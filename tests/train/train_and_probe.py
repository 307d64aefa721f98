"""Run by the tests on every process of a launch: train, then write what the trained model itself answers.

Usage: train_and_probe.py PROBE_FILE [arguments of llava.train.train]
"""

import sys
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed import get_rank

from llava.train import train as train_module
from llava.train.llava_trainer import LLaVATrainer

QUESTION = "What color?"


def probe(model: Any, tokenizer: Any) -> torch.Tensor:
    """Last logits for a picture and a question."""
    ids = torch.tensor([[1, -200, *tokenizer(QUESTION, add_special_tokens=False).input_ids]])
    pixels = torch.linspace(-1, 1, 3 * 336 * 336).reshape(1, 3, 336, 336)
    with torch.no_grad():
        return model(input_ids=ids, images=pixels, texts=[QUESTION]).logits[0, -1]


def main() -> None:
    """Train; the model that answers is the one that DeepSpeed still splits."""
    made: list[LLaVATrainer] = []

    class Kept(LLaVATrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    with patch.object(train_module, "LLaVATrainer", Kept):
        train_module.train(argv=arguments[1:])
    trainer = made[0]
    trainer.model_wrapped.eval()
    logits = probe(trainer.model_wrapped, trainer.processing_class)
    if get_rank() == 0:
        torch.save(logits, arguments[0])
    train_module.leave_processes()
    train_module.end(0)


if __name__ == "__main__":
    main()
