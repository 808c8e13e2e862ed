"""Every error a user can meet.

Each says what is wrong, where, and what to do, and is both a :class:`ZoodipError` and the builtin
a Python programmer would expect, so that ``except ValueError`` works as well.
"""

from __future__ import annotations


class ZoodipError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(ZoodipError, ValueError):
    """A setting is missing, unknown, of the wrong type or out of range."""


class ImagesError(ZoodipError, ValueError):
    """The reference images cannot be used."""


class CaptionError(ZoodipError, ValueError):
    """A caption or prompt does not fit: no placeholder, too long, unreadable."""


class TokenError(ZoodipError, ValueError):
    """The placeholder token or the initializer does not fit the model."""


class ModelError(ZoodipError, ValueError):
    """The model is missing, damaged, or of a family that is not supported."""


class NoRoomError(ZoodipError, MemoryError):
    """The device has too little memory for the run."""


class EmbeddingFileError(ZoodipError, ValueError):
    """An embedding file cannot be read, or does not fit the model."""


class LoraFileError(ZoodipError, ValueError):
    """A LoRA cannot be read, or does not fit the model."""


class RunFolderError(ZoodipError, ValueError):
    """A run folder cannot be written or resumed."""


class PathError(ZoodipError, ValueError):
    """A name from outside cannot be that of a file, or leads out of its folder."""


class StorageError(ZoodipError, OSError):
    """A file could not be written: disk full, read-only, no permission."""


class RanksError(ZoodipError, RuntimeError):
    """The processes that share a run cannot work together: one is gone, cannot be reached, or has something else."""


class NonFiniteLossError(ZoodipError, ArithmeticError):
    """A loss was NaN or infinite. The search was not moved."""


_LONGEST = 4000


def for_user(error: Exception) -> str | None:
    """What to tell the user of an error that they can do something about, None of a fault of the program.

    However much of a damaged file it quotes, it is a text that can be shown.
    """
    text = _for_user(error)
    if text is None:
        return None
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _for_user(error: Exception) -> str | None:
    if isinstance(error, OSError):  # ours, or say a name too long to be looked up
        if isinstance(error, ZoodipError):
            return error.strerror or str(error)
        about = f"{error.filename}: " if error.filename else ""
        return f"{about}{error.strerror or error}; check the path"
    if isinstance(error, ZoodipError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the computer's memory is full; use a smaller resolution or int4 weights"
    if isinstance(error, RuntimeError) and _out_of_memory(error):
        return f"{error}\nUse a smaller resolution, or int4 weights"
    return None


def _out_of_memory(error: RuntimeError) -> bool:
    told = ("not enough memory", "can't allocate memory")
    # torch's class, by name: this module does not load torch.
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in told)
