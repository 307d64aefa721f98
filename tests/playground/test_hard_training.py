"""What is trained on crowded scenes: samples in words, a CLIP's losses, and both stages' data."""

import json
import math

import numpy as np
import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.errors import UserError
from playground.hard_shapes import recipe, train_clip
from playground.hard_shapes.clip_batches import NAMES, SEEN_PATCHES, ClipBatches, cut_patches, world_texts
from playground.hard_shapes.glyphs import CHARACTERS
from playground.hard_shapes.make_data import stage1_sample, stage2_sample
from playground.hard_shapes.presets import HARD_PRESETS
from playground.hard_shapes.questions import KINDS, ask
from playground.hard_shapes.scene import GRID, PATCH, SIZE, TRAIN, Scene
from playground.hard_shapes.text_pretraining import (
    VOCABULARY,
    TextBatches,
    answer_loss,
    begin_in_order,
    collate,
    embed,
    make_single,
    right_by_kind,
)
from playground.hard_shapes.text_samples import (
    CENTER,
    COLUMN_WORDS,
    DRILL_QUESTIONS,
    KEYWORDS,
    ROW_WORDS,
    SHORT_KINDS,
    SIZE_WORDS,
    content_words,
    kept_patches,
    keywords,
    list_things,
    make_sample,
    patch_words,
    size_word,
    vocabulary_texts,
    word_ids,
)
from playground.shapes.clip_model import build_clip, normalize
from playground.shapes.clip_tokenizer import train_clip_tokenizer
from playground.shapes.llama_tokenizer import train_llama_tokenizer
from playground.shapes.pictures import draw_pictures
from playground.shapes.text_pretraining import build_llama
from playground.shapes.text_samples import NO_WORD, NOTHING
from playground.shapes.world import COLORS, SHAPES, stream

SMOKE = HARD_PRESETS["full-smoke"]
FORMS = ("drill", "turns", "single", "caption", "listing")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_llama_tokenizer(vocabulary_texts(200), tmp_path_factory.mktemp("llama"), VOCABULARY)


@pytest.fixture(scope="module")
def scenes():
    return [Scene.from_seed(seed) for seed in TRAIN[:40]]


def test_every_word_of_the_pictures_is_one_token(tokenizer):
    words = [*COLORS, *SHAPES, *CHARACTERS, *ROW_WORDS, *COLUMN_WORDS, *SIZE_WORDS, CENTER, NOTHING]
    words += [*KEYWORDS.values(), "left", "below", "larger", "yes", *map(str, range(1, 10))]
    ids = word_ids(words, tokenizer)
    assert tokenizer.unk_token_id not in ids
    assert len(set(ids)) == len(set(words))
    for word, token in zip(words, ids, strict=True):  # as it is read in a sentence
        assert tokenizer(f"the {word}", add_special_tokens=False)["input_ids"][-1] == token


