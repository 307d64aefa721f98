"""The loss of an update, against what is computed by hand on three records."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.train.test_train import set_up

IGNORED = -100
VISUAL_TOKENS = 576


@pytest.fixture
def records(data, tmp_path):
    """Three records with answers of very different length, one of them without an image."""
    ask = {"from": "human", "value": "<image>\nWhat color is the circle?"}
    answers = ["Red.", "It is green, and it stands in front of a background that is white. " * 3, "No."]
    turns = [[ask, {"from": "gpt", "value": answer}] for answer in answers[:2]]
    turns.append([{"from": "human", "value": "Tell a joke."}, {"from": "gpt", "value": answers[2]}])
    records = [
        {"id": str(number), "image": f"{number}.png", "conversations": own}
        for number, own in enumerate(turns)
    ]
    del records[2]["image"]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return path


def by_hand(trainer, batches):
    """Return sums and counts of the token losses of micro-batches, from logits and labels."""
    found = []
    trainer.model.eval()
    with torch.no_grad():
        for indices in batches:
            batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
            names = ("input_ids", "attention_mask", "labels", "images")
            ids, mask, labels, images = (batch[name] for name in names)
            *_, embeddings, labels = trainer.model.prepare_inputs_labels_for_multimodal(
                ids, None, mask, None, labels, images, texts=batch["texts"]
            )
            logits = trainer.model(inputs_embeds=embeddings).logits
            wanted = labels[:, 1:].flatten()
            losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, reduction="none")
            found.append((losses.sum(), int((wanted != IGNORED).sum())))
    return found


def one_update(command, records, **settings):
    """Return a trainer of one update of all three records, without reduction."""
    flags = {
        "data_path": str(records),
        "num_train_epochs": 1,
        "max_steps": 1,
        "model_max_length": 2048,
        **settings,
    }
    return set_up(command("finetune", mm_vision_token_reduce_func=None, **flags))


@pytest.mark.parametrize("average", ["micro_batch", "token"])
@pytest.mark.parametrize("longest", [2048, VISUAL_TOKENS + 80])
def test_an_update_over_accumulated_records(command, records, average, longest):
    flags = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    trainer = one_update(command, records, loss_average=average, model_max_length=longest, **flags)
    found = by_hand(trainer, [[0], [1], [2]])
    counts = [count for _, count in found]
    assert counts[1] > 3 * counts[0]  # so that the two averages differ
    if longest < 2048:
        (_, (_, whole), _) = by_hand(one_update(command, records), [[0], [1], [2]])
        assert 0 < counts[1] < whole  # the visual tokens have pushed labels out
    expected = {
        "micro_batch": sum(total / count for total, count in found) / 3,
        "token": sum(total for total, _ in found) / sum(counts),
    }
    assert abs(expected["micro_batch"] - expected["token"]) > 1e-3
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected[average]), rel=1e-5)


def test_a_micro_batch_of_several_records_is_a_mean_over_its_tokens(command, records):
    trainer = one_update(command, records, per_device_train_batch_size=3)
    ((total, count),) = by_hand(trainer, [[0, 1, 2]])
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(total / count), rel=1e-5)


def test_micro_batches_of_one_update_need_not_be_of_one_size(command, records):
    """The last one of an epoch is smaller: it counts as much as the others, as published."""
    flags = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = one_update(command, records, **flags)
    sizes = [list(batch) for batch in trainer.get_train_dataloader().batch_sampler]
    assert [len(indices) for indices in sizes] == [2, 1]
    trainer.train()
    means = {}
    for alone in ([0], [1], [2]):
        pair = [index for index in (0, 1, 2) if index not in alone]
        (one, first), (two, second) = by_hand(one_update(command, records), [alone, pair])
        means[alone[0]] = float(one / first + two / second) / 2
    logged = trainer.state.log_history[0]["loss"]
    assert min(abs(logged - value) for value in means.values()) < 1e-5 * logged


@pytest.mark.parametrize("average", ["micro_batch", "token"])
def test_where_nothing_is_supervised_the_loss_is_zero(command, records, average):
    trainer = one_update(command, records, loss_average=average, model_max_length=VISUAL_TOKENS // 2)
    lost = trainer.data_collator([trainer.train_dataset[0]])
    count = trainer._count_lost([lost], trainer.args.device)
    assert count == (lost["labels"][:, 1:] != IGNORED).sum() > 0
    loss = trainer.compute_loss(trainer.model, dict(lost), num_items_in_batch=torch.tensor(0))
    assert loss == 0


def test_what_is_pushed_out_is_counted_for_an_adapter_too(command, records):
    longest = VISUAL_TOKENS + 80
    counts = []
    for flags in ({}, {"lora_enable": True, "lora_r": 2}):
        trainer = one_update(command, records, loss_average="token", model_max_length=longest, **flags)
        batch = trainer.data_collator([trainer.train_dataset[1]])
        counts.append(int(trainer._count_lost([batch], trainer.args.device)))
    assert counts[0] == counts[1] > 0
