"""The decay of the moving average against the official schedule."""

from pathlib import Path

import numpy as np
import pytest

from pmf_lightning.optim.schedules import ema_beta
from pmf_lightning.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "reference" / "ema.npz"


def test_equals_the_official_schedule():
    with np.load(GOLDEN) as golden:
        steps, half_lives, exact, single = (golden[k] for k in ("steps", "halflife_kimg", "beta_f64", "beta_f32"))
    betas = np.array([[ema_beta(int(s) * 1024, 1024, int(h) * 1000) for s in steps] for h in half_lives])
    np.testing.assert_allclose(betas, exact, rtol=1e-14)
    np.testing.assert_allclose(betas, single, rtol=1e-5)
    assert len(np.unique(betas)) > len(steps)  # the half-lives part company once the ramp is over


def test_half_life_in_images_does_not_depend_on_the_batch():
    late = 10**9
    assert ema_beta(late, 512, 500_000) ** 2 == pytest.approx(ema_beta(late, 1024, 500_000), rel=1e-14)
    assert ema_beta(late, 500_000, 500_000) == 0.5


def test_ramp_shortens_the_half_life_early():
    assert ema_beta(1000, 50, 10**6) == 0.5
    assert ema_beta(1000, 50, 10**6, rampup_ratio=0.1) == pytest.approx(0.5**0.5)


def test_without_a_ramp_the_half_life_holds_from_the_first_image():
    assert ema_beta(64, 64, 6400, rampup_ratio=None) == 0.5**0.01


def test_first_images_replace_the_average():
    assert ema_beta(0, 64, 500_000) == 0.0


@pytest.mark.parametrize(("arguments", "name"), [((100, 10, 0), "half_life_images"), ((100, 0, 1000), "batch")])
def test_what_is_not_positive_is_refused(arguments, name):
    with pytest.raises(UserError, match=name):
        ema_beta(*arguments)
