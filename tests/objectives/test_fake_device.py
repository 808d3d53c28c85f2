"""A training step on a GPU waits for nothing and mixes no devices, seen without a GPU on tensors without values.

The backward pass is not seen: torch asks for the real device there.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from common import Squares
from fake_device import CUDA, FakeDevice
from lightning import Trainer
from shrunk import backbone

from pmf_lightning import build, compose
from pmf_lightning.objectives.crops import CropLaw
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.objectives.distribution_matching import Target
from pmf_lightning.objectives.drifting import pixel_features
from pmf_lightning.training.callbacks.loss_by_time import BinnedMeans
from pmf_lightning.utils import rng

# Overrides, and the copies of a few numbers that a step makes without waiting.
CASES = {
    "pMF, one pass": (["model=pmf_digits", "flip=true", "objective.jvp=one_pass"], 19),
    "pMF, two passes, perceptual": (["model=pmf_digits", "objective.jvp=two_pass"], 20),
    "iMF": (["model=imf_digits"], 18),
    "JiT": (["model=jit_tiny"], 4),
    "Drifting": (["model=drifting_tiny", "flip=true"], 5),
    "MAE": (["model=mae_tiny"], 1),
    "RDM": (["model=pmf_digits", "posttrain=mmd", "posttrain.encoders=[rows,columns]"], 1),
}
IMAGES, POSITIVES, NEGATIVES = (8, 1, 32, 32), (2, 4, 1, 32, 32), (2, 3, 1, 32, 32)


@pytest.fixture
def device(monkeypatch):
    def no_numbers(*_, rows, shape, device):
        return torch.empty(len(rows), *shape, device=device)  # a generator of the device would need the device

    monkeypatch.setattr(rng, "normal_images", no_numbers)
    return FakeDevice(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_waits_for_nothing(case, device, monkeypatch):
    overrides, most = CASES[case]
    step = traced_step(case, overrides, device, monkeypatch)
    with device:
        answer = step()
    check(answer, device, most)


# What must not see half precision, and the products that must. Batched products are not among them: without a device
# fused attention takes a form in float32, and crops and the drifting loss are in float32 on purpose. So are the kernels
# of RDM, whose products are not batched.
WIDE = {"_fused_rms_norm", "_softmax", "mean", "sum", "linalg_vector_norm", "pow", "var"}
PRODUCTS = {"mm", "addmm", "convolution"}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("MAE", "RDM")])
def test_half_precision_is_for_products_alone(case, device, monkeypatch):
    """Under bf16-mixed the matrix products are in bfloat16; norms, softmax, reductions and the loss in float32."""
    overrides, most = CASES[case]
    step = traced_step(case, overrides, device, monkeypatch)
    with device, bfloat16():
        answer = step()
    check(answer, device, most)
    seen = {name: dtypes for name, dtypes in device.dtypes.items() if name in WIDE | PRODUCTS and dtypes}
    assert seen.keys() >= {"_fused_rms_norm", "sum", "mm", "addmm", "convolution"}
    assert [name for name, dtypes in seen.items() if name in WIDE and torch.bfloat16 in dtypes] == []
    assert [name for name, dtypes in seen.items() if name in PRODUCTS and dtypes != {torch.bfloat16}] == []


@contextmanager
def bfloat16():
    """Turn on autocast for a GPU that is not there, which torch.autocast refuses."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.clear_autocast_cache()


def traced_step(case, overrides, device, monkeypatch):
    """Return a training step of a tiny model on the device, as a function without arguments."""
    module = build(compose([*overrides, *backbone(overrides[0].removeprefix("model="))]))
    if "perceptual" in case:
        crop = CropLaw((0.5, 1.0), (0.8, 1.25))
        module.objective = replace(module.objective, perceptual={"near": 1.0}, crop=crop)
        module.set_encoders({"near": Squares(8)})
    elif case == "Drifting":
        module.set_encoders(pixel_features)
    elif case == "RDM":
        module.set_encoders(Lines(device))
        state = module.objective.initial_state(module.network, module.encoders, 0)
        module.state = {name: device.tensor(value) for name, value in state.items()}
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monkeypatch.setattr(type(module), "log", lambda *_, **__: None)
    images, *more = (POSITIVES, NEGATIVES) if case == "Drifting" else (IMAGES,)
    levels = [device.tensor(torch.empty(shape, dtype=torch.uint8)) for shape in (images, *more)]
    labels = device.tensor(torch.empty(images[0], dtype=torch.long))
    device.move(module)

    def step():
        given = [labels] if module.objective.data == "labels" else [levels[0], labels, *levels[1:]]
        answer = module.training_step(given, 0)
        if module.state:
            module.objective.next_state(module.state, module._observed.pop(), 0)
        for name, (t, values) in answer["by_time"].items():
            BinnedMeans(4).add(name, t, values)
        return answer

    return step


class Lines:
    """A battery of two encoders, the means of rows and of columns, with the references of RDM."""

    def __init__(self, device):
        landmarks, alpha = device.tensor(torch.empty(5, 32)), device.tensor(torch.empty(5))
        target = Target(MMDReference(landmarks, alpha, 1.0, 0.5), law=None, floor=0.1)
        self.targets = {"rows": target, "columns": target}

    def encode(self, images, clamp):
        return {"rows": images.mean((1, 3)), "columns": images.mean((1, 2))}


def check(answer, device, most):
    assert (answer["loss"].device, answer["loss"].dtype) == (CUDA, torch.float32)
    assert not device.waits
    assert device.copies <= most
    assert device.operations > 300


WAITS = {
    "a blocking copy": lambda there, here: here.to(CUDA),
    "a number from the host": lambda there, here: there.new_tensor([1.0, 2.0]),
    "a copy to the CPU": lambda there, here: there.to("cpu", non_blocking=True),
    "an index on the CPU": lambda there, here: there[torch.arange(2)],
    "an assignment": lambda there, here: there.copy_(here),
}
ERRORS = {
    "item": lambda there, here: there[0].item(),
    "a condition": lambda there, here: bool(there.sum() > 0),
    "nonzero": lambda there, here: there.nonzero(),
    "a boolean index": lambda there, here: there[there > 0],
    "a boolean index on the CPU": lambda there, here: there[here > 0],
    "two devices": lambda there, here: there + here,
}


@pytest.mark.parametrize("how", WAITS)
def test_what_waits_is_noted(how, device):
    with device:
        WAITS[how](device.tensor(torch.empty(3)), torch.ones(3))
    assert device.waits.total() == 1


@pytest.mark.parametrize("how", ERRORS)
def test_what_needs_a_value_or_two_devices_is_an_error(how, device):
    with device, pytest.raises((RuntimeError, torch._subclasses.fake_tensor.DataDependentOutputException)):
        ERRORS[how](device.tensor(torch.empty(3)), torch.ones(3))


def test_copies_to_page_locked_memory_do_not_wait(device):
    with device:
        there, buffer = device.tensor(torch.empty(3)), torch.empty(3, pin_memory=True)
        buffer.copy_(there, non_blocking=True)
        assert (device.saved, device.waits.total()) == (1, 0)
        buffer.copy_(there)
        torch.empty(3).copy_(there, non_blocking=True)
    assert (device.saved, device.waits.total()) == (1, 2)


def test_copies_that_do_not_wait_are_only_counted(device):
    with device:
        moved = torch.ones(3).to(CUDA, non_blocking=True)[torch.arange(2).to(CUDA, non_blocking=True)]
    assert (moved.device, moved.shape, device.copies, device.waits) == (CUDA, (2,), 2, {})
