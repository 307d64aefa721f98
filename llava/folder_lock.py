"""One run at a time writes to a folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from llava.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def lock_folder(folder: str | Path, option: str, patience_s: float = 20.0) -> Iterator[None]:
    """Keep other runs out of a folder; the claim ends with this process, however it ends.

    Args:
        folder: It exists.
        option: What names the folder on the command line.
        patience_s: How long to wait for another run, in seconds: processes that read data for a run that was
            killed live on for some of them.

    Raises:
        UserError: If another run keeps it.
    """
    if find_spec("fcntl") is None:  # Windows has no such locks
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        give_up = time.monotonic() + patience_s
        while not _lock(descriptor):
            if time.monotonic() > give_up:
                raise UserError(
                    f"another run is writing to the folder {str(folder)!r}: end all of its processes, or "
                    f"choose another {option}"
                )
            time.sleep(0.5)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open folder, unless another process has; some network file systems have no locks to give."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("the folder cannot be locked (%s): let no other run write to it", error.strerror)
    return True
