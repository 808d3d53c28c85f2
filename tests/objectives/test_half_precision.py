"""precision=bf16-mixed on a CPU: losses and gradients near those of float32, for every objective."""

import pytest
import torch
from shrunk import backbone

from pmf_lightning import build, compose
from pmf_lightning.profiling.benchmarks.step import make_bench

MODELS = {
    "pMF": ["model=pmf_digits", "objective.jvp=one_pass"],
    "pMF, two passes": ["model=pmf_digits", "objective.jvp=two_pass"],
    "iMF": ["model=imf_digits"],
    "JiT": ["model=jit_tiny"],
    "Drifting": ["model=drifting_tiny"],
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_step_in_half_precision_is_near_that_in_float32(model):
    overrides, found = MODELS[model], []
    for precision in ("32-true", "bf16-mixed"):
        module = build(compose([*overrides, *backbone(overrides[0].removeprefix("model="))]))
        bench = make_bench(module, 16, torch.device("cpu"), precision, False, 0, (4, 3))
        with bench.cast():
            draws = bench.objective.draw(bench.batch, 0, 0)
            losses = bench.objective(bench.network, bench.batch, draws, bench.encoders)
        # Not the total of pMF and iMF, which is about 2 by construction.
        sums = torch.stack([value.mean() for value in losses.per_sample.values()] or [losses.total])
        gradients = bench.gradients(bench.loss)
        assert sums.dtype == gradients.dtype == torch.float32
        found.append((sums.detach(), gradients))
    (exact, slope), (half, half_slope) = found
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)
    assert torch.cosine_similarity(slope, half_slope, dim=0) > 0.999
