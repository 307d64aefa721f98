"""What code written for LLaVA does with the model must work, with the reducer on and no `texts` passed."""

from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM, TextIteratorStreamer

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.mm_utils import KeywordsStoppingCriteria, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

QUESTIONS = ["What is it?", "Is there a bicycle in the image, and if so, of which color is it?", "Why?"]


def prompt(question, images=1):
    return f"USER: {'<image>' * images}\n{question} ASSISTANT:"


@pytest.fixture
def parts(loaded, pictures, reduction):
    """Tokenizer, model with TRIM on, and pixels of three pictures."""
    tokenizer, model, processor, _ = loaded
    reduction("TRIM:-1")
    return tokenizer, model, process_images(list(pictures.values())[:3], processor, model.config)


def encode(tokenizer, text):
    return tokenizer_image_token(text, tokenizer, return_tensors="pt")


def batch_of(tokenizer, texts, side="right"):
    rows = [encode(tokenizer, text) for text in texts]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_answers_as_each_prompt_alone(side, parts):
    tokenizer, model, pixels = parts
    ids, mask = batch_of(tokenizer, [prompt(question) for question in QUESTIONS], side)
    together = model.generate(ids, images=pixels, attention_mask=mask, do_sample=False, max_new_tokens=8)
    for i, question in enumerate(QUESTIONS):
        alone = model.generate(
            encode(tokenizer, prompt(question)).unsqueeze(0),
            images=pixels[i : i + 1],
            image_sizes=[(336, 336)],
            do_sample=False,
            max_new_tokens=8,
        )
        assert together[i].tolist() == alone[0].tolist()
    assert together.shape[1] <= 8  # new tokens only


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shown", [True, False])
def test_padding_is_no_text_where_no_mask_says_so(side, shown, parts):
    tokenizer, model, pixels = parts
    asked = [prompt(question) if shown else f"USER: {question} ASSISTANT:" for question in QUESTIONS]
    ids, mask = batch_of(tokenizer, asked, side)
    assert not mask.all()
    options = {"images": pixels if shown else None, "do_sample": False, "max_new_tokens": 6}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, attention_mask=mask, **options))
    assert torch.equal(
        model(ids, images=options["images"]).logits,
        model(ids, images=options["images"], attention_mask=mask).logits,
    )


def test_padding_that_may_be_text_is_text(parts, monkeypatch):
    tokenizer, model, _ = parts
    ids, mask = batch_of(tokenizer, ["USER: Hello ASSISTANT:", "USER: A longer question? ASSISTANT:"])
    assert torch.equal(model.prompt_encoder.mask_of(ids), mask.bool())
    monkeypatch.setattr(model, "tokenizer", SimpleNamespace(pad_token_id=0, eos_token_id=0))
    assert model.prompt_encoder.mask_of(ids) is None
    monkeypatch.setattr(model, "tokenizer", None)
    monkeypatch.setattr(model.generation_config, "pad_token_id", None)
    assert model.prompt_encoder.mask_of(ids) is None
    monkeypatch.setattr(model.generation_config, "pad_token_id", 0)
    assert torch.equal(model.prompt_encoder.mask_of(ids), mask.bool())


def test_prompts_with_and_without_image_in_one_batch(parts):
    tokenizer, model, pixels = parts
    texts = [prompt("What?"), "USER: Hello ASSISTANT:", prompt("Which one?")]
    ids, mask = batch_of(tokenizer, texts)
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 6}
    own_images = model.generate(ids, images=pixels[:2], **options)
    llava_style = model.generate(ids, images=pixels[[0, 2, 1]], **options)  # the middle one is not shown
    assert torch.equal(own_images, llava_style)
    text_only = model.generate(encode(tokenizer, texts[1]).unsqueeze(0), do_sample=False, max_new_tokens=6)
    assert own_images[1].tolist() == text_only[0].tolist()


def test_several_images_in_one_prompt(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("Compare them.", images=3)).unsqueeze(0)
    tower = model.get_vision_tower()
    counts = tower.select(pixels, "Compare them.").counts
    assert model(ids, images=pixels).logits.shape[1] == ids.shape[1] - 3 + sum(counts)
    as_list = model.generate(ids, images=list(pixels), do_sample=False, max_new_tokens=5)
    assert torch.equal(as_list, model.generate(ids, images=pixels, do_sample=False, max_new_tokens=5))


