"""Ways to spoil what is read: bytes that are cut, flipped or moved, and odd values somewhere in a tree."""

import copy
import math
import sys
import time
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pmf_lightning import UserError

try:
    import resource
except ImportError:  # a system without it has no such limit
    resource = None

MOST_SECONDS, MOST_BYTES = 10, 2 * 2**30
ODD = [
    *(None, True, False, 0, -1, 1, 3, 7.5, 2**31, 2**62, -(2**63), 10**20, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "1", "nan", "../..", "\0", "a\nb", "\u4e2d\u6587", "${seed}", "???", "x" * 300, "raw", "data", "ViT"),
    *([], {}, [[]], [None], [1, 2, 3], {"_target_": "os.system"}, {"": 0}, {"a": {"b": [1.5]}}),
]


@st.composite
def spoilt(draw, content):
    """Bytes that begin as ``content`` does, mostly."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["cut", "flip", "byte", "zeros", "ones", "drop", "double", "noise", "number"])):
            case "cut":
                del content[place:]
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "byte" if content:
                content[place] = draw(st.integers(0, 255))
            case "zeros":
                content[place : place + 16] = bytes(len(content[place : place + 16]))
            case "ones":
                content[place : place + 8] = b"\xff" * len(content[place : place + 8])
            case "drop":
                del content[place : place + draw(st.integers(1, 64))]
            case "double":
                content[place:place] = content[place : place + draw(st.integers(1, 512))]
            case "noise":
                content[place:place] = draw(st.binary(max_size=32))
            case "number":  # an absurd size, where a header has one
                content[place : place + 4] = draw(st.sampled_from([2**31 - 1, 2**32 - 1, 10**9])).to_bytes(4, "little")
    return bytes(content)


def places(tree, path=()):
    """List the path of every value in nested dictionaries and lists."""
    found = [path] if path else []
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return found + [place for key in keys for place in places(tree[key], (*path, key))]


@st.composite
def mutated(draw, tree, odd=tuple(ODD)):
    """A copy of a tree in which one to three values are missing, odd, or doubled under another name."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        known = places(tree)
        if not known:
            break
        *way, last = draw(st.sampled_from(known))
        holder = tree
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(["odd", "odd", "odd", "odd", "missing", "more", "number"])):
            case "missing":
                del holder[last]
            case "more" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["new", "", "_target_", "_args_", "format"]))] = draw(st.sampled_from(odd))
            case "number" if type(holder[last]) in (int, float):
                holder[last] = draw(st.one_of(st.integers(-3, 40), st.integers(), st.floats()))
            case _:
                holder[last] = copy.deepcopy(draw(st.sampled_from(odd)))
    return tree


@contextmanager
def bounded():
    """Raise where the block takes more than ten seconds of the processor, or more than two gigabytes above the rest."""
    before = time.process_time()
    with _limited():
        yield
    assert time.process_time() - before < MOST_SECONDS


@contextmanager
def _limited():
    """Limit the memory of the process, on Linux."""
    if resource is None or sys.platform != "linux":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def only_user_errors(work):
    """Return what ``work`` returns, None where it is a UserError of one line; every other error passes."""
    with bounded():
        try:
            return work()
        except UserError as error:
            line = str(error)
    assert "\n" not in line
    assert 0 < len(line) < 2000
    return None


def fuzz(strategy, check, examples):
    """Run ``check`` on so many values of a strategy, always the same ones."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    with_settings = settings(
        **{"max_examples": examples, "derandomize": True, "deadline": None, "database": None, "print_blob": True},
        **{"suppress_health_check": slow, "phases": [Phase.explicit, Phase.generate, Phase.shrink]},
    )

    @with_settings
    @given(strategy)
    def run(value):
        check(value)

    run()
