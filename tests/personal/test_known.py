"""What a row keeps of a person: little, and enough for the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penchant.heads.tastes import Taste, newton, packed, unpacked
from penchant.personal.known import Known
from penchant.personal.records import Person
from penchant.personal.users import Users

LATENT, K = 32, 40
NAMED = "0123abcd"


def somebody(seed: int = 0, pairs: int = 50) -> Known:
    """A person like those of a fit: a z up to 2, a precision whose eigenvalues are ten thousand apart."""
    rng = np.random.default_rng(seed)
    sides = rng.normal(size=(pairs, K)) * np.geomspace(1.0, 0.01, K)
    taste = Taste(rng.normal(size=K).astype(np.float32), np.zeros(0), pairs)
    precision = packed(0.1 * np.eye(K) + 0.25 * sides.T @ sides).astype(np.float32)
    weights = torch.from_numpy(rng.normal(size=LATENT).astype(np.float32))
    return Known(weights, None, taste._replace(precision=precision))


def kept(known: Known, rewards: str | None = NAMED, read_as: str | None = NAMED) -> Known:
    return Known.of(Person("ann", dict(known.vectors(rewards)), 50, 1, 0.0, "m"), read_as)


def test_a_person_takes_less_than_four_kilobytes_of_the_file(tmp_path: Path) -> None:
    with Users(tmp_path / "users.db", "model") as users:
        users.put_many((f"person-{i:06d}", somebody(i).vectors(NAMED), 50) for i in range(5000))
        assert users.known("person-000007").size < 2400
        assert users.bytes_per_user < 4096


def test_margins_of_what_is_kept_are_the_same_to_a_thousandth() -> None:
    known = somebody()
    again = kept(known)
    assert known.weights is not None
    assert again.weights is not None
    z = torch.randn(500, LATENT, generator=torch.Generator().manual_seed(0))
    before, after = z @ known.weights, z @ again.weights  # m_u . (a - b)
    assert 0 < (after - before).norm() < 1e-3 * before.norm()
    assert known.taste is not None
    assert again.taste is not None
    assert np.array_equal(again.taste.mean, known.taste.mean)  # scores are the very same
    assert again.taste.pairs == 50


def test_a_taste_goes_on_from_what_was_kept_as_from_what_was_known() -> None:
    for seed in range(5):
        known = somebody(seed)
        assert known.taste is not None
        rng = np.random.default_rng(100 + seed)
        new = rng.normal(size=(1, 5, K)) * np.geomspace(1.0, 0.01, K)
        found, vague = [], known.taste._replace(precision=packed(0.1 * np.eye(K)))
        for taste in (known.taste, kept(known).taste, vague):
            assert taste is not None
            precision = unpacked(taste.precision, K)
            assert np.linalg.eigvalsh(precision).min() > 0.09
            found.append(newton(new, taste.mean[None].astype(np.float64), precision[None])[0][0] - known.taste.mean)
        assert np.linalg.norm(found[1] - found[0]) < 2e-3 * np.linalg.norm(found[0])
        assert np.linalg.norm(found[2] - found[0]) > 0.1 * np.linalg.norm(found[0])  # the precision does matter


def test_a_precision_too_large_for_float16_is_kept() -> None:
    known = somebody()
    assert known.taste is not None
    large = known.taste._replace(precision=1e6 * known.taste.precision)
    assert np.abs(large.precision).max() > 1e6
    again = kept(known._replace(taste=large)).taste
    assert again is not None
    assert np.abs(again.precision - large.precision).max() < 1e-3 * np.abs(large.precision).max()


def test_a_taste_in_other_directions_is_not_used() -> None:
    known = somebody()
    assert kept(known, read_as="ffffffff").taste is None
    assert kept(known, read_as=None).taste is None
    assert kept(known, rewards=None).taste is None
    assert kept(known, read_as="ffffffff").weights is not None


@pytest.mark.parametrize("taste", [True, False])
def test_a_whole_encoder_is_kept_bit_for_bit(taste: bool) -> None:
    encoder = {"head.weight": torch.randn(4, 3), "queries": torch.randn(2, 3)}
    again = kept(Known(None, encoder, somebody().taste if taste else None))
    assert again.weights is None
    assert again.encoder is not None
    assert again.encoder.keys() == encoder.keys()
    assert all(torch.equal(again.encoder[name], encoder[name]) for name in encoder)
    assert (again.taste is not None) == taste
