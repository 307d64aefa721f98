"""POPE: how answers are read, labels joined, and F1 summed up."""

import json

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Question, Response
from llava.eval.benchmarks.pope import POPE, confusion, load, mark, metrics, says


def write(folder, questions, labels):
    (folder / "coco").mkdir()
    lines = [json.dumps(line) + "\n" for line in questions]
    (folder / "llava_pope_test.jsonl").write_text("".join(lines))
    for category, rows in labels.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "coco" / f"coco_pope_{category}.json").write_text(text)


def label(image, thing, answer):
    return {"question_id": 1, "image": image, "text": f"Is there a {thing} in the image?", "label": answer}


def question(number, image, thing, category):
    text = f"Is there a {thing} in the image?\nAnswer the question using a single word or phrase."
    return {"question_id": number, "image": image, "text": text, "category": category}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", "no"),
        ("no.", "no"),
        ("No, there is not", "no"),
        ("There is not one", "no"),
        ("Yes. No.", "yes"),  # only the first sentence counts
        ("NO", "yes"),  # and only three words
        ("nothing", "yes"),
        ("", "yes"),
        ("I cannot tell", "yes"),  # an answer that is neither counts as yes
    ],
)
def test_answers_are_read_as_the_published_scorer_does(text, expected):
    assert says(text) == expected


def test_labels_are_joined_by_category_image_and_question_not_by_position(tmp_path):
    labels = {
        "random": [label("b.jpg", "dog", "no"), label("a.jpg", "dog", "yes")],
        "popular": [label("a.jpg", "dog", "no")],
    }
    asked = [question(7, "a.jpg", "dog", "random"), question(8, "b.jpg", "dog", "random")]
    asked.append(question(9, "a.jpg", "dog", "popular"))
    write(tmp_path, asked, labels)
    found = load(tmp_path, "")
    assert [(item.id, item.target, item.group) for item in found] == [
        (7, "yes", "random"),
        (8, "no", "random"),
        (9, "no", "popular"),
    ]
    assert found[0].text == asked[0]["text"]
    assert found[0].clip_text is None  # CLIP reads the text as it is
    assert found[0].image == tmp_path / "val2014" / "a.jpg"


def test_a_question_without_a_label_is_named(tmp_path):
    write(tmp_path, [question(7, "a.jpg", "cat", "random")], {"random": [label("a.jpg", "dog", "yes")]})
    with pytest.raises(UserError, match=r"question 7 has no label in .*coco"):
        load(tmp_path, "")


def test_a_folder_without_labels_is_said(tmp_path):
    write(tmp_path, [], {})
    with pytest.raises(MissingFileError, match="no label files coco_pope_<category>.json"):
        load(tmp_path, "")


def test_a_malformed_line_is_named_by_its_number(tmp_path):
    write(tmp_path, [], {"random": [label("a.jpg", "dog", "yes")]})
    (tmp_path / "llava_pope_test.jsonl").write_text('{"question_id": 1, "image": "a", "text": "b"}\n')
    with pytest.raises(UserError, match=r"llava_pope_test.jsonl, line 1 lacks 'category'"):
        load(tmp_path, "")


def marked(*rows):
    return [
        mark(Response(Question(number, "", unit=str(number), group=group, target=target), text, error))
        for number, (group, target, text, error) in enumerate(rows)
    ]


def test_f1_is_averaged_over_the_splits():
    marks = marked(
        ("random", "yes", "Yes", None),  # TP
        ("random", "no", "Yes", None),  # FP
        ("random", "no", "No", None),  # TN
        ("random", "yes", "Yes", "no image"),  # failed, so wrong: FN
        ("popular", "yes", "yes", None),  # TP
        ("popular", "no", "No.", None),  # TN
    )
    assert confusion(marks[:4]) == {"TP": 1, "FP": 1, "TN": 1, "FN": 1}
    # random: precision 1/2, recall 1/2, F1 = 1/2; popular: F1 = 1; their mean is 3/4.
    found = metrics(marks)
    assert next(iter(found.items())) == ("f1", 75)
    assert found["random precision"] == found["random recall"] == found["random accuracy"] == 50
    assert found["popular f1"] == 100
    assert POPE.title == "POPE (Avg. F1)"


def test_a_model_that_never_says_yes_has_no_f1_and_no_error():
    found = metrics(marked(("random", "yes", "No", None), ("random", "no", "No", None)))
    assert (found["f1"], found["random precision"], found["random yes"]) == (0, 0, 0)
