"""Agreement with the published code on a tiny checkpoint of the released layout (see `tests/golden`)."""

import pytest
import torch

from llava.assistant import Assistant
from llava.conversation import conv_templates
from llava.engine.base import Generation
from llava.messages import Request
from llava.mm_utils import process_images, tokenizer_image_token
from tests.conftest import TINY_LLAVA

CASES = range(20)


@pytest.mark.parametrize("case", CASES)
def test_a_reference_case(case, reference, golden, pictures, loaded, reduction):
    tokenizer, model, processor, _ = loaded
    wanted, pair = reference[case], case % 5
    reduction(wanted["reduce"])
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"<image>\n{wanted['question']}")
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")
    assert ids.tolist() == wanted["input_ids"]

    pixels = process_images([pictures[wanted["image"]]], processor, model.config)
    tokens = model.get_vision_tower().select(pixels, [wanted["question"]])
    kept = tokens.kept[0].nonzero().flatten().tolist()
    assert kept == (wanted["kept"] if wanted["kept"] is not None else list(range(576)))
    assert tokens.counts == (wanted["visual_tokens"],)

    # No `texts`: the question is read back from the ids, as for callers written for LLaVA.
    logits = model(ids.unsqueeze(0), images=pixels).logits
    assert logits.shape[1] == wanted["sequence"]
    expected = golden[f"logits/{wanted['reduce'] or 'none'}/{pair}"]
    # Worst difference seen: 4.5e-5 relative, from the published code's float16 rounding of reduced tokens.
    assert (logits[0, -1] - expected).abs().max() < 1e-3 * expected.abs().max()

    new = model.generate(ids.unsqueeze(0), images=pixels, do_sample=False, max_new_tokens=12)
    assert new[0].tolist() == wanted["generated"][1:]


@pytest.mark.parametrize("pair", range(5))
def test_patches_and_questions(pair, reference, golden, pictures, loaded):
    _, model, processor, _ = loaded
    tower = model.get_vision_tower()
    pixels = process_images([pictures[reference[pair]["image"]]], processor, model.config)
    # Worst differences seen: 1.5e-6 for patches, 5e-7 for questions.
    torch.testing.assert_close(tower.encode(pixels)[0], golden[f"patches/{pair}"], rtol=1e-5, atol=1e-5)
    question = tower.encode_texts([reference[pair]["question"]])[0]
    torch.testing.assert_close(question, golden[f"question/{pair}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["TRIM:-1", "TRIM:0.25", "TRIM:0.05"])
def test_the_merged_token(name, reference, golden, pictures, loaded, reduction):
    _, model, processor, _ = loaded
    reduction(name)
    for pair in range(5):
        pixels = process_images([pictures[reference[pair]["image"]]], processor, model.config)
        tokens = model.get_vision_tower().select(pixels, [reference[pair]["question"]])
        # The published code rounds it to float16: 1e-3 is its last bit at values up to 2.
        torch.testing.assert_close(tokens.packed[-1], golden[f"merged/{name}/{pair}"], rtol=1e-3, atol=1e-3)


def test_pixels(golden, pictures, loaded):
    _, model, processor, _ = loaded
    for name, expected in (("img0.png", golden["pixels/0"]), ("img1.png", golden["pixels/1"])):
        pixels = process_images([pictures[name]], processor, model.config)[0]
        # Stored as float16: half its spacing at values up to 2 is 5e-4.
        torch.testing.assert_close(pixels, expected.float(), rtol=0, atol=1e-3)


def test_all_cases_in_one_batch_of_mixed_reductions(reference, pictures):
    """Twenty prompts of different lengths, run together, give the ids that each gave alone."""
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")
    short = Generation(max_new_tokens=12)
    requests = [
        Request.ask(
            case["question"],
            pictures[case["image"]],
            token_reduction=case["reduce"] or "none",
            generation=short,
        )
        for case in reference
    ]
    answers = assistant.answer_all(requests, batch_size=20)
    for answer, case in zip(answers, reference, strict=True):
        assert answer.cost.visual_tokens == case["visual_tokens"]
        expected = assistant.tokenizer.decode(case["generated"][1:], skip_special_tokens=True).strip()
        assert answer.text == expected
