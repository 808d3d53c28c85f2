"""Commands behave the same with every supported version of Hydra: bad values take one line, nothing is deprecated."""

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from pmf_lightning import UserError, build, compose, info
from pmf_lightning.train import main
from pmf_lightning.utils.hydra_compat import instantiate, register_resolver


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=imf_digits", "preconditioner=edm"], "objective: prediction=u: a pre-conditioner makes images"),
        (["model=jit_tiny", "objective.loss=w"], "objective: loss=w is not one of x, eps, v"),
        (["model=pmf_tiny", "objective.prediction=y"], "objective: prediction=y is not one of x, u"),
        (["model=pmf_tiny", "optimizer=adam", "optimizer.betas=[2,0.9]"], "optimizer: Invalid beta parameter"),
        (["model=pmf_tiny", "backbone.num_heads=5"], "backbone: width 64 does not split into 5 heads"),
    ],
)
def test_what_a_constructor_objects_to_is_one_line(call_command, overrides, message):
    status, _, errors = call_command(main, *overrides)
    assert status == 2
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone._target_=builtins.dict", "backbone._target_=builtins.dict: it builds a dict, not a torch.nn.Module"),
        ("optimizer._target_=builtins.dict", "optimizer: its _target_ builds a dict, not a torch.optim.Optimizer"),
    ],
)
def test_an_object_of_the_wrong_kind_is_one_line(override, message):
    with pytest.raises(UserError) as refusal:
        build(compose(["model=pmf_tiny", override]))
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("option", ["backbone.width", "objective.P_mean"])
def test_a_value_that_is_missing_is_one_line(option):
    cfg = compose(["model=pmf_tiny"])
    OmegaConf.update(cfg, option, "???")  # as in a file of the user's
    with pytest.raises(UserError, match=rf"^{option}=\?\?\?: it has no value; set it$"):
        build(cfg)


def test_other_parts_too():
    with pytest.raises(InstantiationException, match=r"trainer=fsdp|gather_dtype=int8"):  # the first with an old torch
        instantiate(compose(["trainer=fsdp", "trainer.strategy.gather_dtype=int8"]).trainer.strategy)
    with pytest.raises(InstantiationException, match=r"builtins\.int"):
        instantiate(OmegaConf.create({"_target_": "builtins.int", "_args_": ["a"]}))


@pytest.mark.slow
def test_nothing_is_deprecated(call_command, recwarn):
    register_resolver("nothing", lambda: None)
    register_resolver("nothing", lambda: 3)
    assert OmegaConf.create({"a": "${nothing:}"}).a == 3
    status, output, errors = call_command(info.main, "model=pmf_tiny")
    assert (status, errors) == (0, "")
    assert "pmf_tiny" in output
    assert not [str(one.message) for one in recwarn if "hydra" in f"{one.message} {one.filename}".lower()]


def test_models_are_built_alike():
    assert type(build(compose(["model=pmf_tiny"]), empty=True).objective).__name__ == "PixelMeanFlow"
