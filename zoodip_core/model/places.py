"""Which rows of what is placed stand in the places of a text: in each those of one token, which lie together."""

from __future__ import annotations

from collections.abc import Sequence

Rows = int | Sequence[int | range]
"""What the places of a text have: a number where all have the same first rows, those of the one token that is trained;
else for each place its rows, or how many of those that come next."""


def rows_of(rows: Rows, uses: int) -> tuple[range, ...]:
    """The rows of each of a text's places.

    Args:
        rows: as listed, or for all places.
        uses: how many places there are, where ``rows`` is for all.
    """
    if isinstance(rows, int):
        return (range(rows),) * uses
    found: list[range] = []
    for each in rows:
        end = max((known.stop for known in found), default=0)
        found.append(each if isinstance(each, range) else range(end, end + each))
    return tuple(found)
