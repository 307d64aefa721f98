"""Llama's tokenizer as SentencePiece itself splits text, with the character span of every piece.

The tokenizer that transformers 5 converts from ``tokenizer.model`` gives other ids around spaces and after
``</s>`` than the one LLaVA was trained with; this one drives the SentencePiece library directly.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import MissingFileError, UserError
from llava.internals import added_token, added_token_ids, split_at_added_tokens
from llava.model.checkpoint_configs import TOKEN_ID, TOKENIZER_KEYS, pick
from llava.model.checkpoint_files import MAX_JSON_BYTES, check_size, own_file, read_config, resolve_folder
from llava.utils import check_characters

VOCABULARY_FILE = "tokenizer.model"
# The other vocabularies are CLIP's, or say all of a tokenizer.
VOCABULARY_FILES = (VOCABULARY_FILE, "tokenizer.json", "vocab.json", "merges.txt")
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
HIGHEST_ID = 2  # as CLIP's eos_token_id, in configs that transformers wrote until 2023
WORD_START = "▁"

Span = tuple[int, int]
Piece = tuple[str, int, int]
"""A token's text in the vocabulary, and where its characters start and end."""


class LlamaTokenizer(SentencePieceBackend):
    """Llama's SentencePiece tokenizer; named as in released ``tokenizer_config.json`` files.

    Args:
        vocab_file: The SentencePiece model.
        unk_token: Unknown token; `load_tokenizer` also pads with it, as LLaVA does.
        bos_token: Put in front of an encoded text if ``add_bos_token``.
        eos_token: End of an answer; put behind an encoded text if ``add_eos_token``.
        add_bos_token: See ``bos_token``.
        add_eos_token: See ``eos_token``.
        legacy: Whether text after a special token begins as a new word, as it did until July 2023.
        **kwargs: Anything else of a ``tokenizer_config.json``.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - the base class declares a plain list

    def __init__(  # noqa: PLR0913 - the keys of tokenizer_config.json
        self,
        vocab_file: str,
        *,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        legacy: bool | None = True,
        **kwargs: Any,
    ) -> None:
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        kwargs["sp_model_kwargs"] = kwargs.get("sp_model_kwargs") or {}
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(
            vocab_file=vocab_file,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            legacy=legacy is None or legacy,
            special_tokens_pattern={
                (True, True): "bos_eos",
                (True, False): "bos",
                (False, True): "eos",
                (False, False): "none",
            }[add_bos_token, add_eos_token],
            **kwargs,
        )

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the tokenizer's files; see transformers.

        transformers leaves out of the settings which tokens are added, and then reads back that none are.
        """
        files = super().save_pretrained(save_directory, *args, **kwargs)
        prefix = kwargs.get("filename_prefix")
        path = Path(save_directory) / f"{f'{prefix}-' if prefix else ''}tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        path.write_text(
            json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return files

    def tokenize(self, text: str, *args: Any, **kwargs: Any) -> list[str]:
        """Split a text into pieces; ``split_special_tokens=True`` spells out special tokens."""
        whole = kwargs.get("split_special_tokens", self.split_special_tokens)
        return [piece for piece, _, _ in self.pieces(text, split_special_tokens=bool(whole))]

    def pieces(self, text: str, split_special_tokens: bool = False) -> list[Piece]:
        """Split a text into pieces with their spans in it.

        Args:
            text: Any text; special tokens in it are recognized.
            split_special_tokens: Treat special tokens as ordinary text instead.

        Returns:
            The pieces in order. A piece without characters of its own (the blank put in front of a text, all
            but the last byte of a spelled-out character) has an empty span.
        """
        if self.legacy or not text:
            return list(self._pieces(text, split_special_tokens))
        # The model's own dummy prefix is off in this mode; the text as a whole gets one blank instead.
        text = text.replace(WORD_START, " ")
        pieces = list(self._pieces(WORD_START + text, split_special_tokens))
        if len(pieces) > 1 and pieces[0][0] == WORD_START and pieces[1][0] in self.all_special_tokens:
            pieces = pieces[1:]
        return [(piece, max(start - 1, 0), max(end - 1, 0)) for piece, start, end in pieces]

    def _convert_id_to_token(self, index: int) -> str:
        """Return the piece of an id; nothing for one that only the model has, whose table may be longer."""
        return super()._convert_id_to_token(index) if index < self.sp_model.get_piece_size() else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to the text they were split from; incomplete characters become U+FFFD."""
        parts: list[str] = []
        whole = {*added_token_ids(self), *self.all_special_tokens}
        for added, run in groupby(tokens, key=whole.__contains__):
            pieces = list(run)
            opens = not parts or parts == [self.bos_token]
            if added:
                parts.extend(pieces)
                continue
            if not self.legacy and opens and pieces[0].startswith(WORD_START):
                pieces[0] = pieces[0][1:]
            parts.append(self.sp_model.decode([piece for piece in pieces if piece]))
        return "".join(parts)

    def _is_added(self, piece: str) -> bool:
        """Tell whether a piece is kept whole and never goes through SentencePiece."""
        return piece in added_token_ids(self) or piece in self.all_special_tokens

    def _pieces(self, text: str, split_special_tokens: bool) -> Iterator[Piece]:
        """Cut at special tokens, and let SentencePiece split what lies between."""
        chunks = [(text, 0)] if split_special_tokens else self._chunks(text)
        for chunk, start in chunks:
            if not split_special_tokens and self._is_added(chunk):
                yield chunk, start, start + len(chunk)
            else:
                yield from ((piece, start + i, start + j) for piece, i, j in self._sentence_pieces(chunk))

    def _chunks(self, text: str) -> Iterator[tuple[str, int]]:
        """Cut a text at its special tokens; yields every chunk with its start."""
        start = 0
        chunks = split_at_added_tokens(self, text)
        for index, chunk in enumerate(chunks):
            before = added_token(self, chunks[index - 1]) if index else None
            after = added_token(self, chunks[index + 1]) if index + 1 < len(chunks) else None
            kept = chunk.lstrip() if before is not None and before.rstrip else chunk
            skipped = len(chunk) - len(kept)
            kept = kept.rstrip() if after is not None and after.lstrip else kept
            if kept:
                yield kept, start + skipped
            start += len(chunk)

    def _sentence_pieces(self, text: str) -> list[Piece]:
        """Split a text without special tokens."""
        if self.legacy or not text.startswith((WORD_START, " ")):
            return list(_spans(self.sp_model, text))
        # Without a dummy prefix SentencePiece may drop a leading blank, so something is put in front of it.
        guard = str(self.unk_token)
        skipped = len(list(_spans(self.sp_model, guard)))
        pieces = list(_spans(self.sp_model, guard + text))[skipped:]
        return [(piece, start - len(guard), end - len(guard)) for piece, start, end in pieces]


def _spans(model: Any, text: str) -> Iterator[Piece]:
    """Yield SentencePiece's pieces with the spans of their surfaces, in characters.

    The surfaces are followed instead of the reported offsets, which are bytes or characters depending on the
    version of SentencePiece.
    """
    position = 0
    for piece, surface in _pieces_and_surfaces(model, text):
        start = text.find(surface, position) if surface else position
        position = max(start, position) + len(surface)
        yield piece, position - len(surface), position


def _pieces_and_surfaces(model: Any, text: str) -> Iterator[tuple[str, str]]:
    """Yield SentencePiece's pieces with what they stand for in the text.

    SentencePiece 0.2.3 has no more messages without protobuf, and instead of them characters' offsets.
    """
    if hasattr(model, "encode_as_offset_mapping"):
        found = model.encode_as_offset_mapping(text)
        for piece, (start, end) in zip(found["pieces"], found["offsets"], strict=True):
            yield piece, text[start:end]
        return
    encode = getattr(model, "encode_as_immutable_proto", None) or model.encode_as_proto
    for piece in encode(text).pieces:
        yield piece.piece, piece.surface


def pieces_with_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[Span]]:
    """Tokenize without adding special tokens, and say which characters every token stands for.

    Args:
        tokenizer: One of `load_tokenizer`.
        text: Any text.

    Returns:
        Ids, and per id the start and end of its characters. A token without characters of its own (a word's
        blank, the first bytes of a spelled-out character) gets the character that follows: it belongs there.
    """
    if isinstance(tokenizer, LlamaTokenizer):
        pieces = tokenizer.pieces(text)
        ids = cast("list[int]", tokenizer.convert_tokens_to_ids([piece for piece, _, _ in pieces]))
        spans: Iterable[Span] = [(start, end) for _, start, end in pieces]
    else:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    return ids, [(start, min(max(end, start + 1), len(text))) for start, end in spans]


def ids_and_spans(
    prompt: str, tokenizer: PreTrainedTokenizerBase, *, has_images: bool = True
) -> tuple[list[int], list[Span]]:
    """Tokenize a prompt whose images stand as ``<image>``, and say which characters every id stands for.

    Args:
        prompt: A rendered prompt; each text between images is tokenized as a text of its own.
        tokenizer: One of `load_tokenizer`.
        has_images: Whether ``<image>`` is a placeholder; otherwise it is text like any other.

    Returns:
        Ids, with one ``IMAGE_TOKEN_INDEX`` where every ``<image>`` stood and the tokenizer's beginning of a
        sequence in front if it adds one, and their spans as `pieces_with_spans` gives them, empty for those
        two.

    Raises:
        UserError: If the prompt holds what is no character.
    """
    check_characters(prompt, "the prompt")
    opens_with_bos = tokenizer.bos_token_id is not None and (
        tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    )
    ids: list[int] = [tokenizer.bos_token_id] if opens_with_bos else []
    spans: list[Span] = [(0, 0)] * len(ids)
    start = 0
    for index, text in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN) if has_images else [prompt]):
        if index:
            ids.append(IMAGE_TOKEN_INDEX)
            spans.append((start, start))
            start += len(DEFAULT_IMAGE_TOKEN)
        text_ids, text_spans = pieces_with_spans(tokenizer, text)
        ids += text_ids
        spans += [(start + first, start + last) for first, last in text_spans]
        start += len(text)
    return ids, spans


def load_tokenizer(
    folder_or_hub_id: str | Path, *, model_max_length: int | None = None, padding_side: str = "right"
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model's checkpoint.

    Args:
        folder_or_hub_id: Folder, or id on the configured hub.
        model_max_length: Tokens a sequence may have; by default what the checkpoint says.
        padding_side: ``right`` or ``left``.

    Returns:
        `LlamaTokenizer` for Llama's ``tokenizer.model``, otherwise what ``tokenizer.json`` describes. It pads
        with the unknown token where the checkpoint names no other.

    Raises:
        MissingFileError: If there is no tokenizer.
        UserError: If its files are damaged, or it is a class of another library.
    """
    folder = resolve_folder(str(folder_or_hub_id))
    options: dict[str, Any] = {"padding_side": padding_side}
    if model_max_length is not None:
        options["model_max_length"] = model_max_length
    tokenizer = _load(_class_of(folder), folder, options)
    if tokenizer.pad_token is None and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def load_clip_tokenizer(folder: Path, config: CLIPTextConfig) -> CLIPTokenizer:
    """Load the tokenizer of a CLIP folder.

    Args:
        folder: CLIP's.
        config: Of its text encoder.

    Raises:
        UserError: If its files are damaged, or those of another text encoder.
    """
    tokenizer = _load(CLIPTokenizer, folder, {})
    last, end = max(tokenizer.get_vocab().values(), default=-1), tokenizer.eos_token_id
    if last >= config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has ids up to {last}, and its text encoder knows those below "
            f"{config.vocab_size}"
        )
    # The end stands for the whole text; a config of old says 2 and means the highest id.
    if end != (last if config.eos_token_id == HIGHEST_ID else config.eos_token_id):
        raise UserError(
            f"the tokenizer in {folder} ends a text with the id {end}, and the config of its text encoder "
            f"says eos_token_id {config.eos_token_id}"
        )
    return tokenizer


