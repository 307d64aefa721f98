"""The toy language model's own SentencePiece tokenizer, in Llama's layout."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase

from llava.tokenizer import VOCABULARY_FILE, load_tokenizer

VOCABULARY = 600
CONTEXT = 2048


def train_llama_tokenizer(
    texts: Iterable[str], folder: Path, vocabulary: int = VOCABULARY
) -> PreTrainedTokenizerBase:
    """Learn a BPE vocabulary with byte fallback and write the files of a released checkpoint.

    Args:
        texts: Everything the model will read often, so that its words become single pieces.
        folder: Receives ``tokenizer.model``, ``tokenizer_config.json`` and ``special_tokens_map.json``.
        vocabulary: At most so many pieces.

    Returns:
        The tokenizer, read back from the folder.
    """
    learned = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=learned,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILE).write_bytes(learned.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = special | {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": CONTEXT,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return load_tokenizer(folder)
