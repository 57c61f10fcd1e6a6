"""Seeds and counters name independent, reproducible streams."""

import itertools

import pytest
import torch

from fdistill.core.random import LatentStreams, fold_seed, generator_for


def test_matches_the_published_sequence_of_splitmix64():
    # with seed 1234567 the reference generator begins with 6457827717110365317; one fold is its first output, halved
    assert fold_seed(1234567) == 6457827717110365317 >> 1


def test_order_and_number_of_integers_matter():
    seeds = [fold_seed(*t) for n in (1, 2, 3) for t in itertools.product(range(12), repeat=n)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_neighbouring_counters_flip_half_of_the_bits():
    flips = [(fold_seed(0, i) ^ fold_seed(0, i + 1)).bit_count() for i in range(500)]
    assert abs(sum(flips) / len(flips) - 31.5) < 4 * (63 / 4 / 500) ** 0.5


def test_low_32_bits_which_are_all_that_a_cpu_generator_reads_do_not_collide_early():
    assert len({fold_seed(0, i, rank) & 0xFFFFFFFF for i in range(1000) for rank in range(4)}) == 4000


def test_same_name_same_numbers_other_name_other_numbers():
    first, again, other = (torch.randn(64, generator=generator_for(7, *c)) for c in ((3, 0), (3, 0), (3, 1)))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_streams_of_neighbouring_ranks_are_uncorrelated():
    x = torch.stack([torch.randn(10_000, generator=generator_for(0, 5, rank)) for rank in range(8)])
    assert torch.corrcoef(x).fill_diagonal_(0).abs().max() < 5 / 100  # five standard errors of 1 / sqrt(n)


def test_generator_is_fresh_and_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    torch.randn(4, generator=generator_for(0, 1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("integers", "match"), [((), "at least one"), ((2**64,), "64-bit"), ((-(2**63) - 1,), "64-bit")]
)
def test_bad_integers_are_refused(integers, match):
    with pytest.raises(ValueError, match=match):
        fold_seed(*integers)


def latents(n, *shape, dtype=torch.float32):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_a_latent_is_its_own_wherever_it_stands_in_a_batch(shape, dtype):
    noise = latents(9, *shape, dtype=dtype)
    streams = LatentStreams(noise)
    draws = [streams.normal() for _ in range(3)]
    assert all(draw.shape == noise.shape and draw.dtype == dtype for draw in draws)
    order = torch.tensor([5, 1, 7])
    few = LatentStreams(noise[order])
    assert all(torch.equal(few.normal(), draw[order]) for draw in draws)
    single = LatentStreams(noise.float())
    assert torch.equal(single.normal().to(dtype), draws[0])


def test_noise_of_latents_is_standard_normal_fresh_and_uncorrelated_with_them_and_each_other():
    noise = latents(3000, 4)
    streams = LatentStreams(noise)
    numbers = torch.stack([noise, streams.normal(), streams.normal()]).reshape(3, -1)
    assert numbers.mean(dim=1).abs().max() < 5 / 12_000**0.5
    assert (numbers.var(dim=1) - 1).abs().max() < 5 * (2 / 12_000) ** 0.5
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 5 / 12_000**0.5
    rows = numbers[1].reshape(3000, 4)
    neighbours = torch.corrcoef(torch.stack([rows[:-1].flatten(), rows[1:].flatten()]))
    assert neighbours[0, 1].abs() < 5 / 12_000**0.5


def test_no_latents_draw_nothing():
    assert LatentStreams(torch.zeros(0, 2)).normal().shape == (0, 2)