def _class_of(folder: Path) -> type[PreTrainedTokenizerBase]:
    """Tell from the files which of the known tokenizers a checkpoint has.

    Raises:
        MissingFileError: If it is none of them.
    """
    if own_file(folder, VOCABULARY_FILE):
        has_settings = own_file(folder, "tokenizer_config.json")
        name = read_config(folder, "tokenizer_config.json").get("tokenizer_class") if has_settings else None
        if str(name or "LlamaTokenizer").startswith("LlamaTokenizer"):
            return LlamaTokenizer
    if own_file(folder, "tokenizer.json"):
        return PreTrainedTokenizerFast
    if own_file(folder, "vocab.json") and own_file(folder, "merges.txt"):
        return CLIPTokenizer
    raise MissingFileError(
        f"no tokenizer in {str(folder)!r}; expected a folder or hub id with tokenizer.model or tokenizer.json"
    )


def _load(tokenizer_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Load a tokenizer of a known class, from a copy of its files in which only known settings are left.

    Raises:
        UserError: If a file is damaged.
    """
    with TemporaryDirectory() as name:
        _copy_known_settings(folder, Path(name))
        try:
            tokenizer = tokenizer_class.from_pretrained(name, **options)
            tokenizer.get_vocab()  # SentencePiece does not look at its pieces before they are asked for
        except BaseException as error:
            # Each library below has types of its own, tokenizers one beyond `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if tokenizer_class is LlamaTokenizer and isinstance(error, RuntimeError):
                raise UserError(
                    f"the {VOCABULARY_FILE} of {str(folder)!r} is not a valid SentencePiece model"
                ) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"the tokenizer in {str(folder)!r} is damaged: {reason[:200]}") from error
    # From where it will save them.
    tokenizer.name_or_path = str(folder)
    if getattr(tokenizer, "vocab_file", None):
        tokenizer.vocab_file = str(folder / VOCABULARY_FILE)
    return tokenizer


def _copy_known_settings(folder: Path, copy: Path) -> None:
    """Copy a tokenizer's files, with known settings only.

    Raises:
        UserError: If a setting is of a kind that it cannot be, or a file is too large.
    """
    for file in SETTINGS_FILES:
        if own_file(folder, file):
            values = read_config(folder, file)
            accepted = dict.fromkeys(values, TOKEN_ID) if file == "added_tokens.json" else TOKENIZER_KEYS
            values = pick(values, accepted, folder / file, "file of a tokenizer")
            (copy / file).write_text(json.dumps(values), encoding="utf-8")
    for file in VOCABULARY_FILES:
        if own_file(folder, file):
            _check_vocabulary(folder, file)
            shutil.copyfile(folder / file, copy / file)


def _check_vocabulary(folder: Path, file: str) -> None:
    """Refuse what no library should be given as a vocabulary.

    Raises:
        UserError: If a file is too large, no JSON object where it should be one, or empty.
    """
    path = folder / file
    check_size(path, MAX_JSON_BYTES)
    if file.endswith(".json"):
        values = read_config(folder, file)
        if file == "vocab.json":
            pick(values, dict.fromkeys(values, TOKEN_ID), path, "vocabulary")
    if file == "merges.txt":
        head, *pairs = path.read_bytes().splitlines() or [b""]
        # A vocabulary of nothing but bytes needs no pairs, and says so by a whole first line.
        if not any(pairs) and not re.fullmatch(rb"#version: [\d.]+", head):
            raise UserError(f"{path} holds no pairs of pieces to merge")
