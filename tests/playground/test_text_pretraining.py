import pytest
import torch

from llava.constants import IGNORE_INDEX
from playground.shapes.llama_tokenizer import train_llama_tokenizer
from playground.shapes.presets import PRESETS
from playground.shapes.questions import SHORT_ANSWER, ask
from playground.shapes.text_pretraining import build_llama, collate, embed
from playground.shapes.text_samples import (
    NO_WORD,
    NOTHING,
    converse,
    kept_patches,
    make_sample,
    overprinted_sample,
    vocabulary_texts,
    warm_up,
    word_ids,
    written_sample,
)
from playground.shapes.world import COLORS, SHAPES, Scene, stream

FORMS = ("warm-up", "single", "turns", "caption")
PATCHES = [("red", "star"), ("blue", "ring"), (NOTHING,)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_llama_tokenizer(vocabulary_texts(200), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def conversation():
    return converse([ask(Scene.from_seed(3), stream(3, "words"))])


def test_vocabulary_is_llamas_with_every_word_of_the_world_in_one_piece(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(3) == "<0x00>"
    for word in [*COLORS, *SHAPES, NOTHING, "yes", "no"]:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer(f"What color is the star?{SHORT_ANSWER}")["input_ids"]) < 24


def test_only_the_answer_and_its_end_are_learned(tokenizer, conversation):
    answer = conversation.messages[1][1]
    for make in (written_sample, overprinted_sample):
        sample = make(conversation, PATCHES, tokenizer)
        learned = [label for label in sample.labels if label != IGNORE_INDEX]
        assert tokenizer.decode(learned).strip() == f"{answer}</s>"
        assert len(sample.words) == len(sample.labels) == len(sample.overprint)
        pairs = zip(sample.labels, sample.words, strict=True)
        assert all(label in (IGNORE_INDEX, word) for label, word in pairs)


def test_overprint_puts_both_words_of_a_patch_at_one_position(tokenizer, conversation):
    sample = overprinted_sample(conversation, PATCHES, tokenizer)
    first = [word_ids(patch, tokenizer)[0] for patch in PATCHES]
    where = sample.words.index(first[0])
    assert sample.words[where : where + 3] == first
    assert [second != NO_WORD for second in sample.overprint[where : where + 3]] == [True, True, False]
    assert sum(second != NO_WORD for second in sample.overprint) == 2


def test_embedding_of_an_overprinted_position_is_the_sum(tokenizer):
    model = build_llama(PRESETS["smoke"], len(tokenizer))
    table = model.get_input_embeddings().weight
    embedded = embed(model, torch.tensor([[5, 6]]), torch.tensor([[7, NO_WORD]]))
    torch.testing.assert_close(embedded[0], torch.stack([table[5] + table[7], table[6]]))


def test_a_warm_up_asks_in_keywords_and_learns_every_answer_in_place(tokenizer):
    sample = warm_up(Scene.from_seed(3), stream(3, "words"), tokenizer)
    learned = [(word, label) for word, label in zip(sample.words, sample.labels, strict=True) if label >= 0]
    assert len(learned) == 16 and all(word == label for word, label in learned)
    answers = {*COLORS, *SHAPES, "yes", "no"}
    assert {tokenizer.decode([label]).strip() for _, label in learned} <= answers
    assert len(sample.words) == len(sample.labels) == len(sample.overprint)


def test_kept_patches_are_mostly_the_named_ones():
    named = others = 0
    for seed in range(60):
        scene = Scene.from_seed(seed)
        patches = kept_patches(scene, {0}, stream(seed, "words"))
        assert patches[-1] == (NOTHING,)
        words = {(scene.things[0].color, scene.things[0].shape)}
        named += sum(patch in words for patch in patches)
        others += sum(patch not in words and patch != (NOTHING,) for patch in patches)
    assert named > 2 * others


def test_padding_is_masked_and_not_learned(tokenizer):
    samples = [make_sample(seed, form, tokenizer) for seed, form in enumerate(FORMS)]
    words, overprint, labels, mask = collate(samples, torch.device("cpu"))
    lengths = [len(sample.words) for sample in samples]
    assert mask.sum(1).tolist() == lengths
    assert words.shape == overprint.shape == labels.shape == (len(FORMS), max(lengths))
    assert (labels[mask == 0] == IGNORE_INDEX).all() and (labels != IGNORE_INDEX).any(1).all()
