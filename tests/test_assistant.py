"""The single entry point: whole, batched, streamed, multi-turn; its costs and its refusals."""

import threading
import time
import tracemalloc

import pytest
import torch
from PIL import Image

from llava.assistant import Assistant, bundled_checkpoint
from llava.conversation import conv_templates
from llava.engine.base import Generation
from llava.errors import MissingFileError, UserError
from llava.messages import Answer, Failure, Message, Request
from llava.mm_utils import tokenizer_image_token
from tests.conftest import GOLDEN, TINY_LLAVA, count_encodings

SHORT = Generation(max_new_tokens=8)


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1", token_reduction="TRIM:-1")


@pytest.fixture
def image(pictures):
    return pictures["img0.png"]


def ask(text, *images, **settings):
    return Request.ask(text, *images, **{"generation": SHORT, **settings})


def test_an_answer_says_what_it_cost_and_what_was_seen(assistant, image):
    answer = assistant.answer("What is it?", image, SHORT)
    assert answer.cost.patches == 576
    (kept,) = answer.kept
    assert kept.shape == (24, 24)
    assert answer.cost.visual_tokens == int(kept.sum()) + 1
    assert answer.cost.new_tokens == 8
    assert answer.finish_reason == "length"
    spent = (answer.cost.vision_ms, answer.cost.reduction_ms, answer.cost.prefill_ms, answer.cost.decode_ms)
    assert all(milliseconds > 0 for milliseconds in spent)


def test_a_batch_answers_as_each_request_alone(assistant, pictures):
    images = list(pictures.values())
    requests = [
        ask("What is it?", images[0]),
        ask("A much longer question about the image: what is on the left?", images[1]),
        ask("Hello", generation=Generation(max_new_tokens=2)),
        ask("Compare <image> with <image>.", images[0], images[2]),
        ask("What is it?", images[0], token_reduction="none"),
        ask("What is it?", images[0], token_reduction="Random:9"),
        ask("What is it?", images[0], generation=Generation(max_new_tokens=5, temperature=3.0, seed=1)),
        ask("What is it?", images[0], template="llava_v0", clip_text="another text"),
    ]
    together = list(assistant.answer_all(requests, batch_size=4))
    for request, answer in zip(requests, together, strict=True):
        (alone,) = assistant.answer_all([request])
        assert answer.text == alone.text
        assert answer.cost.visual_tokens == alone.cost.visual_tokens
        assert all(torch.equal(a, b) for a, b in zip(answer.kept, alone.kept, strict=True))
    assert [answer.cost.visual_tokens for answer in together][4:6] == [576, 10]
    assert together[2].cost.patches == together[2].cost.visual_tokens == 0
    assert together[2].cost.new_tokens == 2


def test_images_may_be_files_or_functions_and_are_read_in_time(assistant, image, tmp_path):
    read = []

    def open_image():
        read.append(1)
        return image

    path = GOLDEN / "img0.png"
    requests = [ask("What is it?", one) for one in (image, path, str(path), open_image)]
    assert read == []
    answers = list(assistant.answer_all(requests))
    assert read == [1]
    assert len({answer.text for answer in answers}) == 1