def test_arguments_stand_where_llava_has_them(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt(QUESTIONS[0])).unsqueeze(0)
    named = model(ids, images=pixels[:1], output_hidden_states=True)
    by_place = model(ids, None, None, None, None, None, False, None, True, pixels[:1], None, True)
    assert torch.equal(by_place.logits, named.logits)
    assert by_place.past_key_values is None
    assert torch.equal(by_place.hidden_states[-1], named.hidden_states[-1])


def test_encode_images_gives_what_llava_gives(parts):
    _, model, pixels = parts
    tower, projector = model.get_vision_tower(), model.get_model().mm_projector
    model.set_token_reduction("none")
    try:
        features = model.encode_images(pixels)
        assert features.shape == (len(pixels), tower.num_patches, model.config.hidden_size)
        assert torch.equal(features, projector(tower(pixels)))
    finally:
        model.set_token_reduction("TRIM:-1")
    with pytest.raises(UserError, match="pass texts="):
        model.encode_images(pixels)
    counts = tower.select(pixels, QUESTIONS[0]).counts
    assert [len(tokens) for tokens in model.encode_images(pixels, QUESTIONS[0])] == list(counts)
    model.set_token_reduction("TRIM:7")
    try:
        assert model.encode_images(pixels, QUESTIONS[0]).shape[1] == 8
    finally:
        model.set_token_reduction("TRIM:-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, pixels: (ids[0], pixels), r"input_ids is Tensor of shape \(\d+,\) and type torch.int64"),
        (lambda ids, pixels: (ids.float(), pixels), "type torch.float32; accepted: .* of whole numbers"),
        (lambda ids, pixels: (ids.tolist(), pixels), "input_ids is list of list of int"),
        (lambda ids, pixels: (ids, pixels[0]), r"images is Tensor of shape \(3, 336, 336\)"),
        (lambda ids, pixels: (ids, [Image.new("RGB", (9, 9))]), "images is list of Image; accepted"),
        (lambda ids, pixels: (ids, "photo.jpg"), "images is str; accepted: what process_images returns"),
        (lambda ids, pixels: (ids, pixels.numpy()), "images is ndarray of shape"),
        (
            lambda ids, pixels: (ids, pixels[..., :50]),
            r"accepted: a floating-point .* \(images, 3, 336, 336\)",
        ),
        (lambda ids, pixels: (ids, pixels[:, :1]), r"shape \(1, 1, 336, 336\)"),
        (lambda ids, pixels: (ids, pixels.to(torch.uint8)), "torch.uint8"),
    ],
)
def test_inputs_of_another_type_or_shape_are_refused(parts, change, message):
    tokenizer, model, pixels = parts
    ids, images = change(encode(tokenizer, prompt(QUESTIONS[0])).unsqueeze(0), pixels[:1])
    for call in (model.generate, model):
        with pytest.raises(UserError, match=message):
            call(ids, images=images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": 5}, "texts is int; accepted: a text for all images"),
        ({"texts": [5]}, "texts is list of int"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask is Tensor of shape \(1, 3\)"),
        ({"attention_mask": [[1]]}, "attention_mask is list of list of int"),
    ],
)
def test_what_goes_with_ids_is_refused_if_of_another_type_or_shape(parts, arguments, message):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt(QUESTIONS[0])).unsqueeze(0)
    with pytest.raises(UserError, match=message):
        model.generate(ids, images=pixels[:1], **arguments)


def test_the_question_is_read_from_the_ids_exactly(parts):
    tokenizer, model, pixels = parts
    for question in [*QUESTIONS, "Line one\nline  two\tand — 这是什么? <b>", "ends with colon:"]:
        ids = encode(tokenizer, prompt(question))
        assert model.prompt_encoder.question_in_ids(ids) == question
        by_ids = model(ids.unsqueeze(0), images=pixels[:1]).logits
        by_text = model(ids.unsqueeze(0), images=pixels[:1], texts=[question]).logits
        assert torch.equal(by_ids, by_text)


