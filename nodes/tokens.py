"""What a ZOODIP_EMBEDDING is: a learned token, or several that were learned together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding

    Tokens = Embedding | tuple[Embedding, ...]


def each_of(*tokens: Tokens | None) -> tuple[Embedding, ...]:
    """The tokens in some ZOODIP_EMBEDDINGs, of which some may not be connected; each once."""
    found: list[Embedding] = []
    for some in tokens:
        listed = some if isinstance(some, tuple) else () if some is None else (some,)
        found += [each for each in listed if all(each is not other for other in found)]
    return tuple(found)


def one_of(tokens: Tokens, name: str) -> Embedding:
    """The token in a ZOODIP_EMBEDDING, for a node that takes no more.

    Args:
        tokens: of the input.
        name: the input's.

    Raises:
        ConfigError: there are several.
    """
    from ..zoodip_core.base.errors import ConfigError

    found = each_of(tokens)
    if len(found) > 1:
        raise ConfigError(
            f"{name}: holds {len(found)} tokens ({', '.join(each.token for each in found)}), and this node takes one; "
            "write them with Save Embedding, and connect Load Embedding with the one you want"
        )
    return found[0]


def together(tokens: Iterable[Embedding]) -> Tokens:
    """A ZOODIP_EMBEDDING of one token or several."""
    found = tuple(tokens)
    return found[0] if len(found) == 1 else found
