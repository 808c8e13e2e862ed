"""How many threads an operation takes."""

from __future__ import annotations

import pytest
import torch

from zoodip_core.model.threads import one_thread_an_operation


def test_operations_have_their_threads_again_whoever_leaves_first() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = one_thread_an_operation(), one_thread_an_operation()
        assert first.__enter__() == second.__enter__() == 3
        assert torch.get_num_threads() == 1
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1  # the second is still at work
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError), one_thread_an_operation():
            raise ValueError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
