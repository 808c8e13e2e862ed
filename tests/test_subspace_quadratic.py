"""Subspace Gradient needs fewer evaluations on a noisy quadratic of few effective dimensions."""

from __future__ import annotations

import pytest

from benchmarks.subspace_gradient import HEADLINE, compare, ratio


@pytest.mark.slow
def test_subspace_gradient_needs_fewer_evaluations() -> None:
    """The benchmark's setting on two seeds; the benchmark shows where the opposite holds."""
    pairs = compare(HEADLINE, seeds=range(2))
    for pair in pairs:
        print(f"seed {pair.seed}: {pair.without} evaluations without Subspace Gradient, {pair.with_sg} with it")
    overall = ratio(pairs)
    assert overall is not None, "a search did not reach the error"
    print(f"geometric mean ratio {overall:.3f}")
    assert overall < 0.95
