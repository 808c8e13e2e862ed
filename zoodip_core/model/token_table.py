"""The rows of a text encoder's embedding table that a run reads, in place of the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn


class TokenTable(nn.Module):
    """The rows of a text encoder's embedding table that are in use, read from its file when first asked for.

    Stands in for the ``nn.Embedding``, which holds tens of thousands of rows of which a run reads twenty.
    The ids that the encoder sees stay the vocabulary's own: it looks for its end of text among them.

    Args:
        shape: ``(vocabulary, dim)`` of the whole table.
        read: rows ``[N, dim]`` of some ids.
        dtype: of the output.
        device: of the output.
    """

    ids: torch.Tensor
    weight: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        read: Callable[[list[int]], torch.Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = shape
        self._read = read
        self._known: set[int] = set()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("weight", torch.zeros(0, shape[1], dtype=dtype, device=device))

    def keep(self, ids: Iterable[int]) -> None:
        """Have the rows of these ids at hand; a forward of others fails."""
        new = sorted(set(ids) - self._known)
        if not new:
            return
        order = torch.cat([self.ids, torch.tensor(new, device=self.ids.device)]).sort()
        self.weight = torch.cat([self.weight, self._read(new).to(self.weight)])[order.indices]
        self.ids = order.values
        self._known |= set(new)

    def rows(self, ids: Sequence[int]) -> torch.Tensor:
        """Rows ``[N, dim]`` as the file has them, in float32 on the CPU."""
        return self._read(list(ids)).float().cpu()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[..., dim]`` of ids that were kept.

        Raises:
            KeyError: other ids (on the CPU; to look would stall a GPU).
        """
        places = torch.searchsorted(self.ids, ids.contiguous())
        if ids.device.type == "cpu" and not torch.equal(self.ids[places.clamp(max=len(self.ids) - 1)], ids):
            raise KeyError("the token table was not told to keep some of these ids")
        return self.weight[places]


def table_of(text_encoder: nn.Module) -> TokenTable:
    """A loaded text encoder's table."""
    table: TokenTable = text_encoder.get_input_embeddings()  # type: ignore[operator]
    return table
