"""Our tokenizer against the ids of the one LLaVA was trained with, and in all the roles it plays."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, TextStreamer

from llava.errors import MissingFileError, UserError
from llava.tokenizer import LlamaTokenizer, load_tokenizer, pieces_with_spans

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "llava-v1.5-tiny"
CASES = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
AWKWARD = [
    *sorted({case["text"] for case in CASES}),
    "</s>",
    "</s></s> a",
    "a </s>  b</s>",
    " ",
    "▁a ▁ b",
    "👍🏽 ok",
    "a\u00a0b\u200bc",
]


def tokenizer_with(folder: Path, **settings: object) -> LlamaTokenizer:
    """Copy the tiny checkpoint's tokenizer, with some settings changed."""
    folder.mkdir(exist_ok=True)
    shutil.copy(CHECKPOINT / "tokenizer.model", folder)
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    return load_tokenizer(folder)


@pytest.fixture(params=[True, False], ids=["legacy", "current"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> LlamaTokenizer:
    return tokenizer_with(tmp_path / "tokenizer", legacy=request.param)


def test_ids_are_those_of_sentencepiece(tokenizer: LlamaTokenizer):
    for case in CASES:
        if case["legacy"] == tokenizer.legacy:
            assert tokenizer(case["text"]).input_ids == case["plain"], case["text"]


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_the_text_back(tokenizer: LlamaTokenizer, text: str):
    expected = text.replace("▁", " ")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode([tokenizer.bos_token_id, *ids]) == f"<s>{expected}"


@pytest.mark.parametrize("text", AWKWARD)
def test_spans_cover_the_text_in_order(tokenizer: LlamaTokenizer, text: str):
    ids, spans = pieces_with_spans(tokenizer, text)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    assert {position for start, end in spans for position in range(start, end)} == set(range(len(text)))


def test_a_piece_without_characters_belongs_to_what_follows(tokenizer: LlamaTokenizer):
    assert pieces_with_spans(tokenizer, "é a")[1] == [(0, 1), (0, 1), (0, 1), (1, 3)]


def test_end_of_sequence_and_padding(tokenizer: LlamaTokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id
    batch = tokenizer(["A cat.", "A cat. Two."], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch.input_ids[0, -1] == 0
    assert batch.attention_mask[0, -1] == 0
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["A cat.", "A cat. Two."]


def test_truncation_to_the_models_length(tmp_path: Path):
    tokenizer_with(tmp_path / "short")
    short = load_tokenizer(tmp_path / "short", model_max_length=4)
    assert len(short("A cat and a dog.", truncation=True).input_ids) == 4


def test_saving_keeps_the_released_layout(tokenizer: LlamaTokenizer, tmp_path: Path):
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (
        CHECKPOINT / "tokenizer.model"
    ).read_bytes()
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert config["legacy"] == tokenizer.legacy
    assert "auto_map" not in config
    again = load_tokenizer(tmp_path / "saved")
    assert isinstance(again, LlamaTokenizer)
    assert len(again) == len(tokenizer)
    assert again.pad_token_id == 0
    for text in [*AWKWARD, "a<im_patch>b"]:
        assert again(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("adds", [(True, False), (True, True), (False, False)])
def test_a_saved_tokenizer_adds_what_it_added_before(tmp_path: Path, adds: tuple[bool, bool]):
    tokenizer = tokenizer_with(tmp_path / "source", add_bos_token=adds[0], add_eos_token=adds[1])
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = tokenizer("What color?").input_ids
    assert (expected[0] == 1, expected[-1] == 2) == adds
    assert load_tokenizer(tmp_path / "saved")("What color?").input_ids == expected
    # transformers 5's own class for the name in the settings reads them too.
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("What color?").input_ids == expected


def test_tokens_are_added_behind_the_vocabulary(tokenizer: LlamaTokenizer):
    before = len(tokenizer)
    assert tokenizer.add_tokens(["<im_patch>"], special_tokens=True) == 1
    assert tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True) == 2
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [
        before,
        before + 1,
        before + 2,
    ]
    ids = tokenizer("a<im_start>b<im_end>").input_ids
    assert before + 1 in ids
    assert ids[-1] == before + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == ("ab" if not tokenizer.legacy else "a b")


class Collected(TextStreamer):
    """A streamer that keeps what it would print."""

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self.parts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)


@pytest.mark.parametrize("text", ["A red circle, é 你好 and\ntwo  dogs.", "Ünïcode 👍"])
def test_streamed_pieces_join_to_the_answer(tokenizer: LlamaTokenizer, text: str):
    streamer = Collected(tokenizer)
    for token in [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(streamer.parts) == text


def test_old_configs_with_typed_tokens_load(tmp_path: Path):
    token = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    config = {
        "bos_token": {**token, "content": "<s>"},
        "eos_token": {**token, "content": "</s>"},
        "unk_token": {**token, "content": "<unk>"},
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    shutil.copy(CHECKPOINT / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    case = next(case for case in CASES if case["legacy"] and case["text"] == "x</s>y")
    assert load_tokenizer(tmp_path)("x</s>y").input_ids == case["plain"]


def test_other_tokenizers_give_ids_and_spans_too():
    clip = load_tokenizer(GOLDEN / "clip-vit-tiny-patch14-336")
    ids, spans = pieces_with_spans(clip, "a red circle")
    assert not isinstance(clip, LlamaTokenizer)
    assert ids == clip("a red circle", add_special_tokens=False).input_ids
    assert spans[0] == (0, 1)
    assert spans[-1][1] == len("a red circle")


def test_a_damaged_model_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="not a valid SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="expected a folder or hub id"):
        load_tokenizer(tmp_path)
