"""The model libraries' own manners."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notes off our screen; their errors still arrive as exceptions."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("optimum").setLevel(logging.ERROR)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import libraries without a look for garbage meanwhile: all of their objects stay, and looking takes a fifth."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