def test_a_request_that_fails_yields_its_error_and_the_others_go_on(assistant, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")

    def unreadable():
        raise OSError("disk on fire")

    requests = [
        ask("What is it?", image, id="a"),
        ask("What is it?", tmp_path / "broken.png", id="b"),
        ask("What is it?", unreadable, id="c"),
        ask("word " * 5000, id="d"),
        ask("  ", image, id="e"),
        ask("<image> <image> what?", image, id="f"),
        ask("What?", image, template="nonsense", id="g"),
        ask("Wh\udcfft?", image, token_reduction="TRIM:5", id="h"),
        ask("What?", image, clip_text="\ud83d", id="i"),
        ask("What is it?", image, id="j"),
    ]
    results = list(assistant.answer_all(requests, batch_size=3))
    assert [result.id for result in results] == list("abcdefghij")
    assert [type(result) for result in results] == [Answer, *[Failure] * 8, Answer]
    assert results[0].text == results[-1].text == assistant.answer("What is it?", image, SHORT).text
    reasons = [str(result.error) for result in results[1:-1]]
    for reason, words in zip(
        reasons,
        [
            *[
                "not an image",
                "disk on fire",
                "reads at most",
                "empty",
                "2 <image> placeholders",
                "'nonsense'",
            ],
            *[r"'\udcff', which is no character", r"'\ud83d', which is no character"],
        ],
        strict=True,
    ):
        assert words in reason


def test_a_reduction_that_cannot_be_met_fails_its_own_request_alone(assistant, image):
    settings = ["VisionZip:3", "TRIM:-1", "PruMerge+:100", "FasterVLM:40"]
    found = list(assistant.answer_all([ask("What is it?", image, token_reduction=one) for one in settings]))
    assert [isinstance(one, Failure) for one in found] == [True, False, True, False]
    assert "VisionZip:3 asks for 3 of 576 visual tokens" in str(found[0].error)
    for setting, one in zip(settings, found, strict=True):
        if not isinstance(one, Failure):
            (again,) = assistant.answer_all([ask("What is it?", image, token_reduction=setting)])
            assert again.text == one.text


def test_a_question_without_words_is_covered_by_the_image_alone(assistant, image):
    (found,) = assistant.answer_all([ask("?!", image, token_reduction="MMTok:40")])
    assert not isinstance(found, Failure)
    assert found.cost.visual_tokens == 40


def test_answers_come_in_order_as_soon_as_they_are_done(assistant):
    """Requests are taken a bounded number ahead of the oldest that runs, and each has a length of its own."""
    taken = []

    def requests():
        for number in range(60):
            taken.append(number)
            yield Request.ask("Hi", id=number, generation=Generation(max_new_tokens=60 if number == 0 else 2))

    ahead, order = [], []
    for answer in assistant.answer_all(requests(), batch_size=4):
        order.append(answer.id)
        ahead.append(len(taken) - len(order))
    assert order == list(range(60))
    assert max(ahead) < 8
    assert len(taken) == 60


def test_requests_that_nobody_waits_for_any_more_are_cancelled(assistant):
    answers = assistant.answer_all(ask("Hi", generation=Generation(max_new_tokens=50)) for _ in range(100))
    next(answers)
    answers.close()
    engine = assistant.router._engine
    engine.step()
    assert engine.step() == []
    assert not engine._rows


def test_many_requests_run_in_bounded_memory(assistant):
    """Images are dropped with their requests: the peak of many is that of a few."""

    def peak(count):
        requests = (
            ask("Hi", lambda: Image.new("RGB", (400, 400)), generation=Generation(max_new_tokens=1))
            for _ in range(count)
        )
        tracemalloc.start()
        for _ in assistant.answer_all(requests, batch_size=2):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4)
    few, many = peak(8), peak(40)
    # What the threads that read images hold at once varies; 32 images more would be 41 MiB.
    assert many < few + 4 * 2**20


def test_streamed_pieces_join_to_the_whole_answer(assistant, image):
    whole = assistant.answer("What is it?", image, SHORT)
    stream, pieces = assistant.stream(ask("What is it?", image, id=7)), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as ended:
            answer = ended.value
            break
    assert "".join(pieces) == whole.text == answer.text
    assert len(pieces) > 1
    assert (answer.id, answer.finish_reason) == (7, "length")


def test_a_stream_that_is_given_up_is_cancelled(assistant, image):
    stream = assistant.stream(ask("What is it?", image, generation=Generation(max_new_tokens=50)))
    next(stream)
    stream.close()
    engine = assistant.router._engine
    assert not engine._rows  # nor does its cache wait for somebody else's request
    assert engine.cache_bytes == 0
    with pytest.raises(UserError, match="empty"):
        next(assistant.stream(ask("")))


