"""What sharing work saves is measured with nothing kept of the settings before, and changes no answer."""

import re

import pytest

from llava.bench import sharing


def test_sharing_is_measured(capsys: pytest.CaptureFixture[str]):
    flags = ["--random", "tiny", "--device", "cpu", "--batch", "4", "--new-tokens", "3", "--turns", "2"]
    assert sharing.main([*flags, "--token-reduction", "TRIM:9"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "tiny, TRIM:9"
    figures = r": \d+\.\d\d s, \d+\.\d\d s; ratio (\d+\.\d{3}) \((\d+\.\d{3}) to (\d+\.\d{3})\)$"
    for line in out[1:3]:
        found = re.search(figures, line)
        assert found
        median, lowest, highest = map(float, found.groups())
        assert 0 < lowest <= median <= highest
    assert out[3] == "answers that differ: 0 of 12"
    assert re.fullmatch(r"padding: \d+\.\d% of the [\d,]+ positions of all prompts", out[4])


def test_every_turn_encodes_its_pictures_anew(monkeypatch: pytest.MonkeyPatch):
    from llava.bench.pictures import random_pictures
    from llava.bench.random_llava import random_assistant
    from tests.bench.test_stages import TINY_CLIP, TINY_LANGUAGE_MODEL
    from tests.conftest import count_encodings

    assistant = random_assistant(TINY_LANGUAGE_MODEL, TINY_CLIP, reduction="TRIM:9")
    pictures = random_pictures(6)
    encoded = count_encodings(assistant, monkeypatch)
    for images, expected in ((pictures[:1], 1), (pictures, 6), (pictures[:1], 1)):
        encoded.clear()
        sharing.seconds(assistant, sharing.ask(6, images, 1), 1)
        assert sum(encoded) == expected


def test_a_wrong_option_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert sharing.main(["--random", "tiny", "--device", "cpu", "--token-reduction", "TRIM"]) == 2
    assert "'TRIM' is not a token reduction" in capsys.readouterr().err
