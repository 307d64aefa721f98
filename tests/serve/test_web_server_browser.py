"""LLaVA's web page in a real browser, over a real controller and worker."""

import subprocess
import sys

import pytest
import requests

from tests.serve.test_demo_browser import CROWDED, ROOT, free_port, opened, started, wait_for
from tests.serve.test_model_worker import models, start, start_worker, wait_until

pytestmark = pytest.mark.slow

NAME = "llava-shapes"
MODULE = "llava.serve.gradio_web_server"


@pytest.fixture(scope="module")
def programs():
    port = free_port()
    controller = f"http://127.0.0.1:{port}"
    processes = [start("controller", "--port", str(port)), start_worker(controller, free_port())]
    wait_until(lambda: models(controller) == [NAME], 120)
    yield controller, processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(programs):
    port = free_port()
    process = started(port, "--controller-url", programs[0], "--model-list-mode", "reload", module=MODULE)
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(timeout=60)


def test_a_visitor_asks_a_model_of_a_worker_and_is_told_when_it_is_gone(url, programs):
    with opened(f"{url}?model={NAME}") as page:
        page.wait_for_function("name => document.querySelector('#model input').value === name", arg=NAME)
        assert not page.is_visible("#kept")
        page.set_input_files("#image input[type=file]", CROWDED)
        page.wait_for_selector("#image img")
        page.fill("#question textarea", "What shape is the yellow object?")
        page.click("#ask")
        wait_for(page, "#facts", f"answered by {NAME}")
        wait_for(page, "#chat", "circle")
        programs[1][1].kill()
        programs[1][1].wait()
        page.fill("#question textarea", "What shape is the pink object?")
        page.click("#ask")
        wait_for(page, "#facts", "Not answered")
        assert f"no worker for '{NAME}'" in page.inner_text("#facts")
        assert page.input_value("#question textarea") == "What shape is the pink object?"
        assert "What shape is the yellow object?" in page.inner_text("#chat")
        assert [there for there in page.elsewhere if not there.startswith((url, "data:", "blob:"))] == []


def test_without_a_controller_it_is_the_demo():
    port = free_port()
    process = started(port, module=MODULE)
    try:
        assert "LLaVA-1.5 with TRIM" in requests.get(f"http://127.0.0.1:{port}/", timeout=10).text
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_what_does_not_serve_is_one_sentence():
    command = [sys.executable, "-m", MODULE, "--controller-url", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "accepted: an address such as http://localhost:21002" in done.stderr
    assert "Traceback" not in done.stderr
