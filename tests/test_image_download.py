"""A picture from a URL comes within limits on bytes, time and redirects, or is refused in one sentence."""

import gzip
import http.server
import io
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from llava import image_download
from llava.errors import MissingFileError, UserError
from llava.image_download import without_password
from llava.image_io import load_image, load_image_or_url


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _png()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one picture, and the ways in which a server can misbehave."""

    def do_GET(self):
        name, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"get_{name}")(rest)

    def reply(self, body: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def get_picture(self, _: str):
        self.reply(PICTURE, Content_Length=str(len(PICTURE)))

    def get_page(self, _: str):
        self.reply(b"<html>no picture</html>", Content_Type="image/png")

    def get_missing(self, _: str):
        self.reply(b"", 404)

    def get_hops(self, rest: str):
        left = int(rest)
        self.reply(b"", 302, Location=f"/hops/{left - 1}" if left > 1 else "/picture")

    def get_elsewhere(self, _: str):
        self.reply(b"", 302, Location="file:///etc/hostname")

    def get_endless(self, _: str):
        self.reply(PICTURE)
        try:
            while True:
                self.wfile.write(bytes(2**16))
        except OSError:
            return

    def get_drip(self, where: str):
        """One byte at a time, of the body or already of the headers: no single wait is long."""
        if where == "body":
            self.reply(b"")
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            return

    def get_bomb(self, _: str):
        """Two gigabytes, sent as two megabytes."""
        deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        self.reply(b"", Content_Encoding="gzip")
        try:
            for _mebibyte in range(2048):
                self.wfile.write(deflate.compress(bytes(2**20)))
            self.wfile.write(deflate.flush())
        except OSError:
            return

    def get_gzip(self, _: str):
        self.reply(gzip.compress(PICTURE), Content_Encoding="gzip")

    def get_encoded(self, _: str):
        self.reply(PICTURE, Content_Encoding="zstd")

    def get_broken(self, _: str):
        self.reply(b"not compressed", Content_Encoding="gzip")

    def get_long(self, _: str):
        """A redirect whose body does not end."""
        self.send_response(302)
        self.send_header("Location", "/picture")
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(2**16))
        except OSError:
            return

    def get_silent(self, _: str):
        time.sleep(1)

    def log_message(self, *_: object):
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[Callable[[str], str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield lambda path: f"http://127.0.0.1:{server.server_port}/{path}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("path", ["picture", "gzip", "long", f"hops/{image_download.MAX_REDIRECTS}"])
def test_a_picture_is_fetched_from_its_url(site: Callable[[str], str], path: str):
    assert load_image_or_url(site(path)).size == (8, 6)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("page", "is not an image in a known format"),
        ("missing", "the server answers with status 404"),
        (f"hops/{image_download.MAX_REDIRECTS + 1}", "redirects more than 5 times"),
        ("elsewhere", "redirects to 'file:///etc/hostname', which is not an http"),
        ("bomb", "is larger than 1 MiB"),
        ("encoded", "its body is encoded as 'zstd'"),
        ("broken", "its body is damaged"),
        ("endless", "is larger than 1 MiB"),
        ("drip/body", r"takes longer than 0\.3 seconds"),
        ("drip/headers", r"takes longer than 0\.3 seconds"),
        ("silent", r"no answer for 0\.2 seconds"),
    ],
)
def test_what_is_no_picture_within_the_limits_is_refused(
    site: Callable[[str], str], path: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_download, "MAX_DOWNLOAD_BYTES", 2**20)
    if path.startswith("drip"):
        monkeypatch.setattr(image_download, "DOWNLOAD_TIMEOUT", 0.3)
    if path == "silent":
        monkeypatch.setattr(image_download, "SILENCE_TIMEOUT", 0.2)
    with pytest.raises(UserError, match=reason) as caught:
        load_image_or_url(site(path))
    assert site(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_that_leads_nowhere_is_refused():
    with pytest.raises(UserError, match="no connection to the server"):
        load_image_or_url("http://127.0.0.1:9/x.png")
    with pytest.raises(UserError, match="cannot be fetched"):
        load_image_or_url("http://")


def test_only_command_lines_read_urls(site: Callable[[str], str]):
    with pytest.raises(MissingFileError):
        load_image(site("picture"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a@b.png", "https://example.org/a@b.png"),
        ("https://example.org:8080/a@b.png?c=@", "https://example.org:8080/a@b.png?c=@"),
        ("https://user:secret@example.org/a.png", "https://***@example.org/a.png"),
        ("https://secret@example.org/a@b.png", "https://***@example.org/a@b.png"),
        ("https://user:se@cret@example.org/", "https://***@example.org/"),
        ("https://user:se/cret@example.org/", "https://***@example.org/"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str):
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url", ["http://user:secret@127.0.0.1:9/x.png", "http://user:secret@[/x.png", "http://u:se/secret@h/"]
)
def test_no_error_repeats_a_password(url: str):
    with pytest.raises(UserError, match=r"\*\*\*@.*cannot be fetched") as caught:
        load_image_or_url(url)
    assert "secret" not in str(caught.value)


def test_a_page_with_a_password_is_named_without_it(site: Callable[[str], str]):
    with pytest.raises(UserError, match="not an image") as caught:
        load_image_or_url(site("page").replace("//", "//user:secret@"))
    assert "secret" not in str(caught.value)