def test_patches_say_what_they_show_where_and_how_large(scenes):
    for scene in scenes:
        shown = patch_words(scene)
        assert {thing for thing, _ in shown.values()} == set(range(len(scene.things)))
        for patch, (index, words) in shown.items():
            thing = scene.things[index]
            assert words[:2] == (thing.color, thing.shape)
            assert words[2:4] == (ROW_WORDS[patch // GRID], COLUMN_WORDS[patch % GRID])
            assert (thing.character in words) == bool(thing.character)
        centers = sum(CENTER in words for _, words in shown.values())
        assert centers == len(scene.things)  # by which they are counted


def test_sizes_have_words_in_their_order():
    words = [size_word(side) for side in range(16, 81)]
    assert words == sorted(words)
    assert set(words) == set(SIZE_WORDS)


def test_most_patches_of_what_is_named_stay(scenes):
    for scene in scenes[:10]:
        named, others = 0, 0
        for words in kept_patches(scene, {0}, stream(scene.seed, "words"))[:-1]:
            thing = scene.things[0]
            named += words[:2] == (thing.color, thing.shape)
            others += words[:2] != (thing.color, thing.shape)
        assert named >= 1
        assert others <= 25
        whole = kept_patches(scene, None, stream(scene.seed, "words"))
        assert whole[-1] == (NOTHING,)
        assert sum(words[0] != NOTHING for words in whole) == len(patch_words(scene))


@pytest.mark.parametrize("kind", SHORT_KINDS)
def test_keywords_say_what_a_question_does(kind, scenes, tokenizer):
    for scene in scenes:
        question = ask(scene, stream(scene.seed, "words"), kind)
        said = keywords(scene, question, stream(1, "words"))
        assert said[0] in KEYWORDS.values()
        assert question.answer not in said[1:] or question.kind == "presence"
        assert tokenizer.unk_token_id not in word_ids(said, tokenizer)
        if question.kind in ("position", "size"):  # the first of the two is the one that is asked about
            first = scene.things[question.named[0]]
            assert said[1] in (first.color, first.shape, first.character)


def test_content_words_are_those_that_name():
    assert content_words("How many crosses are there?") == ["cross"]
    assert content_words("Is the object with the character A above a red star?") == ["A", "red", "star"]
    assert content_words("Is a 7 on it?") == ["7"]


@pytest.mark.parametrize("form", FORMS)
def test_only_answers_are_learned(form, tokenizer):
    for seed in TRAIN[:5]:
        sample = make_sample(seed, form, tokenizer)
        assert len(sample.words) == len(sample.labels)
        learned = [
            (word, label) for word, label in zip(sample.words, sample.labels, strict=True) if label >= 0
        ]
        assert learned
        assert all(word == (label,) for word, label in learned)
        if form == "drill":
            assert len(learned) == DRILL_QUESTIONS


def test_a_listing_says_all_of_every_thing(scenes):
    for scene in scenes[:5]:
        listed = list_things(scene).split(" , ")
        assert len(listed) == len(scene.things)
        for words, thing in zip(listed, scene.things, strict=True):
            assert words.startswith(f"{thing.color} {thing.shape}")
            assert (thing.character in words.split()) == bool(thing.character)


def test_a_position_is_the_sum_of_its_words_and_padding_is_not_learned(tokenizer):
    model = build_llama(SMOKE, len(tokenizer))
    samples = [make_sample(seed, form, tokenizer) for seed, form in zip(TRAIN[:5], FORMS, strict=True)]
    words, labels, mask = collate(samples)
    lengths = [len(sample.labels) for sample in samples]
    assert mask.sum(1).tolist() == lengths
    assert (labels[mask == 0] == IGNORE_INDEX).all()
    assert (words[mask == 0] == NO_WORD).all()
    embedded = embed(model, words)
    table = model.get_input_embeddings().weight
    position = next(index for index, own in enumerate(samples[0].words) if len(own) > 3)
    expected = table[list(samples[0].words[position])].sum(0)
    torch.testing.assert_close(embedded[0, position], expected)
    assert embedded.shape == (5, max(lengths), table.shape[1])


def test_rows_columns_and_sizes_begin_in_order(tokenizer):
    model = build_llama(HARD_PRESETS["full"], len(tokenizer))
    begin_in_order(model, tokenizer)
    table = model.get_input_embeddings().weight
    for ordered in (ROW_WORDS, COLUMN_WORDS, SIZE_WORDS):
        own = table[list(word_ids(ordered, tokenizer))]
        near, nearer, far = (torch.cdist(own, own).diagonal(offset).mean() for offset in (2, 1, 6))
        assert nearer < near < far


def test_a_step_of_text_pretraining_learns(tokenizer):
    torch.manual_seed(0)
    model = build_llama(SMOKE, len(tokenizer))
    batches = TextBatches(tokenizer, SMOKE)
    first, again, second = batches.prepare(0, 0), batches.prepare(0, 0), batches.prepare(1, 0)
    assert all(map(torch.equal, first, again))  # a resumed run repeats it
    assert first[0].shape != second[0].shape or not torch.equal(first[0], second[0])
    answer_loss(model, first)["loss"].backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert set(right_by_kind(model, tokenizer, 16)) == set(KINDS)
    sample, kind = make_single(TRAIN[3], tokenizer)
    assert kind == KINDS[TRAIN[3] % len(KINDS)]
    assert sum(label >= 0 for label in sample.labels) >= 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    clip_tokenizer = train_clip_tokenizer(world_texts(50), 300, folder)
    model = build_clip(SMOKE, clip_tokenizer, SIZE)
    train_clip.begin_near(model)
    draw_pictures(folder / "pictures", 16, train_clip.HARD_WORLD)
    return train_clip.Learner(model), ClipBatches(clip_tokenizer, folder / "pictures", SMOKE)


def scenes_of(batches, step):
    """Return the scenes of a step, as it draws them."""
    rows = np.random.default_rng([11, step]).choice(16, SMOKE.clip_batch, replace=False)
    return [Scene.from_seed(TRAIN[row]) for row in rows]


WHOLE = SMOKE.clip_steps[0]  # the first step that sees whole pictures


def test_some_patches_are_seen_as_the_whole_tower_sees_them(clip):
    model = clip[0].clip.eval()
    pictures = np.stack([np.asarray(Scene.from_seed(seed).render()) for seed in TRAIN[:2]])
    every = np.tile(np.arange(GRID * GRID), (2, 1))
    with torch.no_grad():
        pixels = cut_patches(pictures, every)
        hidden, joint, pooled = train_clip.encode_picture(model, pixels, torch.from_numpy(every))
        expected = model.vision_model(normalize(pictures), output_hidden_states=True)
        own = expected.hidden_states[-2][:, 1:]
    assert (hidden - own).abs().max() < 2e-5
    assert (pooled - model.visual_projection(expected.pooler_output)).abs().max() < 2e-5
    assert (joint - model.visual_projection(model.vision_model.post_layernorm(own))).abs().max() < 2e-5


def test_heads_begin_by_looking_nearby(clip):
    tower = clip[0].clip.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings.position_embedding.weight[1:])
    attention = tower.encoder.layers[0].self_attn
    head = attention.head_dim
    query, key = (layer(hidden)[:, :head] for layer in (attention.q_proj, attention.k_proj))
    scores = (query @ key.T)[GRID * 12 + 12].view(GRID, GRID)
    assert scores.argmax() == GRID * 12 + 12
    assert scores[12, 13] > scores[12, 18]
    assert scores[13, 12] > scores[18, 12]


def test_a_step_of_clip_has_all_its_losses_and_repeats_itself(clip):
    learner, batches = clip
    report, again = (learner.losses(batches.prepare(0)) for _ in range(2))
    assert report.keys() == {"loss", *train_clip.WEIGHTS}
    assert report["loss"] == again["loss"]
    assert all(math.isfinite(value.detach()) for value in report.values())
    report["loss"].backward()
    assert learner.probe.weight.grad.abs().sum() > 0


def test_most_background_is_left_out_and_nothing_else(clip):
    batch, whole = clip[1].prepare(0), clip[1].prepare(WHOLE)
    assert batch.pixels.shape == (SMOKE.clip_batch, SEEN_PATCHES, 3 * PATCH * PATCH)
    assert whole.patches.shape == (SMOKE.clip_batch, GRID * GRID)
    for row, scene in enumerate(scenes_of(clip[1], 0)):
        touched = np.flatnonzero(scene.coverage().max(0) > 0.1)
        assert set(touched) <= set(batch.patches[row].tolist())


def test_what_shares_a_word_is_not_told_to_be_unlike_it(clip):
    batch = clip[1].prepare(WHOLE)
    assert (batch.related >= batch.named).all()
    assert (batch.related > batch.named).any()


def test_labels_are_those_of_the_thing_in_front(clip):
    batch = clip[1].prepare(WHOLE)
    checked = 0
    for row, scene in enumerate(scenes_of(clip[1], WHOLE)):
        front = scene.coverage().reshape(len(scene.things), -1).argmax(0)
        for name, labels in (
            ("color", batch.colors),
            ("shape", batch.shapes),
            ("character", batch.characters),
        ):
            for patch in (labels[row] >= 0).nonzero().flatten().tolist():
                thing = scene.things[front[patch]]
                assert NAMES[name][int(labels[row, patch])] == getattr(thing, name)
                assert batch.sizes[row, patch] == pytest.approx(math.log(thing.size / PATCH))
                checked += 1
        assert batch.centers[row].sum() == len(scene.things)
    assert checked > 100


def test_data_of_both_stages_are_llavas():
    first, second = stage1_sample(0, 10), stage1_sample(1, 10)
    assert first["image"] == f"{TRAIN[0]}.jpg"
    assert first["conversations"][1]["value"] == list_things(Scene.from_seed(TRAIN[0]))
    assert second["conversations"][1]["value"].startswith(("a ", "an "))
    several, single = stage2_sample(0, 10, 4), stage2_sample(4, 10, 4)
    assert len(several["conversations"]) == 16
    assert len(single["conversations"]) == 2
    assert several["conversations"][0]["value"].startswith("<image>\n")
    json.dumps([first, several])
    # A picture returns with other questions.
    assert stage2_sample(1, 10, 4)["conversations"] != stage2_sample(11, 10, 4)["conversations"]


def test_a_trial_of_one_kind_says_what_it_needs(tmp_path, capsys):
    assert recipe.main(["--work", str(tmp_path)]) == 2
    assert "lacks clip-shapes: run build.sh --preset full" in capsys.readouterr().err


@pytest.fixture
def build(tmp_path):
    """What a build leaves of which a trial needs names alone."""
    for name in (*recipe.NEEDED, "stage1"):
        (tmp_path / "build" / name).mkdir(parents=True)
    (tmp_path / "build" / "pictures" / "0.jpg").touch()
    (tmp_path / "build" / "stage1" / "mm_projector.bin").touch()
    return tmp_path / "build"


def test_the_minutes_of_a_trial_are_those_of_all_its_pieces(build, monkeypatch):
    clock, ends = [0.0], [KeyboardInterrupt, UserError("out of memory"), None]

    def train(work, reduction, projector, batch, output, data):
        output.with_name(f"{output.name}.unfinished").mkdir(exist_ok=True)
        clock[0] += 120
        if end := ends.pop(0):
            raise end
        output.mkdir()

    monkeypatch.setattr(recipe, "run_stage2", train)
    monkeypatch.setattr(recipe.time, "monotonic", lambda: clock[0])
    for end in (KeyboardInterrupt, UserError):
        with pytest.raises(end):
            recipe.train_kind(build, "color", "TRIM:-1", 1)
    for _ in range(2):  # the second only finds it
        output, minutes = recipe.train_kind(build, "color", "TRIM:-1", 1)
        assert (output.name, minutes) == ("only-color-TRIM--1-1", 6.0)


@pytest.mark.parametrize("left", ["only-color-TRIM--1-1", "only-color-TRIM--1-1.unfinished"])
def test_the_minutes_of_a_trial_without_a_record_are_unknown(left, build, monkeypatch, capsys):
    (build / left).mkdir()  # finished by an earlier version, or killed
    monkeypatch.setattr(recipe, "run_stage2", lambda *arguments: None)
    monkeypatch.setattr(recipe, "score", lambda *arguments: 50.0)
    assert not recipe.main(["--work", str(build), "--kinds", "color", "--samples", "1"])
    assert capsys.readouterr().out.splitlines()[0] == '["color", "1", "-", "50.0"]'


def test_a_trial_of_one_kind_takes_a_relative_folder(build, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def train(work, reduction, projector, *rest):
        raise UserError(f"training starts in {work} from {projector}")

    monkeypatch.setattr(recipe, "run_stage2", train)
    assert recipe.main(["--work", "build", "--kinds", "color", "--samples", "1"]) == 2
    started = f"training starts in {build} from {build / 'stage1' / 'mm_projector.bin'}"
    assert started in capsys.readouterr().err


def test_questions_of_one_kind_can_be_had():
    for number in range(8):
        sample = stage2_sample(number, 10, 4, kinds=["count"])
        asked = [turn["value"] for turn in sample["conversations"] if turn["from"] == "human"]
        assert all("many" in text or "Count" in text for text in asked)
