"""A pretended GPU: the operations of a training step run on tensors without values, and what would wait is noted."""

from collections import Counter, defaultdict
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pmf_lightning.objectives.jvp.forward_mode import Dual

CUDA = torch.device("cuda", 0)
ELSEWHERE = "cpu:0"  # the same memory by another name, so that the moments are not beside the weights


class FakeDevice(TorchDispatchMode):
    """While it is entered, operations on ``cuda`` tensors compute shapes only; those on CPU tensors run for real.

    Two devices in one operation, and everything that needs a value of the device (``item``, ``nonzero``, a boolean
    index), are errors of FakeTensorMode. ``waits`` counts what the host would wait for without such an error: a copy
    to the device that is blocking, an index on the CPU of a tensor on the device, and any copy to the CPU, other than
    one that does not block into page-locked memory (which is ordinary memory here). ``copies`` is the number of copies
    to the device that do not wait, ``saved`` that of those from it, ``operations`` that of the others, views among
    them. ``dtypes`` has the floating dtypes of the arguments that each operation got, by its name.

    Streams and events note in ``events`` who waits: the device for a stream, or the host for an event.
    """

    def __init__(self, monkeypatch):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()
        self.copies = self.saved = self.operations = 0
        self.events: list[str] = []
        self._locked: set[int] = set()  # addresses of page-locked tensors
        self.dtypes: defaultdict[str, set[torch.dtype]] = defaultdict(set)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: _Stream(self.events))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the kernels")
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(Dual, "__new__", _wrapped)
        monkeypatch.setattr(Dual, "__torch_dispatch__", classmethod(_refuse), raising=False)

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device with the shape and dtype of ``like``."""
        with self.fake:
            return torch.empty(like.shape, dtype=like.dtype, device=CUDA)

    def move(self, module: torch.nn.Module) -> None:
        """Move weights and buffers to the device."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = torch.nn.Parameter(self.tensor(weight), weight.requires_grad)
            part._buffers.update({name: self.tensor(value) for name, value in part._buffers.items()})

    def __enter__(self):
        self.fake.__enter__()  # without it torch would look for a driver
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        inside = any(isinstance(one, FakeTensor) for one in tensors)
        target = kwargs.get("device")
        there = target is not None and torch.device(target).type == "cuda"
        if not inside and not there:
            locked = kwargs.pop("pin_memory", False)
            with unset_fake_temporarily():
                made = func(*args, **kwargs)
            if locked:
                self._locked.add(made.data_ptr())
            return made
        self._note(func, tensors, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func, tensors, args, kwargs) -> None:
        self.dtypes[func.overloadpacket.__name__] |= {one.dtype for one in tensors if one.is_floating_point()}
        devices = [one.device.type for one in tensors]
        if func is torch.ops.aten._to_copy.default:
            source, target = devices[0], torch.device(kwargs.get("device") or tensors[0].device).type
        elif func is torch.ops.aten.copy_.default:
            target, source = devices
            kwargs = {"non_blocking": len(args) > 2 and args[2]}
            if (target, source) == ("cpu", "cuda") and kwargs["non_blocking"] and args[0].data_ptr() in self._locked:
                self.saved += 1
                return
        elif func is torch.ops.aten.index.Tensor and "cpu" in devices[1:]:
            self.waits["an index on the CPU"] += 1
            return
        else:
            self.operations += 1
            return
        if source == target:
            self.operations += 1
        elif target == "cpu" or not kwargs.get("non_blocking"):
            self.waits[f"a copy from {source} to {target}"] += 1
        else:
            self.copies += 1


class _Stream:
    def __init__(self, events):
        self.events = events

    def wait_stream(self, other):
        self.events.append(f"the stream waits for {other}")

    def record_event(self):
        return self

    def synchronize(self):
        self.events.append("the host waits")


def _wrapped(cls, value, tape, tangent=None):
    """Stand in for ``Dual.__new__``: a tensor without values cannot become one of a subclass by ``as_subclass``."""
    dual = torch.Tensor._make_wrapper_subclass(
        cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
    )
    dual.value, dual.tape, dual.tangent = value, tape, tangent
    return dual


def _refuse(cls, func, types, args=(), kwargs=None):
    raise AssertionError(f"{func} of a Dual, which has no values")
