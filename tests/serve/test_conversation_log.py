"""LLaVA's log of conversations: text always, images and addresses only where they are asked for."""

import json
import threading

import pytest
from PIL import Image

from llava.errors import UserError
from llava.serve.conversation_log import ConversationLog

STATE = {"messages": [["USER", "Wäs?"], ["ASSISTANT", "red"]]}


def records(folder):
    (path,) = folder.glob("*-conv.json")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_has_llavas_keys(tmp_path):
    log = ConversationLog(tmp_path / "logs")
    log.write(
        "chat",
        "llava-shapes",
        STATE,
        start=1.0,
        finish=2.0,
        address="1.2.3.4",
        images=[Image.new("RGB", (2, 2))],
    )
    (record,) = records(tmp_path / "logs")
    assert record.keys() == {"tstamp", "type", "model", "start", "finish", "state"}
    assert (record["type"], record["model"], record["state"]) == ("chat", "llava-shapes", STATE)
    assert len(list((tmp_path / "logs").iterdir())) == 1  # no image


def test_images_and_addresses_are_kept_where_they_are_asked_for(tmp_path):
    log = ConversationLog(tmp_path, log_images=True)
    image = Image.new("RGB", (4, 4), (200, 0, 0))
    for kind in ("upvote", "downvote"):
        log.write(kind, "m", STATE, address="1.2.3.4", images=[image])
    first, second = records(tmp_path)
    assert first["ip"] == "1.2.3.4"
    assert first["images"] == second["images"]
    (kept,) = tmp_path.glob(f"serve_images/*/{first['images'][0]}.jpg")
    with Image.open(kept) as found:
        assert found.size == (4, 4)


def test_threads_write_whole_lines(tmp_path):
    log = ConversationLog(tmp_path)
    threads = [
        threading.Thread(target=lambda: [log.write("flag", "m", STATE) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(tmp_path)) == 400


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the log folder .* cannot be written"):
        ConversationLog(tmp_path / "file" / "logs")