def test_while_training_every_turn_counts(parts):
    tokenizer, model, pixels = parts
    text = "USER: <image>\nFirst? ASSISTANT: One.</s>USER: Second? ASSISTANT: Two.</s>"
    ids = encode(tokenizer, text).unsqueeze(0)
    labels = ids.clone().masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    by_ids = model(ids, images=pixels[:1], labels=labels).loss
    by_texts = model(ids, images=pixels[:1], labels=labels, texts=[["First?", "Second?"]]).loss
    newest = model(ids, images=pixels[:1], labels=labels, texts=["Second?"]).loss
    assert torch.equal(by_ids, by_texts)
    assert not torch.equal(by_ids, newest)


def test_labels_give_loss_and_logits(parts):
    tokenizer, model, pixels = parts
    ids, mask = batch_of(tokenizer, [prompt(question) + " Yes.</s>" for question in QUESTIONS])
    labels = ids.masked_fill((mask == 0) | (ids == IMAGE_TOKEN_INDEX), IGNORE_INDEX)
    output = model(ids, attention_mask=mask, labels=labels, images=pixels)
    batch = model.prompt_encoder.splice(ids, mask, labels, pixels)
    assert output.logits.shape[:2] == batch.labels.shape
    shifted = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(output.loss, shifted)  # worst difference seen: 0
    assert (batch.labels != IGNORE_INDEX).sum() == (labels[:, 1:] != IGNORE_INDEX).sum() + len(ids)


