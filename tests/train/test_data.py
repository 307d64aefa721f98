"""The training set: samples as they are made when needed, and what happens at a bad image."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import MissingFileError, UserError
from llava.tokenizer import load_tokenizer
from llava.train.arguments import DataArguments
from llava.train.data import LazySupervisedDataset, make_supervised_data_module

GOLDEN = Path(__file__).parents[1] / "golden"
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
NAMES = ["good.png", "truncated.png", "missing.png", "text.png"]


@pytest.fixture
def module(tmp_path: Path):
    """Makes dataset and collator of a good record, three bad ones and one without an image."""
    Image.effect_noise((40, 30), 50).save(tmp_path / "good.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("hello")
    records: list[dict[str, Any]] = [
        {"id": name, "image": name, "conversations": TURNS} for name in [*NAMES, "good.png"]
    ]
    del records[-1]["image"]
    (tmp_path / "data.json").write_text(json.dumps(records))

    def make(on_bad_image: str) -> dict[str, Any]:
        data_args = DataArguments(
            data_path=str(tmp_path / "data.json"),
            image_folder=str(tmp_path),
            is_multimodal=True,
            on_bad_image=on_bad_image,
        )
        data_args.image_processor = CLIPImageProcessorPil.from_pretrained(
            GOLDEN / "clip-vit-tiny-patch14-336"
        )
        return make_supervised_data_module(load_tokenizer(GOLDEN / "llava-v1.5-tiny"), data_args)

    return make


def test_a_sample_has_an_image_if_its_record_has_one(module):
    dataset = module("error")["train_dataset"]
    shown, text = dataset[0], dataset[4]
    assert set(shown) == {"input_ids", "labels", "record", "image", "image_size", "text"}
    assert shown["record"] == NAMES[0]
    assert shown["image"].shape == (3, 336, 336)
    assert shown["text"] == ["What is it?"]
    assert (shown["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1
    assert set(text) == {"input_ids", "labels", "record"}
    assert IMAGE_TOKEN_INDEX not in text["input_ids"]


@pytest.mark.parametrize(
    ("index", "error", "reason"),
    [(1, UserError, "damaged"), (2, MissingFileError, "no image file"), (3, UserError, "is not an image")],
)
def test_a_bad_image_is_an_error_that_names_the_record(module, index: int, error: type, reason: str):
    with pytest.raises(error, match=rf"^record {index} \(id '{NAMES[index]}'\): .*{reason}"):
        module("error")["train_dataset"][index]


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_bad_image_can_be_skipped_and_is_reported_once(
    module, index: int, caplog: pytest.LogCaptureFixture
):
    dataset: LazySupervisedDataset = module("skip")["train_dataset"]
    samples = [dataset[index], dataset[index]]
    assert samples[0] == samples[1]
    assert set(samples[0]) == {"skipped"}
    assert samples[0]["skipped"].startswith(f"record {index} (id '{NAMES[index]}'): ")
    assert [record.message for record in caplog.records] == [f"left out: {samples[0]['skipped']}"]


def test_skipping_hides_no_other_mistake(module):
    dataset = module("skip")["train_dataset"]
    dataset.list_data_dict[0] = {"image": "good.png", "conversations": [TURNS[0], TURNS[0]]}
    dataset.list_data_dict[1] = {"image": "../good.png", "conversations": TURNS}
    with pytest.raises(UserError, match="^record 0: turn 1 is from 'human'"):
        dataset[0]
    with pytest.raises(UserError, match="^record 1: .* leads out of the image folder"):
        dataset[1]


def test_a_batch_holds_what_is_left_and_says_how_many_are_not(module):
    data = module("skip")
    batch = data["data_collator"]([data["train_dataset"][index] for index in range(5)])
    assert batch["skipped"] == 3
    assert batch["input_ids"].shape[0] == 2
    assert batch["images"].shape == (1, 3, 336, 336)
    assert batch["images"].any()


def test_batches_count_nothing_where_nothing_can_be_skipped(module):
    data = module("error")
    assert "skipped" not in data["data_collator"]([data["train_dataset"][0]])


def test_lengths_are_words_and_negative_without_an_image(module):
    dataset = module("error")["train_dataset"]
    assert dataset.lengths == [134] * 4 + [6]
    assert dataset.modality_lengths == [6] * 4 + [-6]
