"""Timestep samplers: ranges, distributions, independence from global randomness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from zoodip_core import PUTS, SNRTimesteps, UniformTimesteps
from zoodip_core.base.errors import ConfigError
from zoodip_core.train.timesteps import TimestepSampler


def draws(sampler: TimestepSampler, count: int = 8000) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([sampler.sample(3, step) for step in range(count)])


def assert_distributed(
    sample: np.ndarray[tuple[int], np.dtype[np.int64]], expected: np.ndarray, edges: list[int]
) -> None:
    """Chi-square over bins, with a bound that a right sampler passes all but once in ten thousand."""
    seen, _ = np.histogram(sample, edges)
    wanted = np.array([expected[a:b].sum() for a, b in itertools.pairwise(edges)]) * len(sample)
    bins = len(wanted) - 1
    assert ((seen - wanted) ** 2 / wanted).sum() < bins + 4.5 * np.sqrt(2 * bins)


def test_puts_is_uniform_on_its_range() -> None:
    sample = draws(PUTS(500, 900))
    assert sample.min() == 500
    assert sample.max() == 899
    expected = np.zeros(1000)
    expected[500:900] = 1 / 400
    assert_distributed(sample, expected, list(range(500, 901, 25)))


def test_uniform_covers_all_timesteps() -> None:
    assert_distributed(draws(UniformTimesteps()), np.full(1000, 1 / 1000), list(range(0, 1001, 50)))


def test_snr_sampler_follows_its_formula() -> None:
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Stable Diffusion's schedule
    log_snr = np.log(alphas / (1 - alphas))
    weights = log_snr.max() - log_snr
    sample = draws(SNRTimesteps())
    assert_distributed(sample, weights / weights.sum(), list(range(0, 1001, 50)))
    assert sample.mean() > 550  # it leans to the noisy end


def test_with_zero_terminal_snr_the_last_timestep_is_like_the_one_before() -> None:
    """Its weight by the formula is infinite, and would be all there is."""
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    roots = np.sqrt(alphas)
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])  # Lin et al., algorithm 1
    alphas = roots**2
    assert alphas[-1] == 0
    known = np.maximum(alphas, alphas[-2])
    log_snr = np.log(known / (1 - known))
    weights = log_snr.max() - log_snr
    sample = draws(SNRTimesteps(torch.from_numpy(alphas)))
    assert_distributed(sample, weights / weights.sum(), list(range(0, 1001, 50)))


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    sampler = PUTS()
    assert sampler.sample(1, 5) == sampler.sample(1, 5)
    assert len({sampler.sample(1, step) for step in range(50)}) > 30
    assert len({sampler.sample(seed, 5) for seed in range(50)}) > 30


@pytest.mark.parametrize(("lower", "upper"), [(900, 500), (500, 500), (-1, 900), (500, 1001)])
def test_impossible_ranges_are_refused(lower: int, upper: int) -> None:
    with pytest.raises(ConfigError, match="T_L"):
        PUTS(lower, upper)