def test_the_readers_own_time_is_no_cost_of_the_answer(assistant, image):
    chat = assistant.chat(image)
    for _ in chat.stream("What is it?", generation=Generation(max_new_tokens=3)):
        time.sleep(0.5)
    cost = chat.answers[-1].cost
    without = assistant.answer("What is it?", image, Generation(max_new_tokens=3)).cost
    assert (
        cost.decode_ms < 500 + 3 * without.decode_ms
    )  # three steps were slept through for half a second each


def test_several_questions_about_one_image_encode_it_once(assistant, image, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    list(assistant.answer_all([ask(text, image) for text in ("What?", "Why?", "Who?")]))
    assert encoded == [1]


def test_questions_about_one_image_encode_it_once_across_batches(assistant, pictures, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    images = [pictures["img0.png"], pictures["img2.png"]]
    requests = [ask(f"What is it? {number}", image) for image in images for number in range(7)]
    results = list(assistant.answer_all(requests, batch_size=2))
    assert sum(encoded) == 2
    alone = [assistant.answer_all([request]) for request in requests]
    assert [answer.text for answer in results] == [next(answers).text for answers in alone]


def test_threads_ask_one_assistant_at_once(assistant, pictures):
    images = list(pictures.values())
    questions = ["What is it?", "Is there a bicycle?", "Why?", "How many are there in all?"]
    expected = [assistant.answer(text, images[i], SHORT).text for i, text in enumerate(questions)]
    found = {}

    def work(thread):
        settings = ("TRIM:-1", "none")[thread % 2]
        list(assistant.stream(ask("Hi", images[0], token_reduction=settings)))
        found[thread] = [assistant.answer(text, images[i], SHORT).text for i, text in enumerate(questions)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == dict.fromkeys(range(6), expected)


def test_each_turn_reduces_the_image_anew_for_its_question(assistant, image, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    chat = assistant.chat(image)
    first = chat.ask("What is it?", generation=SHORT)
    second = chat.ask("Is there a bicycle in the image?", generation=SHORT)
    assert encoded == [1]
    assert second.cost.vision_ms < first.cost.vision_ms
    assert not torch.equal(first.kept[0], second.kept[0])
    alone = assistant.answer("Is there a bicycle in the image?", image, SHORT)
    assert torch.equal(second.kept[0], alone.kept[0])
    assert chat.prompt.count("<image>") == 1
    assert f"ASSISTANT: {first.text}</s>USER: Is there a bicycle" in chat.prompt
    assert chat.answers == [first, second]


def test_a_later_turn_may_bring_new_images(assistant, pictures, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    chat = assistant.chat(pictures["img0.png"])
    chat.ask("What is it?", generation=SHORT)
    answer = chat.ask("And this?", pictures["img1.png"], generation=SHORT)
    assert encoded == [1, 1]
    assert len(answer.kept) == 2
    assert "USER: <image>\nWhat is it? ASSISTANT:" in chat.prompt
    assert chat.prompt.endswith("USER: <image>\nAnd this? ASSISTANT:")
    messages = (
        Message("user", "What is it?", (pictures["img0.png"],)),
        Message("assistant", chat.answers[0].text),
        Message("user", "And this?", (pictures["img1.png"],)),
    )
    (same,) = assistant.answer_all([Request(messages, generation=SHORT)])
    assert same.text == answer.text


def test_a_turn_that_is_given_up_leaves_no_trace(assistant, image):
    chat = assistant.chat(image)
    stream = chat.stream("What is it?", generation=SHORT)
    next(stream)
    stream.close()
    with pytest.raises(UserError):
        chat.ask("   ")
    assert chat.answers == []
    answer = chat.ask("What is it?", generation=SHORT)
    assert answer.text == assistant.answer("What is it?", image, SHORT).text


def test_a_chat_changes_its_reduction_between_turns(assistant, image):
    chat = assistant.chat(image)
    chat.token_reduction = "TRIM:10"
    assert chat.ask("What?", generation=SHORT).cost.visual_tokens == 11
    chat.token_reduction = "none"
    assert chat.ask("What?", generation=SHORT).cost.visual_tokens == 576
    chat.token_reduction = "TRIM:zero"
    with pytest.raises(UserError, match="accepted"):
        chat.ask("What?", generation=SHORT)


def test_clip_reads_the_newest_question_or_what_the_request_says(assistant, image):
    plain = assistant.answer("What is it?", image, SHORT)
    (with_instruction,) = assistant.answer_all(
        [ask("What is it?\nAnswer with a word.", image, clip_text="What is it?")]
    )
    assert torch.equal(plain.kept[0], with_instruction.kept[0])
    (without,) = assistant.answer_all([ask("What is it?\nAnswer with a word.", image)])
    assert not torch.equal(plain.kept[0], without.kept[0])


def test_a_system_message_replaces_the_templates(assistant):
    prompt = assistant.render(Request((Message("system", "Be brief."), Message("user", "Hi"))))
    assert prompt == "Be brief. USER: Hi ASSISTANT:"
    assert conv_templates["vicuna_v1"].system.startswith("A chat between")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<image>", "empty"),
        ("<image> <image> what?", "2 <image> placeholders in the question, 1 images given"),
    ],
)
def test_questions_that_make_no_sense(text, message, assistant, image):
    with pytest.raises(UserError, match=message):
        assistant.answer(text, image)


def test_a_prompt_longer_than_the_model_reads_is_refused_not_cut(assistant, image, monkeypatch):
    monkeypatch.setattr(assistant.model.config, "tokenizer_model_max_length", 60, raising=False)
    with pytest.raises(UserError, match="at most 59"):
        assistant.answer("What is it?", image)


def test_an_answer_ends_where_the_model_reads_no_further(assistant, image, monkeypatch):
    (whole,) = assistant.answer_all([ask("What is it?", image)])
    length = len(tokenizer_image_token(assistant.render(ask("What is it?", image)), assistant.tokenizer)) - 1
    limit = length + whole.cost.visual_tokens + 3
    monkeypatch.setattr(assistant.model.config, "tokenizer_model_max_length", limit, raising=False)
    generation = Generation(max_new_tokens=8, min_new_tokens=6)
    answer = assistant.answer("What is it?", image, generation)
    assert (answer.cost.new_tokens, answer.finish_reason) == (3, "length")


def test_a_question_for_one_request_loads_the_text_half_when_it_is_needed(image):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")
    tower = assistant.model.get_vision_tower()
    assert assistant.answer("What?", image, SHORT).cost.visual_tokens == 576
    assert tower.text_tower is None
    (answer,) = assistant.answer_all([ask("What?", image, token_reduction="TRIM:-1")])
    assert answer.cost.visual_tokens < 576
    assert assistant.answer("What?", image, SHORT).cost.visual_tokens == 576


def test_images_need_a_vision_tower(image):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu")
    assistant.model.get_model().detach_vision_tower()
    assistant.model.get_model().vision_tower = None
    with pytest.raises(UserError, match="without a vision tower"):
        assistant.answer("What?", image)


def test_an_unknown_template_is_refused_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"'nonsense'.*vicuna_v1"):
        Assistant.load("/nowhere", conv_mode="nonsense")


def test_without_the_repository_the_bundled_model_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("llava.assistant.SHAPES_CHECKPOINT", tmp_path / "none")
    with pytest.raises(MissingFileError, match="clone of the repository"):
        bundled_checkpoint()


def test_an_image_that_is_gone_is_never_taken_for_another(assistant, pictures):
    """Images are told apart by identity, which an object may inherit from one that was given up."""
    colors = [(number * 6 % 256, 255 - number, 90) for number in range(40)]
    chat = assistant.chat()
    for color in colors:
        stream = chat.stream("What is it?", Image.new("RGB", (30, 30), color), generation=SHORT)
        next(stream)
        stream.close()
        del stream
    expected = assistant.answer("What is it?", pictures["img2.png"], SHORT)
    found = chat.ask("What is it?", pictures["img2.png"].copy(), generation=SHORT)
    assert found.text == expected.text
    assert torch.equal(found.kept[0], expected.kept[0])


def test_what_a_model_wrote_is_no_placeholder(assistant, image):
    messages = (
        Message("system", "Look at <image>, <ima<image>ge>."),
        Message("user", "What is it?", (image,)),
        Message("assistant", "An <image> of a cat <ima<ima<image>ge>ge>"),
        Message("user", "Why?"),
    )
    (answer,) = assistant.answer_all([Request(messages, generation=SHORT)])
    assert isinstance(answer, Answer)
    assert len(answer.kept) == 1


@pytest.mark.parametrize("around", ["<image>", "<im_start><image><im_end>"])
def test_a_rendered_prompt_gets_what_the_model_expects_around_an_image(around, assistant, image, monkeypatch):
    monkeypatch.setattr(assistant.model.config, "mm_use_im_start_end", True)
    rendered = Request.ask("", image, prompt=f"USER: {around}\nWhat is it? ASSISTANT:")
    assert assistant.render(rendered) == "USER: <im_start><image><im_end>\nWhat is it? ASSISTANT:"


def test_a_reduction_that_this_model_cannot_do_fails_alone(checkpoint_copy, image):
    folder = checkpoint_copy()
    (folder.parent / "clip-vit-tiny-patch14-336" / "vocab.json").unlink()
    lame = Assistant.load(str(folder), device="cpu")
    results = list(
        lame.answer_all([ask("What?", image), ask("What?", image, token_reduction="TRIM:5"), ask("Hi")])
    )
    assert [type(result) for result in results] == [Answer, Failure, Answer]
    assert "vocab.json" in str(results[1].error)


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: "no image", lambda: None])
def test_a_function_that_gives_no_image_fails_alone(bad, assistant, image):
    results = list(assistant.answer_all([ask("What?", image), ask("What?", bad), ask("Hi")]))
    assert [type(result) for result in results] == [Answer, Failure, Answer]


