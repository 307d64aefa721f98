"""Batches: padding, cutting, and exactly the images that are shown."""

from types import SimpleNamespace

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.train.collator import DataCollatorForSupervisedDataset

TOKENIZER = SimpleNamespace(model_max_length=6, pad_token_id=0)
BLANK = torch.zeros(3, 4, 4)


def sample(ids: list[int], image: float | None = None, text: object = None):
    """A sample whose labels are its ids."""
    result = {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
    if image is None:
        return result
    return {**result, "image": torch.full((3, 4, 4), image), "image_size": (8, image), "text": text}


@pytest.fixture
def collate():
    return DataCollatorForSupervisedDataset(TOKENIZER, BLANK)


def test_samples_are_padded_on_the_right(collate):
    batch = collate([sample([1, IMAGE_TOKEN_INDEX, 5], 1.0, ["Q"]), sample([1, 0, 7, 8])])
    assert batch["input_ids"].tolist() == [[1, IMAGE_TOKEN_INDEX, 5, 0], [1, 0, 7, 8]]
    assert batch["labels"].tolist() == [[1, IMAGE_TOKEN_INDEX, 5, IGNORE_INDEX], [1, 0, 7, 8]]
    # The second sample holds the pad id as a token of its own.
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False], [True] * 4]


def test_only_shown_images_are_in_the_batch(collate):
    batch = collate(
        [
            sample([1, 2]),
            sample([1, IMAGE_TOKEN_INDEX], 1.0, ["first"]),
            sample([1, 2, 3, 4, 5, 6, IMAGE_TOKEN_INDEX], 2.0, ["cut off"]),
            sample([1, IMAGE_TOKEN_INDEX], 3.0, "second"),
        ]
    )
    assert batch["images"].shape == (2, 3, 4, 4)
    assert batch["images"][:, 0, 0, 0].tolist() == [1.0, 3.0]
    assert batch["texts"] == [["first"], "second"]
    assert batch["input_ids"].shape == (4, 6)


def test_text_alone_brings_one_blank_image(collate):
    batch = collate([sample([1, 2]), sample([1, 3])])
    assert batch["images"].shape == (1, 3, 4, 4)
    assert not batch["images"].any()
    assert batch["texts"] == [""]


def test_images_of_different_shapes_stay_a_list(collate):
    small = sample([1, IMAGE_TOKEN_INDEX], 1.0, "a")
    small["image"] = torch.zeros(3, 2, 2)
    batch = collate([small, sample([1, IMAGE_TOKEN_INDEX], 1.0, "b")])
    assert [image.shape[-1] for image in batch["images"]] == [2, 4]


def test_a_language_model_gets_no_images():
    batch = DataCollatorForSupervisedDataset(TOKENIZER)([sample([1, 2])])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


SKIPPED = {"skipped": "record 3: there is no image file 'a.png'"}


def test_skipped_samples_are_left_out_and_counted():
    collate = DataCollatorForSupervisedDataset(TOKENIZER, BLANK, counts_skipped=True)
    kept = [sample([1, IMAGE_TOKEN_INDEX, 5], 1.0, ["Q"]), sample([1, 0, 7, 8])]
    batch = collate([SKIPPED, kept[0], SKIPPED, kept[1]])
    expected = collate(kept)
    assert (batch.pop("skipped"), expected.pop("skipped")) == (2, 0)
    assert all(
        torch.equal(batch[name], expected[name]) for name in batch if name not in ("texts", "image_sizes")
    )
    assert batch["texts"] == expected["texts"] == [["Q"]]


@pytest.mark.parametrize("blank", [BLANK, None])
def test_a_batch_of_which_nothing_is_left_is_one_row_that_teaches_nothing(blank):
    batch = DataCollatorForSupervisedDataset(TOKENIZER, blank, counts_skipped=True)([SKIPPED, SKIPPED])
    assert batch["skipped"] == 2
    assert batch["input_ids"].tolist() == [[TOKENIZER.pad_token_id] * 2]
    assert batch["labels"].tolist() == [[IGNORE_INDEX] * 2]
    assert batch["attention_mask"].tolist() == [[True] * 2]
    assert ("images" in batch) == (blank is not None)
    if blank is not None:
        assert batch["images"].shape == (1, 3, 4, 4)
        assert batch["texts"] == [""]


def test_the_model_learns_nothing_from_a_batch_of_which_nothing_is_left(loaded):
    tokenizer, model, processor, _ = loaded
    side = processor.crop_size["height"]
    batch = DataCollatorForSupervisedDataset(tokenizer, torch.zeros(3, side, side))([SKIPPED])
    # The projector runs, as every process must run it under ZeRO-3, and gets a gradient of zero.
    loss = model(**batch, num_items_in_batch=1).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.get_model().mm_projector.parameters()]
    model.zero_grad(set_to_none=True)
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
