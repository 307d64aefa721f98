"""Fetching an image whose URL stands on a command line, within limits that no server can get around."""

import re
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

from llava.errors import UserError

if TYPE_CHECKING:
    from requests import Response, Session

MAX_DOWNLOAD_BYTES: Final = 32 * 2**20  # after decompression
DOWNLOAD_TIMEOUT: Final = 30.0  # seconds for the whole download, redirects included
SILENCE_TIMEOUT: Final = 10.0  # seconds until a server that says nothing is given up
MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 2**16
_HEADERS: Final = {"User-Agent": "llava", "Accept-Encoding": "identity"}
_EITHER_ZLIB_OR_GZIP: Final = 32 + zlib.MAX_WBITS


def is_url(source: str) -> bool:
    """Whether a command-line value is the ``http(s)`` URL of an image rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def without_password(url: str) -> str:
    """Return a URL as messages show it: what stands in front of its host is hidden."""
    # Behind a first colon that no port follows begins a password, and it may hold any character.
    host = r"[^/?#]*" if re.match(r"\w+://[^:/?#]*(:\d*)?([/?#]|$)", url) else r".*"
    return re.sub(rf"(?<=//){host}@", "***@", url)


def download(url: str, *, public_only: bool = False) -> bytes:
    """Fetch a URL within the limits on bytes, time and redirects.

    Args:
        url: Of the web.
        public_only: Connect to public addresses alone, redirects included, for a URL that a stranger names.

    Raises:
        UserError: If it cannot be fetched, or not within the limits.
    """
    body: Future[bytes] = Future()
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT

    def fetch() -> None:
        try:
            body.set_result(_fetch(url, deadline, public_only=public_only))
        except Exception as error:  # noqa: BLE001 - handed on to the caller
            body.set_exception(error)

    # The library's timeouts restart with every byte; a server that lets them drip is left to its own thread,
    # not to an executor's, for which Python would wait at its end.
    threading.Thread(target=fetch, daemon=True).start()
    done, _ = wait([body], timeout=DOWNLOAD_TIMEOUT)
    if not done:
        raise _too_slow(url)
    return body.result()


def _too_slow(url: str) -> UserError:
    return UserError(
        f"{without_password(url)} takes longer than {DOWNLOAD_TIMEOUT:g} seconds, the limit for an image"
    )


def _failed(url: str, reason: str) -> UserError:
    return UserError(f"{without_password(url)} cannot be fetched: {reason}")


def _fetch(url: str, deadline: float, *, public_only: bool) -> bytes:
    """Fetch a URL within the limits on bytes, silence and redirects.

    Raises:
        UserError: If it cannot be fetched, or not within the limits.
    """
    import requests

    from llava.public_web import use_public_addresses_only

    with requests.Session() as session:
        if public_only:
            use_public_addresses_only(session)
        try:
            return _follow(session, url, deadline)
        except UserError:
            raise
        except requests.HTTPError as error:
            raise _failed(url, f"the server answers with status {error.response.status_code}") from None
        except requests.Timeout:
            raise _failed(url, f"no answer for {SILENCE_TIMEOUT:g} seconds") from None
        except requests.ConnectionError:
            raise _failed(url, "no connection to the server") from None
        except (requests.RequestException, ValueError, OSError) as error:
            # Their own texts nest those of three libraries, and repeat the URL with its password.
            raise _failed(url, type(error).__name__) from None


def _follow(session: "Session", url: str, deadline: float) -> bytes:
    """Follow redirects, of which nothing but the target is read, to the body of an image.

    Raises:
        UserError: If they are too many, or lead to something else than the web.
    """
    place = url
    for _ in range(MAX_REDIRECTS + 1):
        with _send(session, place) as response:
            if not response.is_redirect:
                response.raise_for_status()
                return _body(_decoded(response, url), url, deadline)
            place = urljoin(place, response.headers["Location"])
        if not is_url(place):
            raise _failed(
                url, f"it redirects to {without_password(place)[:200]!r}, which is not an http(s) URL"
            )
    raise UserError(f"{without_password(url)} redirects more than {MAX_REDIRECTS} times")


def _send(session: "Session", url: str) -> "Response":
    """Send one request and read the head of its answer.

    A session's own methods read the whole body of a redirect, even where it is not to be followed.
    """
    from requests import Request

    request = session.prepare_request(Request("GET", url, headers=_HEADERS))
    assert request.url is not None
    settings: Any = session.merge_environment_settings(request.url, {}, True, None, None)
    return session.get_adapter(request.url).send(request, timeout=SILENCE_TIMEOUT, **settings)


def _decoded(response: "Response", url: str) -> Iterator[bytes]:
    """Yield the chunks of a body, decompressed in steps that no compression makes large.

    Raises:
        UserError: If it is compressed in a way that was not asked for.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    chunks = response.raw.stream(_CHUNK_BYTES, decode_content=False)
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _failed(url, f"its body is encoded as {encoding[:40]!r}")
    inflate = zlib.decompressobj(_EITHER_ZLIB_OR_GZIP)
    try:
        for chunk in chunks:
            yield inflate.decompress(chunk, _CHUNK_BYTES)
            while inflate.unconsumed_tail:
                yield inflate.decompress(inflate.unconsumed_tail, _CHUNK_BYTES)
    except zlib.error as error:
        raise _failed(url, f"its body is damaged ({error})") from None


def _body(chunks: Iterator[bytes], url: str, deadline: float) -> bytes:
    """Join the chunks of a body.

    Raises:
        UserError: If they grow beyond the limit, or come too slowly.
    """
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_DOWNLOAD_BYTES:
            raise UserError(
                f"{without_password(url)} is larger than {MAX_DOWNLOAD_BYTES // 2**20} MiB, the limit for a "
                "image"
            )
        if time.monotonic() > deadline:
            raise _too_slow(url)
    return bytes(body)
