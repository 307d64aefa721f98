"""What the pages' command lines refuse, before a model is loaded."""

import pytest

from llava.serve import demo, gradio_web_server


@pytest.mark.parametrize("module", [demo, gradio_web_server])
@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_there_is_not_is_refused_before_anything_is_loaded(module, port, monkeypatch, capsys):
    monkeypatch.setattr(demo, "load_assistant", lambda _: pytest.fail("a model is loaded"))
    assert module.main(["--port", port]) == 2
    error = capsys.readouterr().err
    assert f"error: argument --port: '{port}' is not a valid port; accepted: 1 to 65535" in error
    assert error.count("\n") == 1
