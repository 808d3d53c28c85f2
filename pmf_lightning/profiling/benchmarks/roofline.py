"""Which limit each kind of operation of a step reaches: the speed of large products, or that of memory."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from pmf_lightning.profiling.benchmarks.timing import milliseconds
from pmf_lightning.utils.precision import Number

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv_")
CONVOLUTIONS = ("mkldnn_convolution", "cudnn_convolution", "convolution_backward")
COPIES = ("aten::copy_", "aten::cat", "aten::index", "aten::index_copy_", "aten::fill_", "aten::zero_")
# Operations that move no data, or that call others which do.
VIEWS = (
    "view reshape _unsafe_view transpose t permute expand as_strided slice select detach unbind split unflatten "
    "flatten squeeze unsqueeze alias view_as_real view_as_complex narrow chunk empty empty_strided empty_like clone "
    "_to_copy to contiguous linear matmul conv2d convolution _convolution resolve_conj resolve_neg item "
    "_local_scalar_dense scaled_dot_product_attention _scaled_dot_product_attention_math"
)
KINDS = ("products", "attention", "pointwise", "copies", "host")
COPIED = 2**24  # elements of the copy that measures the bandwidth: larger than a cache
FLOAT = 4  # bytes of an element: half precision is counted as if it were float32


def operations(step: Callable[[], object], device: torch.device, peak: Number) -> dict[str, Any]:
    """Return a table of ``step``'s operations by kind, with their share of the device's limits.

    Per kind: ``ms``, ``share`` of the time and ``calls``; for products and attention ``gflop_per_second`` and
    ``share_of_peak``, with ``peak`` the operations per second of a large product; for pointwise operations (norms and
    sums included) and copies ``gb_per_second`` and ``share_of_copy``, of the speed of a large copy. Bytes are those of
    the arguments and of a result as large as the largest; a share above 1 comes from a cache. "host" is what moves no
    data: views, Python, autograd. Times are those of the profiler, which slows a step down.
    """
    on_gpu = device.type == "cuda"
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    step()
    with profile(activities=watched, record_shapes=True, with_flops=True) as seen:
        step()
    rows = _by_kind(seen.key_averages(group_by_input_shape=True), on_gpu)
    total, bandwidth = sum(row["ms"] for row in rows.values()), _copy_speed(device)
    table = {kind: _limits(kind, row, total, peak, bandwidth) for kind, row in rows.items() if row["calls"]}
    return {"copy_gb_per_second": bandwidth / 1e9, **table}


def _by_kind(events: Iterable[Any], on_gpu: bool) -> dict[str, dict[str, Number]]:
    """Return the sums over the operations of each kind.

    The profiler of a GPU lists each kernel twice: in the operation that started it, and by itself. The latter is left
    out.
    """
    rows: dict[str, dict[str, Number]] = {kind: defaultdict(float) for kind in KINDS}
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        row = rows[kind := _kind(event.key)]
        row["ms"] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
        row["calls"] += event.count
        row["flop"] += _attention_flops(event) if kind == "attention" else event.flops
        row["bytes"] += event.count * _bytes(event.input_shapes)
    return rows


def _kind(name: str) -> str:
    if name.startswith("aten::_scaled_dot_product") and "math" not in name:  # the fused kernels
        return "attention"
    if name in PRODUCTS or (name.startswith("aten::") and name.endswith(CONVOLUTIONS)):
        return "products"
    if name in COPIES:
        return "copies"
    library, _, operation = name.partition("::")
    return "pointwise" if library == "aten" and operation not in VIEWS.split() else "host"


def _limits(kind: str, row: dict[str, Number], total: Number, peak: Number, bandwidth: Number) -> dict[str, Number]:
    seconds = max(row["ms"], 1e-9) / 1e3
    found = {"ms": row["ms"], "share": row["ms"] / total, "calls": int(row["calls"])}
    if kind in ("products", "attention"):
        found |= {"gflop_per_second": row["flop"] / seconds / 1e9, "share_of_peak": row["flop"] / seconds / peak}
    elif kind != "host":
        found |= {"gb_per_second": row["bytes"] / seconds / 1e9, "share_of_copy": row["bytes"] / seconds / bandwidth}
    return found


def _bytes(shapes: Sequence[Any]) -> int:
    sizes = [math.prod(shape) for shape in shapes if shape and all(isinstance(side, int) for side in shape)]
    return FLOAT * (sum(sizes) + max(sizes)) if sizes else 0


def _attention_flops(event: Any) -> Number:
    """Return the operations of fused attention, which the profiler does not count."""
    shapes = [tuple(shape) for shape in event.input_shapes if len(shape) == 4]
    if len(shapes) < 3:
        return 0
    backward = "backward" in event.key.lower()
    return event.count * (sdpa_backward_flop_count(*shapes[:4]) if backward else sdpa_flop_count(*shapes[:3]))


def _copy_speed(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * FLOAT * COPIED / (min(milliseconds(lambda: target.copy_(source)) for _ in range(5)) / 1e3)


def describe_operations(table: dict[str, Any]) -> str:
    """Format the table as text, a line per kind."""
    lines = []
    for kind, row in ((kind, table[kind]) for kind in KINDS if kind in table):
        limit = ""
        if "gflop_per_second" in row:
            limit = f", {row['gflop_per_second']:.0f} GFLOP/s: {row['share_of_peak']:.0%} of a large product"
        elif "gb_per_second" in row:
            limit = f", {row['gb_per_second']:.0f} GB/s: {row['share_of_copy']:.0%} of a large copy"
        lines.append(f"  {kind:9} {row['ms']:8.1f} ms {row['share']:4.0%} of the time, {row['calls']:5} calls{limit}")
    return "\n".join(["operations, as the profiler sees them:", *lines])
