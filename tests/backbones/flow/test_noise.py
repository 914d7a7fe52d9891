"""Keys name the same noise everywhere; coarse to fine and back loses nothing, and keeps white noise white."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from milr.backbones.flow import noise
from milr.backbones.flow.noise import coarse_to_fine, fine_to_picture, gaussian, order

# Of Random123's own kat_vectors: counter, key and words of philox4x32-10.
KNOWN = (
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
EDGES = np.array(
    [0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 7 * 2**29 - 1, 7 * 2**29, 2**32 - 1], dtype=np.uint64
)
WORDS = np.concatenate([EDGES, np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64)])


def words(values):
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(("counter", "key", "known"), KNOWN)
def test_philox_is_the_published_one(counter, key, known):
    assert tuple(int(word[0]) for word in noise.philox(words(counter), words(key))) == known


def test_functions_of_sums_and_products_are_the_functions():
    units = (WORDS.astype(np.float64) + 0.5) * 2.0**-32
    cosine, sine = noise._on_the_circle(WORDS)
    assert np.abs(cosine - np.cos(2 * np.pi * units)).max() < 2e-15
    assert np.abs(sine - np.sin(2 * np.pi * units)).max() < 2e-15
    assert np.abs(noise._logarithm(units) - np.log(units)).max() < 1e-14


def test_the_same_keys_are_the_same_noise_to_the_last_bit():
    """The digest was taken once; only sums, products, quotients and roots went into it, which no machine does
    differently. Whoever changes it changes every picture that was ever recorded."""
    drawn = gaussian([0, 1, 2**63 - 1, 12_345_678_901_234], 6, 2)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (6, 2, 2)
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16] == "b73376d12b45f1a5"
    assert torch.equal(drawn, gaussian(np.array([0, 1, 2**63 - 1, 12_345_678_901_234]), 6, 2))


def test_a_cell_is_its_own_keys_business():
    keys = list(range(100, 116))
    one = gaussian(keys, 5, 4)
    keys[6] += 1
    other = gaussian(keys, 5, 4)
    changed = (one != other).any(0)
    assert changed.flatten().nonzero().flatten().tolist() == [6]
    assert torch.equal(gaussian(keys, 3, 4), other[:3])  # more channels are more numbers of the same cell
    assert not torch.isclose(gaussian([7] * 4, 8, 2).flatten(1).unique(dim=1), torch.zeros(1)).any()
    assert gaussian([7] * 4, 8, 2).flatten(1).unique(dim=1).shape[1] == 4  # the same key elsewhere is other noise
    assert not torch.isclose(gaussian(keys, 5, 4, stage=1), other).any()


def test_it_is_standard_normal_and_white():
    drawn = gaussian(np.arange(64 * 64, dtype=np.int64) * 2**40, 16, 64)
    assert stats.kstest(drawn.flatten().numpy()[::7], "norm").pvalue > 0.01
    flat = drawn.flatten(1).double()
    cells, channels = flat.shape[1], flat.shape[0]
    correlation = (flat @ flat.T / cells - torch.eye(channels)).abs().max()
    assert correlation < 5 / cells**0.5
    neighbours = (drawn[:, :, 1:] * drawn[:, :, :-1]).mean().abs()
    assert neighbours < 5 / drawn.numel() ** 0.5


@pytest.mark.parametrize("keys", [[1, 2, 3], [1, 2, 3, -1], [1, 2, 3, 2**63], [1, 2, 3, 0.5], [1, 2, 3, 2**64]])
def test_what_is_no_key_is_refused(keys):
    with pytest.raises(ValueError, match="key"):
        gaussian(keys, 4, 2)


# --- coarse to fine --------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_there_and_back_loses_nothing(shape, seed):
    picture = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    coefficients = coarse_to_fine(picture)
    assert coefficients.shape == (picture.numel(),)
    assert torch.allclose(fine_to_picture(coefficients, shape), picture, rtol=0, atol=1e-6)
    assert torch.allclose(coefficients.square().sum(), picture.square().sum(), rtol=1e-5)  # orthonormal


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, data=st.data())
def test_each_coefficient_is_a_unit_vector_of_its_own(shape, data):
    size = shape[0] * shape[1] * shape[2]
    at, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    one, two = (fine_to_picture(torch.eye(size)[place], shape) for place in (at, other))
    assert float((one * two).sum()) == pytest.approx(float(at == other), abs=1e-6)


def test_the_coarsest_come_first():
    assert order(2, 2) == (0, 1, 2, 3)
    assert order(3, 3) == (0, 1, 3, 4, 2, 6, 5, 7, 8)
    assert order(1, 4) == (0, 1, 2, 3)
    assert order(2, 4) == (0, 1, 2, 4, 5, 6, 3, 7)  # half as high as wide: a row's step is two columns' steps
    flat = torch.ones(3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    assert coarse_to_fine(flat)[:3].tolist() == pytest.approx([4, 8, 12])
    assert coarse_to_fine(flat)[3:].abs().max() < 1e-6


def test_white_noise_stays_white():
    """Forced coefficients that are normal leave the picture's noise what it was: no cell is like another."""
    drawn = torch.stack([gaussian(range(at, at + 64), 2, 8) for at in range(0, 64 * 800, 64)])
    coefficients = torch.stack([coarse_to_fine(picture) for picture in drawn])
    covariance = coefficients.T @ coefficients / len(drawn) - torch.eye(128)
    assert covariance.abs().max() < 6 / len(drawn) ** 0.5
    coefficients[:, :10] = torch.randn(len(drawn), 10, generator=torch.Generator().manual_seed(1))
    again = torch.stack([fine_to_picture(row, (2, 8, 8)) for row in coefficients]).flatten(1)
    assert (again.T @ again / len(again) - torch.eye(128)).abs().max() < 6 / len(again) ** 0.5