def test_tiles_that_do_not_fit_the_tower_fail_alone(checkpoint_copy, image):
    folder = checkpoint_copy(image_aspect_ratio="anyres", image_grid_pinpoints=[[400, 400]])
    anyres = Assistant.load(str(folder), device="cpu")
    results = list(anyres.answer_all([ask("Hi"), ask("What?", image)]))
    assert [type(result) for result in results] == [Answer, Failure]
    assert "image_grid_pinpoints" in str(results[1].error)


def test_tiles_without_resolutions_are_refused_before_anything_is_loaded(checkpoint_copy):
    with pytest.raises(UserError, match="has image_aspect_ratio anyres and lacks image_grid_pinpoints"):
        Assistant.load(str(checkpoint_copy(image_aspect_ratio="anyres")), device="cpu")


def test_finished_answers_come_before_what_the_source_raises(assistant):
    def requests():
        for number in range(5):
            yield ask("Hi", id=number, generation=Generation(max_new_tokens=1))
        raise KeyError("the caller's own mistake")

    found = []
    with pytest.raises(KeyError):
        for answer in assistant.answer_all(requests(), batch_size=2):
            found.append(answer.id)
    assert found[:3] == [0, 1, 2]


def test_a_batch_of_nothing_is_refused(assistant):
    with pytest.raises(UserError, match="batch_size is 0"):
        next(assistant.answer_all([ask("Hi")], batch_size=0))


def test_the_text_encoder_that_a_request_loads_has_ordinary_weights(image):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu")
    list(assistant.answer_all([ask("What?", image, token_reduction="TRIM:-1")]))
    tower = assistant.model.get_vision_tower().text_tower
    assert not any(parameter.is_inference() for parameter in tower.parameters())
