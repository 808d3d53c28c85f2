"""Format the facts of models as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from pmf_lightning.config.presets import Published
from pmf_lightning.profiling.model_facts import Facts
from pmf_lightning.utils.precision import Number

ALL_NOTE = (
    "patch: numbers in a patch, next to the width of the network. to sample, to train: parameters. G mult-adds: 10^9 "
    "multiply-adds of one evaluation. blocks: block-forwards of training per image, ours and the official code's. GB: "
    "memory of a training step, before activations, and those of each image of a micro-batch."
)
PARTS = {"guidance": "guided target", "values": "values", "tangent": "du/dt", "backward": "backward pass"}
BLOCKS_NOTE = "A block-forward is one block on one image; a tangent counts one more, a backward pass two."
MEMORY_NOTE = (
    "Memory: tensors of one device, in float32, gradients always allocated. Not included are the memory of the "
    "allocator and the kernels, perceptual networks, drifting's encoders and their features, and what frozen encoders "
    "compute. A process on a CPU keeps what the passes have freed while the optimiser works. FSDP stores a part of "
    "weights, gradients, moments and averages on each device."
)


def one_model(facts: Facts) -> Group:
    """Return the description of a model, then its numbers next to the paper's."""
    paper, differences, official = facts.paper or Published(""), facts.differences(), facts.official
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("here", "paper", "difference"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_row("parameters to sample", *_pair(facts.parameters, paper.parameters, differences.get("parameters")))
    if paper.paper_parameters_m:
        table.add_row("  as printed, millions", "", f"{paper.paper_parameters_m}")
    if paper.released_parameters:
        table.add_row("  in the released file, with a layer of v", "", f"{paper.released_parameters:,}")
    to_train = _pair(facts.training_parameters, paper.training_parameters, differences.get("training_parameters"))
    table.add_row("parameters to train", *to_train)
    adds = _pair(facts.multiply_adds / 1e9, paper.gmacs, differences.get("multiply_adds"))
    table.add_row("10^9 multiply-adds of an evaluation", *adds)
    each = "one evaluation each" if paper.evaluations == 1 else f"{paper.evaluations} evaluations each"
    for name, value in (
        (f"FID of 50,000 images, {each}", paper.fid),
        ("  inception score", paper.inception_score),
    ):
        if value is not None:
            table.add_row(name, "", f"{value:g}")
    table.add_section()
    total = _pair(round(facts.block_forwards.total, 1), official and official.total, differences.get("block_forwards"))
    table.add_row("block-forwards per image; official code", *total)
    for part, name in PARTS.items():
        ours = round(getattr(facts.block_forwards, part), 1)
        table.add_row(f"  {name}", *_pair(ours, official and getattr(official, part)))
    table.add_section()
    for row in _memory(facts):
        table.add_row(*row)
    lines = [
        f"[bold]{facts.model}[/bold] on {facts.data}",
        _description(facts, paper),
        "",
        table,
        "",
        BLOCKS_NOTE,
        MEMORY_NOTE,
    ]
    return Group(*lines)


def _description(facts: Facts, paper: Published) -> Table:
    channels, size, _ = facts.image
    side = round(facts.patch_tokens**0.5)
    tokens = facts.condition_tokens + facts.patch_tokens
    neck = "no bottleneck" if facts.bottleneck is None else f"bottleneck {facts.bottleneck}"
    lines = {
        "image": " x ".join(map(str, facts.image)),
        "tokens": f"{tokens:,} = {facts.condition_tokens} of conditions + {side} x {side} patches",
        "patch dimension": f"{facts.patch_dimension:,} = {channels} x {size // side} x {size // side}, "
        f"next to width {facts.width:,}, {neck}",
        "blocks": ", ".join(f"{name} {count}" for name, count in facts.blocks.items()),
        "prediction": facts.prediction,
        "compared with": facts.compared,
        "v": facts.velocity,
        "perceptual losses": ", ".join(f"{name} x {weight:g}" for name, weight in facts.perceptual.items()) or "none",
        "paper": f"{paper.source}, on {paper.data}" if paper.source else "none",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines.items():
        grid.add_row(f"  {name}", text)
    return grid


def _memory(facts: Facts) -> list[tuple[str, str]]:
    memory = facts.memory
    rows = [
        (f"peak GB of a step, micro_batch={memory.micro_batch}", gigabytes(memory.peak)),
        ("  of a process on a CPU", gigabytes(memory.process)),
        ("  weights", gigabytes(memory.weights)),
        ("  gradients", gigabytes(memory.gradients)),
        ("  moments of the optimiser", gigabytes(0 if memory.moments_on_host else memory.optimizer)),
        ("  averages of the weights", gigabytes(0 if memory.averages_on_host else memory.averages)),
        (f"  activations, {memory.micro_batch} x {gigabytes(memory.per_image)}", gigabytes(memory.activations)),
    ]
    for name, count in facts.encoders.items():
        known = "unknown" if count is None else gigabytes(4 * count)
        rows.append((f"  frozen encoder {name}" + ("" if count is None else f", {count:,} weights"), known))
    if memory.host:
        rows.append((f"GB of {memory.on_host} in host memory", gigabytes(memory.host)))
    if facts.gpu_gb is not None:
        rows.append((f"images at once in {facts.gpu_gb:g} GB", f"{facts.largest_micro_batch:,}"))
    return rows


def all_models(models: Sequence[Facts]) -> Group:
    """Return a table of many models: our number, and below it the paper's with the difference."""
    table = Table(show_lines=True, show_edge=False, pad_edge=False, collapse_padding=True)
    titles = (
        "patch\nwidth",
        "to sample\npaper",
        "to train\npaper",
        "G mult-adds\npaper",
        "blocks\nofficial",
        "GB\n+ image",
    )
    table.add_column("model\ndata", no_wrap=True)
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right")
    for facts in models:
        table.add_row(*_summary(facts))
    return Group(table, "", ALL_NOTE, BLOCKS_NOTE, MEMORY_NOTE)


def _summary(facts: Facts) -> tuple[str, ...]:
    paper, relative = facts.paper or Published(""), facts.differences()
    official, memory = facts.official, facts.memory
    return (
        f"{facts.model}\n{facts.data}",
        f"{facts.patch_dimension:,}\n{facts.width:,}",
        f"{facts.parameters:,}\n{_theirs(paper.parameters, relative.get('parameters'))}",
        f"{facts.training_parameters:,}\n{_theirs(paper.training_parameters, relative.get('training_parameters'))}",
        f"{facts.multiply_adds / 1e9:.4g}\n{_theirs(paper.gmacs, relative.get('multiply_adds'))}",
        f"{facts.block_forwards.total:.1f}\n{_theirs(official and official.total, relative.get('block_forwards'))}",
        f"{gigabytes(memory.fixed)}\n+ {gigabytes(memory.per_image)}",
    )


def _pair(ours: Number, theirs: Number | None, difference: Number | None = None) -> tuple[str, str, str]:
    return number(ours), "" if theirs is None else number(theirs), percent(difference)


def _theirs(theirs: Number | None, difference: Number | None) -> str:
    """Format the paper's number and the difference from it as one cell."""
    if theirs is None or difference is None:
        return "-"
    return "the same" if difference == 0 else f"{number(theirs)} {percent(difference)}"


def number(value: Number) -> str:
    """Format integers exactly and other numbers to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(difference: Number | None) -> str:
    """Format a difference in percent with one decimal, or with one significant digit if it is below 0.05 %."""
    if not difference:
        return "" if difference is None else "0%"
    return f"{difference:+.1f}%" if abs(difference) >= 0.05 else f"{difference:+.1g}%"


def gigabytes(count: Number) -> str:
    """Format a number of bytes as 10^9 bytes."""
    if count < 1e6:
        return f"{count / 1e9:.1g}"
    return f"{count / 1e9:,.3g}" if count < 1e12 else f"{count / 1e9:,.0f}"
