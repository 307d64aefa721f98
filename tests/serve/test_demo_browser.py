"""The demo in a real browser: upload, ask, see what the model saw, change the reduction, compare."""

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from scripts.draw_demo import find_browser

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CROWDED = str(ROOT / "images" / "crowded.png")
WAIT_MS = 60_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(port, *arguments, module="llava.serve.demo"):
    command = [sys.executable, "-m", module, "--port", str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    give_up = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < give_up
        try:
            requests.get(f"http://127.0.0.1:{port}/", timeout=5)
            return process
        except requests.ConnectionError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("log")
    process = started(port, "--log-dir", str(log))
    yield f"http://127.0.0.1:{port}/", log
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)


@contextmanager
def opened(url):
    """Open a page in a browser; `elsewhere` gets the addresses of all that it loads."""
    from playwright.sync_api import sync_playwright

    browser = find_browser()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(WAIT_MS)
        page.elsewhere = []
        page.on("request", lambda request: page.elsewhere.append(request.url))
        page.goto(url)
        page.wait_for_selector("#question textarea")
        yield page
        chromium.close()


@pytest.fixture
def page(demo):
    with opened(demo[0]) as page:
        yield page


def wait_for(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).innerText.includes(text)",
        arg=[selector, text],
    )


def upload(page, place):
    page.set_input_files(f"{place} input[type=file]", CROWDED)
    page.wait_for_selector(f"{place} img")


def choose(page, place, setting):
    page.fill(f"{place} input", setting)
    page.keyboard.press("Enter")


def ask(page, question, tokens):
    page.fill("#question textarea", question)
    page.click("#ask")
    wait_for(page, "#facts", tokens)


def source(page, place):
    return page.get_attribute(f"{place} img", "src")


def test_a_visitor_asks_sees_and_changes_the_reduction(page, demo):
    upload(page, "#image")
    ask(page, "What shape is the yellow object?", "256 patches → 31 visual tokens")
    wait_for(page, "#chat", "circle")
    assert page.input_value("#question textarea") == ""
    assert re.search(r"first token after \d+ ms", page.inner_text("#facts"))
    page.wait_for_selector("#kept img")
    first = source(page, "#kept")

    choose(page, "#reduction", "TRIM:9")
    ask(page, "What shape is the pink object?", "256 patches → 10 visual tokens")
    assert "What shape is the yellow object?" in page.inner_text("#chat")
    page.wait_for_function("src => document.querySelector('#kept img').src !== src", arg=first)

    choose(page, "#reduction", "none")
    page.click("#regenerate")
    wait_for(page, "#facts", "256 patches → 256 visual tokens")

    page.click("#upvote")
    page.wait_for_selector("text=Thank you.")
    (log,) = demo[1].glob("*-conv.json")
    assert '"type": "upvote"' in log.read_text()

    page.click("#clear")
    page.wait_for_function("!document.querySelector('#chat').innerText.includes('yellow')")
    # Nothing is loaded from anywhere else, and nothing is told to anybody else.
    assert [url for url in page.elsewhere if not url.startswith((demo[0], "data:", "blob:"))] == []


def test_two_reductions_answer_side_by_side(page):
    page.get_by_role("tab", name="Side by side").last.click()
    upload(page, "#compare-image")
    page.fill("#compare-question textarea", "What shape is the green object?")
    page.click("#compare")
    wait_for(page, "#left-facts", "256 patches → 15 visual tokens")
    wait_for(page, "#right-facts", "256 patches → 256 visual tokens")
    assert page.input_value("#left-answer textarea") == page.input_value("#right-answer textarea") == "square"
    page.wait_for_selector("#left-kept img")
    page.wait_for_selector("#right-kept img")
    assert source(page, "#left-kept") != source(page, "#right-kept")


def test_what_goes_wrong_is_said_and_the_question_stays(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(Path(CROWDED).read_bytes()[:2000])
    page.set_input_files("#image input[type=file]", str(tmp_path / "broken.png"))
    page.fill("#question textarea", "What is it?")
    page.wait_for_timeout(1500)
    page.click("#ask")
    wait_for(page, "#facts", "Not answered")
    assert "truncated or damaged" in page.inner_text("#facts")
    assert page.input_value("#question textarea") == "What is it?"


def test_an_example_fills_the_form(page):
    page.get_by_role("gridcell", name="What color is the star?").first.click()
    page.wait_for_selector("#image img")
    assert page.input_value("#question textarea") == "What color is the star?"


def test_files_of_the_server_are_not_given_out(demo):
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "images" / ".." / "README.md")):
        assert requests.get(f"{demo[0]}gradio_api/file={path}", timeout=10).status_code in (403, 404)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_and_the_port_is_free(number, tmp_path):
    port = free_port()
    process = started(port)
    process.send_signal(number)
    process.wait(timeout=120)
    assert "Traceback" not in process.stdout.read()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_said(demo, tmp_path):
    port = demo[0].rsplit(":", 1)[1].strip("/")
    command = [sys.executable, "-m", "llava.serve.demo", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert f"error: the demo cannot listen at 127.0.0.1:{port}: " in done.stderr
    assert "Traceback" not in done.stderr
