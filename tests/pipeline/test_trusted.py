"""No file runs code that is not ours: every configuration that is read from one builds from a fixed list."""

import importlib
import json
import pickle
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import stored
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from pmf_lightning import UserError, load_checkpoint
from pmf_lightning.config.compose import CONF
from pmf_lightning.pipeline import plugins
from pmf_lightning.pipeline.checkpoints import build_stored
from pmf_lightning.pipeline.migrate import MOVED_TARGETS
from pmf_lightning.pipeline.trusted import _PARTS, _known, check_stored, resolve

HUB = {"repo_or_dir": "{folder}", "model": "boom", "source": "local"}
TOUCH = {"_args_": ["touch {mark}"]}
# What would write a file, as a configuration names it; {mark} is the file, {folder} has a hubconf.py and a module.
RUNNING = {
    "hub through our own module": {"_target_": "pmf_lightning.pipeline.checkpoints.torch.hub.load", **HUB},
    "hub": {"_target_": "torch.hub.load", **HUB},
    "os": {"_target_": "os.system", "command": "touch {mark}"},
    "os through our own module": {"_target_": "pmf_lightning.utils.cache.os.system", "command": "touch {mark}"},
    "os by its file": {"_target_": "posix.system", **TOUCH},
    "subprocess": {"_target_": "subprocess.run", "_args_": [["touch", "{mark}"]]},
    "subprocess, another": {"_target_": "subprocess.getoutput", **TOUCH},
    "subprocess through our own module": {
        "_target_": "pmf_lightning.sweeps.subprocess_run.subprocess.getoutput",
        **TOUCH,
    },
    "open": {"_target_": "builtins.open", "file": "{mark}", "mode": "w"},
    "exec": {"_target_": "builtins.exec", "_args_": ["open('{mark}', 'w')"]},
    "eval": {"_target_": "builtins.eval", "_args_": ["open('{mark}', 'w')"]},
    "import": {"_target_": "importlib.import_module", "name": "foreign_module"},
    "import through our own module": {"_target_": "pmf_lightning.import_module", "name": "foreign_module"},
    "runpy": {"_target_": "runpy.run_path", "path_name": "{folder}/hubconf.py"},
    "the target's own module": {"_target_": "foreign_module.Thing"},
    "instantiate": {
        "_target_": "hydra.utils.instantiate",
        "_recursive_": False,
        "config": {"_target_": "os.system", "command": "touch {mark}"},
    },
    "instantiate through our own module": {
        "_target_": "pmf_lightning.pipeline.checkpoints.instantiate",
        "_recursive_": False,
        "config": {"_target_": "os.system", "command": "touch {mark}"},
    },
    "get_method": {"_target_": "hydra.utils.get_method", "path": "foreign_module.Thing"},
    "get_object": {"_target_": "hydra.utils.get_object", "path": "foreign_module.Thing"},
    "numpy.load": {"_target_": "numpy.load", "file": "{pickle}", "allow_pickle": True},
    "numpy.load through our own module": {
        "_target_": "pmf_lightning.data.sources.decode_cache.np.load",
        "file": "{pickle}",
        "allow_pickle": True,
    },
    "torch.load": {"_target_": "torch.load", "f": "{pickle}", "weights_only": False},
    "pathlib": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["{mark}"]}},
    "shutil": {"_target_": "shutil.copyfile", "src": "{pickle}", "dst": "{mark}"},
    "our own function": {"_target_": "pmf_lightning.utils.cache.shutil.copyfile", "src": "{pickle}", "dst": "{mark}"},
    "nested below ours": {
        "_target_": "pmf_lightning.encoders.extractors.ModuleFeatures",
        **{"name": "mine", "features": 3, "batch": 4},
        "module": {"_target_": "os.system", "command": "touch {mark}"},
    },
    "in a partial of ours": {
        "_target_": "torch.optim.AdamW",
        "_partial_": True,
        "lr": [{"_target_": "os.system", "command": "touch {mark}"}],
    },
}
# What writes no file when Hydra builds it, and is no part of a model either.
OTHER = {
    "a walk over dunders": {"_target_": "pmf_lightning.models.vit.ViT.__init__.__globals__"},
    "a class of another part": {"_target_": "pmf_lightning.encoders.dinov2.DinoV2"},
    "ours, not of the list": {"_target_": "pmf_lightning.utils.cache._remove", "path": "{folder}"},
    "another name for ours": {"_target_": "pmf_lightning.pipeline.checkpoints.GenerativeModule"},
    "ours from where it is only imported": {"_target_": "pmf_lightning.encoders.drifting.build.MAE"},
    "a partial that we do not ship": {"_target_": "pmf_lightning.models.vit.ViT", "_partial_": True},
    "a partial in words": {"_target_": "torch.optim.AdamW", "_partial_": "true"},
    "positional arguments": {"_target_": "torch.optim.AdamW", "_args_": [1]},
    "a list": {"_target_": ["os.system"]},
    "a mapping": {"_target_": {"_target_": "os.system"}},
    "nothing": {"_target_": None},
    "an empty text": {"_target_": ""},
    "dots": {"_target_": "..os.system"},
    "a space": {"_target_": " pmf_lightning.models.vit.ViT"},
    "letters that look alike": {"_target_": "pmf_lightning.models.vit.Vi\u03a4"},
    "the package": {"_target_": "pmf_lightning"},
}
ALIASES = RUNNING | OTHER


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """Fill in the places of a node; the mark is what foreign code leaves."""
    folder, mark, pickled = tmp_path / "foreign", tmp_path / "ran", tmp_path / "pickled.npy"
    folder.mkdir()
    writes = f"open({str(mark)!r}, 'w').close()\n"
    (folder / "hubconf.py").write_text(f"def boom():\n    {writes}")
    (folder / "foreign_module.py").write_text(f"{writes}class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("foreign_module", None)
    plugins.remedy(["foreign_module"])  # imports what lists the installed packages
    pickled.write_bytes(pickle.dumps(Runs(mark)))
    places = {"{mark}": str(mark), "{folder}": str(folder), "{pickle}": str(pickled)}

    def fill(node):
        text = json.dumps(node)
        for place, value in places.items():
            text = text.replace(place, value)
        return json.loads(text)

    fill.mark = mark
    yield fill
    sys.modules.pop("foreign_module", None)


class Runs:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_hydra_alone_would_run_them(filled):
    """Each of these nodes is a real one: nothing but our comparison is in its way. Newer Hydras refuse some by name."""
    ran = []
    for alias, node in RUNNING.items():
        filled.mark.unlink(missing_ok=True)
        sys.modules.pop("foreign_module", None)
        with suppress(Exception):  # what it returned was of no use
            instantiate(OmegaConf.create(filled(node)))
        ran += [alias] if filled.mark.exists() else []
    assert {"hub through our own module", "hub", "the target's own module", "numpy.load", "pathlib"} <= set(ran)


def at_top(config, node):
    config["backbone"] = node


def deep(config, node):
    config["data"]["more"] = [[{"one": node}], 2]


def in_arguments(config, node):
    config["optimizer"]["_args_"] = [node]


def in_a_new_part(config, node):
    config["more"] = {"of": node}


def as_optimizer(config, node):
    config["optimizer"] = {"_partial_": True, **node}


PLACES = [at_top, deep, in_arguments, in_a_new_part, as_optimizer]


def of_checkpoint(config, tmp_path):
    load_checkpoint(stored.write_checkpoint(tmp_path / "bad.ckpt", config))


def of_folder(config, tmp_path):
    load_checkpoint(stored.write_folder(tmp_path / "bad", config))


def of_wandb(config, tmp_path):
    """W&B keeps a configuration as JSON, each part below "value"."""
    kept = json.loads(json.dumps({name: {"value": part} for name, part in config.items()}))
    build_stored({name: part["value"] for name, part in kept.items()}, "W&B run abc", stored=100)


for late in ("torch.utils.serialization.config", "tqdm.auto"):  # what reading a file imports, whatever is in it
    importlib.import_module(late)


@pytest.mark.parametrize("alias", ALIASES)
def test_nothing_of_a_file_is_run(alias, filled, tmp_path):
    number = list(ALIASES).index(alias)
    cases = [(of_wandb, place) for place in PLACES]  # quick: no file is written
    cases += [(read, PLACES[(number + shift) % len(PLACES)]) for shift, read in enumerate((of_checkpoint, of_folder))]
    for read, place in cases:
        config, node = stored.config(), filled(ALIASES[alias])
        place(config, node)
        before = set(sys.modules)
        with pytest.raises(UserError, match=r"it would run code outside pmf_lightning \(.+\); refused") as refusal:
            read(config, tmp_path)
        assert "\n" not in str(refusal.value)
        assert not filled.mark.exists()
        assert not {name for name in set(sys.modules) - before if not name.startswith("pmf_lightning")}


def test_the_same_file_without_it_is_loaded(tmp_path):
    for read in (of_checkpoint, of_folder, of_wandb):
        read(stored.config(), tmp_path)


def test_the_exploit_of_the_issue(filled, tmp_path):
    """A hubconf was executed by: _target_ pmf_lightning.pipeline.checkpoints.torch.hub.load, source local."""
    config = stored.config()
    config["backbone"] = filled(RUNNING["hub through our own module"])
    with pytest.raises(UserError, match=r"torch\.hub\.load"):
        load_checkpoint(stored.write_checkpoint(tmp_path / "hub.ckpt", config))
    assert not filled.mark.exists()


@pytest.mark.parametrize(
    "value",
    ["${oc.env:HOME}", "${seed}", "a${oc.decode:1}b", "${shards_say:/data,classes}", "${class_folders:/data}", "???"],
)
def test_interpolations_are_refused(value, tmp_path):
    for place in ("data", "sampling", "study"):
        config = stored.config()
        config[place] = {**(config.get(place) or {}), "root": [value]}
        with pytest.raises(UserError, match="a reference and not a value"):
            of_wandb(config, tmp_path)
    with pytest.raises(UserError, match="a reference and not a value"):
        of_wandb({**stored.config(), value: 1}, tmp_path)


def test_only_plain_data_of_a_sensible_length_are_read():
    loop = {"backbone": {}}
    loop["backbone"]["again"] = loop
    doubled = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    wide = [0] * 1000
    shared = [wide] * 1000
    for bad in (loop, {"a": doubled}, {"a": shared}, {"a": "x" * 100_000}):
        with pytest.raises(UserError, match="too long or too deep"):
            check_stored(bad, "ckpt=x")
    for bad in ({"a": torch.zeros(1)}, {"a": {1, 2}}, {"a": b"bytes"}):
        with pytest.raises(UserError, match="not a plain value"):
            check_stored(bad, "ckpt=x")
    for bad in ([], None, "text"):
        with pytest.raises(UserError, match="not a mapping"):
            check_stored(bad, "ckpt=x")
    with pytest.raises(UserError, match="which is not text"):
        check_stored({(1, 2): 3}, "ckpt=x")


def targets_of_conf():
    """Yield (target, whether partial) of every configuration that we ship, but those of Hydra's own parts."""
    for path in CONF.rglob("*.yaml"):
        if any(path.is_relative_to(CONF / group) for group in ("cluster", "callbacks", "logger")):
            continue  # never built from a stored configuration
        waiting = [OmegaConf.to_container(OmegaConf.load(path))]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if str(value.get("_target_", "")).startswith(("pmf_lightning.", "torch.")):
                    yield value["_target_"], value.get("_partial_", False)
                waiting += [inner for key, inner in value.items() if key != "hydra"]
            elif isinstance(value, list):
                waiting += value


BUILDABLE = {part: _known(part) for part in _PARTS}  # by part: names, and whether conf/ builds them as partials


def test_the_list_is_that_of_conf():
    listed = {target: partial for part in BUILDABLE.values() for target, partial in part.items()}
    assert dict(targets_of_conf()) == listed


def test_what_the_list_names_is_defined_there():
    for part in BUILDABLE.values():
        for name in part:
            assert get_object(name) is resolve(name)  # what Hydra will build is what was compared
    for alias in (
        "pmf_lightning.pipeline.checkpoints.torch",
        "pmf_lightning.pipeline.checkpoints.UserError",
        "pmf_lightning.no.Such",
        "os",
    ):
        with pytest.raises(LookupError):
            resolve(alias)


def test_older_names_are_todays():
    config = stored.config()
    config["data"]["_target_"] = "pmf_lightning.data.imagenet.ImageNet"
    assert check_stored(config, "ckpt=x")["data"]["_target_"] == "pmf_lightning.data.shards.source.Shards"
    assert set(MOVED_TARGETS.values()) <= {name for part in BUILDABLE.values() for name in part}


MINE = """
import os
from functools import partial
from json import dumps
from my_package import parts
from my_package.parts import Inner, Part
class Flow:
    class Nested:
        pass
run = os.system
again = Flow
many = partial(Flow)
spoof = type("spoof", (), {"__module__": "my_package", "__qualname__": "system"})
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A configuration with a target of the user's package, which is on the path; no package is trusted yet."""
    package = tmp_path / "mine" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(MINE)
    (package / "parts.py").write_text("import os\nclass Part:\n    pass\nclass Inner:\n    pass\n")
    (package.parent / "broken_package.py").write_text("nonsense\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    importlib.invalidate_caches()
    yield lambda target, **more: {**stored.config(), "more": {"_target_": target, **more}}
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_a_package_of_the_user_is_refused_until_it_is_trusted(mine, monkeypatch):
    config = mine("my_package.Flow", _partial_=True)
    with pytest.raises(UserError) as refusal:
        check_stored(config, "ckpt=x")
    assert str(refusal.value) == (
        "ckpt=x: it would run code outside pmf_lightning (my_package.Flow); refused; if you trust that code, add "
        "trust=[my_package], or set PMF_TRUST=my_package"
    )
    assert "my_package" not in sys.modules
    built = {part: value for part, value in config.items() if part not in ("callbacks", "logger", "study")}
    assert check_stored(config, "ckpt=x", trust=["my_package"]) == built
    monkeypatch.setenv("PMF_TRUST", "another, my_package")
    assert check_stored(config, "ckpt=x") == built


def test_an_installed_plugin_is_trusted(mine, monkeypatch):
    entry = EntryPoint("mine", "my_package.parts:Part", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == "pmf_lightning.plugins" else [])
    plugins._installed_plugins.cache_clear()
    try:
        assert check_stored(mine("my_package.Flow"), "ckpt=x")
    finally:
        plugins._installed_plugins.cache_clear()


def test_what_a_trusted_package_defines_may_be_built_under_its_names(mine):
    for target in ("my_package.Flow", "my_package.again", "my_package.Part", "my_package.parts.Inner"):
        assert check_stored(mine(target), "ckpt=x", trust=["my_package"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("my_package.os.system", "my_package.os cannot be imported"),
        ("my_package.parts.os", "not defined in my_package"),
        ("my_package.run", "not defined in my_package"),
        ("my_package.dumps", "not defined in my_package"),
        ("my_package.parts", "not defined in my_package"),
        ("my_package.many", "not defined in my_package"),
        ("my_package.spoof", "not a function or class of a module of my_package"),
        ("my_package.absent", "not defined in my_package"),
        ("my_package.Flow.Nested", "my_package.Flow cannot be imported"),
        ("my_package", "my_package cannot be imported"),
        ("broken_package.Flow", "broken_package cannot be imported (NameError"),
        ("my_package_too.Flow", "add trust=[my_package_too]"),
        ("os.system", "(os.system); refused"),
        ("pmf_lightning.utils.cache.digest", "(pmf_lightning.utils.cache.digest); refused"),
    ],
)
def test_nothing_else_of_it_is_built(mine, target, words):
    with pytest.raises(UserError, match=r"refused") as refusal:
        check_stored(mine(target), "ckpt=x", trust=["my_package", "broken_package", "pmf_lightning"])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["os", "torch", "hydra", "numpy", "builtins", "nt"])
def test_libraries_cannot_be_trusted(name, mine, monkeypatch):
    with pytest.raises(UserError, match=rf"trust=\[{name}\]: {name} is a library"):
        check_stored(stored.config(), "ckpt=x", trust=[name])
    monkeypatch.setenv("PMF_TRUST", f"my_package,{name}")
    with pytest.raises(UserError, match=f"PMF_TRUST=my_package,{name}: {name} is a library"):
        check_stored(stored.config(), "ckpt=x")
    monkeypatch.delenv("PMF_TRUST")
    with pytest.raises(UserError, match=r"refused$"):  # without advice to trust it
        check_stored(mine(f"{name}.load"), "ckpt=x")


@pytest.mark.parametrize("name", ["my_package.parts", "my package", "", "../mine"])
def test_trust_names_packages(name):
    with pytest.raises(UserError, match="is not the name of a package"):
        check_stored(stored.config(), "ckpt=x", trust=[name])