def test_stopping_criteria_streamer_beams_and_pad_token(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What is it?")).unsqueeze(0)
    greedy = {"images": pixels[:1], "do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    whole = model.generate(ids, **greedy)

    keyword = tokenizer.decode(whole[0][3:5])
    stopped = model.generate(
        ids, stopping_criteria=[KeywordsStoppingCriteria([keyword], tokenizer, ids)], **greedy
    )
    assert stopped.shape[1] <= 5
    assert whole[0].tolist()[: stopped.shape[1]] == stopped[0].tolist()

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, args=(ids,), kwargs={**greedy, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed.strip() == tokenizer.decode(whole[0], skip_special_tokens=True).strip()

    beams = model.generate(ids, num_beams=3, **greedy)
    assert beams.shape[0] == 1
    assert beams.shape[1] <= 12


def test_sampling_follows_the_seed(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What is it?")).unsqueeze(0)
    options = {"images": pixels[:1], "do_sample": True, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": 8}
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(model.generate(ids, **options).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_another_type_than_the_towers(dtype, parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What?")).unsqueeze(0)
    logits = model(ids, images=pixels[:1].to(dtype)).logits
    assert logits.dtype is torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_answer(dtype):
    tokenizer, model, _, _ = load_pretrained_model(
        "tests/golden/llava-v1.5-tiny",
        None,
        "tiny",
        device="cpu",
        torch_dtype=dtype,
        token_reduction="TRIM:-1",
    )
    ids = encode(tokenizer, prompt("What?")).unsqueeze(0)
    assert model(ids, images=torch.randn(1, 3, 336, 336)).logits.dtype is dtype
    assert model.generate(ids, images=torch.randn(1, 3, 336, 336), max_new_tokens=3, do_sample=False).numel()


def test_more_placeholders_than_images(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What?", images=2)).unsqueeze(0)
    with pytest.raises(UserError, match="2 <image> placeholders in the prompt, 1 images given"):
        model.generate(ids, images=pixels[:1])


def test_images_that_no_prompt_shows_are_told_once(parts, monkeypatch, caplog):
    tokenizer, model, pixels = parts
    monkeypatch.setattr(model.prompt_encoder, "_has_warned_of_unseen", False)
    ids = encode(tokenizer, prompt("What?")).unsqueeze(0)
    seen = model(ids, images=pixels[:1]).logits
    assert "no <image> placeholder" not in caplog.text
    for _ in range(2):
        assert torch.allclose(model(ids, images=pixels[:2]).logits, seen, atol=1e-5)
    text = encode(tokenizer, prompt("What?", images=0)).unsqueeze(0)
    model(text, images=pixels[:1])
    assert caplog.text.count("1 of 2 images have no <image> placeholder in the prompts") == 1


@pytest.mark.parametrize("shown", [0, 2])
def test_mask_and_positions_that_were_not_given_are_not_returned(shown, parts):
    tokenizer, model, pixels = parts
    texts = [prompt("What?", images=shown // 2), prompt("And what else is there?", images=shown // 2)]
    ids, mask = batch_of(tokenizer, texts)
    images = pixels[:2] if shown else None
    prepare = model.prepare_inputs_labels_for_multimodal
    assert prepare(ids, None, None, None, None, images)[1:3] == (None, None)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    _, new_positions, new_mask, _, embeddings, _ = prepare(ids, positions, mask.int(), None, None, images)
    shape = embeddings.shape[:2] if shown else ids.shape
    assert new_positions.shape == new_mask.shape == shape
    assert new_mask.dtype == torch.int32


def test_a_model_without_tokenizer_says_what_it_needs(parts, monkeypatch):
    tokenizer, model, pixels = parts
    monkeypatch.setattr(model, "tokenizer", None)
    ids = encode(tokenizer, prompt("What?")).unsqueeze(0)
    with pytest.raises(UserError, match="texts="):
        model(ids, images=pixels[:1])
    assert model(ids, images=pixels[:1], texts="What?").logits.isfinite().all()


def test_the_reduction_changes_at_run_time_and_is_refused_when_wrong(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What?")).unsqueeze(0)
    lengths = []
    for setting in ("TRIM:5", "Pool:9", "none"):
        model.set_token_reduction(setting)
        assert model.config.mm_vision_token_reduce_func == setting
        lengths.append(model(ids, images=pixels[:1]).logits.shape[1] - ids.shape[1] + 1)
    assert lengths == [6, 9, 576]
    with pytest.raises(UserError, match="accepted"):
        model.set_token_reduction("TRIM:0")


def test_a_prompt_is_cut_at_the_configured_length_with_its_tokens(parts, monkeypatch):
    tokenizer, model, pixels = parts
    ids, mask = batch_of(tokenizer, [prompt("What?"), prompt("And what else is there?")])
    whole = model.prompt_encoder.splice(ids, mask, ids, pixels[:2])
    monkeypatch.setattr(model.config, "tokenizer_model_max_length", 20, raising=False)
    cut = model.prompt_encoder.splice(ids, mask, ids, pixels[:2])
    assert torch.equal(cut.embeddings, whole.embeddings[:, :20])
    assert torch.equal(cut.labels, whole.labels[:, :20])


def test_without_a_tower_it_is_transformers_llama(loaded):
    _, model, _, _ = loaded
    config = model.config.__class__(**{**model.config.to_dict(), "mm_vision_tower": None})
    ours = LlavaLlamaForCausalLM(config).eval()
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([[1, 5, 9, 4]])
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert torch.equal(
        ours.generate(ids, do_sample=False, max_new_tokens=5),
        theirs.generate(ids, do_sample=False, max_new_tokens=5)[:, 4:],
    )
    with pytest.raises(UserError, match="needs a model with a vision tower"):
        ours.set_token_reduction("TRIM:-1")


def test_the_reducer_passes_no_gradient_to_the_tower_but_the_projector_learns(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What?") + " Yes.</s>").unsqueeze(0)
    labels = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    model(ids, images=pixels[:1], labels=labels).loss.backward()
    assert all(parameter.grad is None for parameter in model.get_vision_tower().parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.get_model().mm_projector.parameters())
    model.zero_grad()


def test_no_question_is_looked_for_in_a_prompt_without_images(parts):
    tokenizer, model, pixels = parts
    ids, mask = batch_of(tokenizer, [prompt("What is it?"), "Human: hi\nBot:"])
    answers = model.generate(ids, images=pixels[:1], attention_mask=mask, do_sample=False, max_new_tokens=2)
    assert len(answers) == 2
    alone = encode(tokenizer, "Human: hi\nBot:").unsqueeze(0)
    with_none = [model.generate(alone, images=images, max_new_tokens=2) for images in (None, [], pixels[:0])]
    assert with_none[0].tolist() == with_none[1].tolist() == with_none[2].tolist()


def test_every_image_has_one_size(parts):
    tokenizer, model, pixels = parts
    ids = encode(tokenizer, prompt("What is it?")).unsqueeze(0)
    with pytest.raises(UserError, match="2 image_sizes for 1 images; give one per image"):
        model.generate(ids, images=pixels[:1], image_sizes=[(8, 6), (8, 6)])


def test_no_images_are_nothing_to_encode(parts):
    _, model, pixels = parts
    with pytest.raises(UserError, match=r"images is Tensor of shape \(0, 3, 336, 336\)"):
        model.encode_images(pixels[:0])
