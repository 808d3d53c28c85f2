"""Options: one table of kinds for all commands, checked before any work; paths and names are taken to the letter."""

import inspect
import shlex

import pytest
from omegaconf import OmegaConf

from pmf_lightning import UserError, compose
from pmf_lightning.cli import _check_jobs, _overrides_among
from pmf_lightning.config.command_line import as_typed, readable
from pmf_lightning.config.compose import CONF, choices, prepared
from pmf_lightning.config.option_checks import OURS, _leaves, _trainer_parameters
from pmf_lightning.config.option_kinds import kind_of_annotation
from pmf_lightning.config.option_table import COMMANDS, kind_of
from pmf_lightning.utils.pasted import path_argument

TINY = ["model=pmf_tiny", "metrics=none"]
FILES = ["train", *choices("commands")]


def refused(command, *overrides):
    """The line that a command refuses overrides with."""
    with pytest.raises(UserError) as caught:
        compose([*(TINY if command == "train" else []), *overrides], command)
    line = str(caught.value)
    assert "\n" not in line
    return line


def taken(command, option, text):
    """What a command makes of ``option=text``."""
    return OmegaConf.select(compose([f"{option}={text}"], command), option)


def test_every_command_has_a_table():
    assert {*FILES, "run"} == COMMANDS.keys()
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == ["run", "train"]


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        *((command, []) for command in FILES),
        *(("train", [f"model={name}"]) for name in ("jit_tiny", "drifting_tiny", "mae_tiny", "imf_digits", "pmf_b16")),
        *(("train", [f"data={name}"]) for name in choices("data")),
        *(("train", ["model=pmf_tiny", f"{group}={name}"]) for group in ("perceptual", "optimizer", "trainer")
          for name in choices(group)),
        *(("train", [f"{group}={name}"]) for group in ("logger", "callbacks") for name in choices(group)),
        *(("train", ["model=drifting_tiny", f"drift_features={name}"]) for name in choices("drift_features")),
        *(("train", [f"battery={name}"]) for name in choices("battery")),
        *(("train", [f"preconditioner={name}"]) for name in choices("preconditioner")),
        ("train", ["augment=edm"]),
        *(("evaluate", [f"{group}={name}"]) for group in ("protocol", "extractor") for name in choices(group)),
        *(("toy", [f"toys={name}"]) for name in choices("toys")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_every_key_of_conf_has_a_kind(command, overrides):
    for leaf in _leaves(compose(overrides, command)):
        if not str(leaf.key).startswith("_"):
            assert kind_of(command, leaf.option) is not None, f"{leaf.option}: add it to config/option_table.py"


@pytest.mark.parametrize(
    ("command", "override", "words"),
    [
        ("train", "checkpoint.every_images=???", "stands for a value that is missing"),
        ("train", "backbone.width=???", "stands for a value that is missing"),
        # integers
        ("train", "seed=1.0", "write seed=1"),
        ("train", "batch=true", "integer"),
        ("train", "steps=1e400", "steps=inf: set it to an integer"),
        ("train", "sample_grid.rows=-4", "sample_grid.rows=-4: set it to an integer, 1 or more"),
        ("train", "checkpoint.keep_last=[2]", "integer"),
        ("train", "trainer.num_nodes=two", "integer"),
        ("train", "num_workers=10000000000000000000000", "at most"),
        ("sample", "n=3.5", "n=3.5: set it to an integer"),
        ("sample", "batch_size=nan", "integer"),
        ("evaluate", "n=1e3", "write n=1000"),
        ("search_guidance", "n_final=half", "n_final=half"),
        ("make_stats", "num_workers=-1", "0 or more"),
        ("shard", "records_per_shard=0", "1 or more"),
        ("shard", "quality=101", "at most 100"),
        ("convert", "batch=many", "batch"),
        ("info", "micro_batch=2.5", "micro_batch=2.5"),
        ("benchmark", "reader.images=1.5", "reader.images=1.5"),
        ("toy", "evaluation.points=none", "evaluation.points=none"),
        # numbers
        ("train", "optimizer.eps=small", "optimizer.eps=small: give one number"),
        ("train", "objective.P_std=null", "objective.P_std=null: give one number"),
        ("train", "sampling.omega=true", "give one number"),
        ("train", "sync_tolerance=nan", "give one number"),
        ("sample", "t_max=inf", "give one number"),
        ("shard", "max_unreadable=2", "from 0 to 1"),
        ("info", "gpu_gb=0", "above 0"),
        # yes or no
        ("train", "compile=yes", "compile=yes: give true or false"),
        ("train", "activation_checkpointing=1", "give true or false"),
        ("train", "sample_grid.enabled=null", "give true or false"),
        ("convert", "force=on", "give true or false"),
        ("dashboard", "dry_run=0", "give true or false"),
        # names
        ("train", "trainer.accelerator=tpu", "give cpu or gpu"),
        ("train", "name=null", "name=null: give a word"),
        # devices
        ("sample", "device=gpu", "device=gpu: torch has no such device"),
        ("evaluate", "device=cuda:x", "device=cuda:x"),
        ("toy", "device=0", "there is no such option"),  # of the default toy, which needs none
        ("search_guidance", "device=xpu", "use cpu, cuda or cuda:1"),
        # lists
        ("train", "ema.halflife_kimg=[1,long]", "ema.halflife_kimg=[1, 'long']: give a list"),
        ("train", "search.intervals=[0,1]", "search.intervals=[0, 1]"),
        ("train", "trainer.devices=[0.5]", "trainer.devices=[0.5]: give how many"),
        ("sample", "classes=7", "write classes=[7]"),
        ("search_guidance", "steps=[1,2.5]", "list of integers"),
        ("info", "gpus=[8,many]", "gpus=[8, 'many']"),
        ("benchmark", "sampling_batches=4", "write sampling_batches=[4]"),
        ("toy", "seeds=[a]", "seeds=['a']"),
        # paths
        ("sample", "ckpt=null", "ckpt=./null"),
        ("make_stats", "out=null", "out=./null"),
        ("train", "ckpt=''", "the value is empty"),
        # mappings
        ("train", "ema=500k", "ema.halflife_kimg, ema.rampup_ratio, ema.device"),
        ("train", "seed={a: 1}", "seed={'a': 1}: set it to an integer"),
        ("train", "seed=${nowhere}", "seed=${nowhere}"),
        ("train", "backbone.patch={_target_: os.system}", "integer"),
        ("info", "gpus=8", "write gpus=[8]"),
        ("info", "gpus={a: 8}", "give a list"),
        # numbers that no float holds
        ("train", f"objective.P_mean={'1' * 400}", "give one number"),
        ("train", f"sampling.omega=-{'9' * 320}", "give one number"),
        ("search_guidance", f"omega=[{'1' * 330}]", "give a list of numbers"),
        # parts: mappings in conf/
        ("train", "decoder=true", "data of latents set it"),
        ("train", "decoder=${oc.env:HOME}", "data of latents set it"),
        ("train", "decoder={mean: [0]}", "decoder.weights"),
        ("train", "backbone.heads=mps", "blocks of each head"),
        ("train", "backbone.heads=[u]", "blocks of each head"),
        ("train", "backbone.heads={_target_: os.system}", "blocks of each head"),
        ("train", "objective.preconditioner=edm", "preconditioner="),
        ("train", "objective.preconditioner={}", "preconditioner="),
        ("train", "objective.perceptual=0.4", "{lpips: 0.4}"),
        ("train", "conditions=label", "{label: {tokens: 2}}"),
        ("train", "conditions.label=2", "{tokens: 2}"),
        ("train", "features=lpips", "perceptual="),
        ("train", "logger.wandb=true", "logger=wandb"),
        ("train", "trainer.strategy=3", "trainer=ddp"),
        ("evaluate", "decoder=null", "decoder.weights="),
        ("sample", "decoder=vae", "decoder.weights="),
        ("shard", "decoder=[]", "decoder.weights="),
        ("search_guidance", "decoder=3", "decoder.weights="),
        # what Hydra builds an object by
        ("train", "objective._target_=last", "can be imported"),
        ("train", "data._target_=pmf_lightning.data.Nothing", "can be imported"),
        ("train", "optimizer._target_=[]", "dotted name"),
        ("train", "ema=[1]", "set the options below it: ema.device, ema.halflife_kimg, ema.rampup_ratio"),
        ("train", "sample_grid={colums: 5}", "did you mean sample_grid.columns"),
    ],
)
def test_values_of_another_kind_are_one_line(command, override, words):
    line = refused(command, override)
    assert words in line
    assert line.startswith(override.partition("=")[0])


@pytest.mark.parametrize(
    ("command", "override", "words"),
    [
        ("train", "+ema.half_live_kimg=[1]", "did you mean ema.halflife_kimg?"),
        ("train", "++sampling.omgea=2", "did you mean sampling.omega"),
        ("train", "checkpoint.keep=3", "did you mean checkpoint.keep_last"),
        ("train", "+metrics.every=3", "metrics.every"),
        ("train", "+sample_grid={colums: 5}", "did you mean sample_grid.columns"),
        ("train", "+init=w", "init: there is no such option"),
        ("train", "+queues.positives=5", "queues.positives"),  # read by drifting alone
        ("train", "+trainer.max_steps=3", "set steps="),
        ("train", "+trainer.callbacks=[]", "trainer.callbacks"),
        ("train", "+trainer.limit_val_batches=3", "set metrics="),
        ("train", "+trainer.max_tim=1", "trainer.max_tim"),
        ("train", "+trainer.deterministic=perhaps", "trainer.deterministic=perhaps"),
        ("train", "+seed=3", "leave the + out"),
        ("train", "+trainer.gradient_clip_algorithm=foo", "give norm or value"),
        ("train", "trainer.max_time=12h", "00:12:00:00"),
        ("train", "callbacks=[lr_monitor,nothing]", "there is no such callbacks"),
        ("train", "+callbacks.a._target_=nowhere.X", "can be imported"),
        ("train", "optimizer.weight_decay=0.1", "put a + in front"),
        ("train", "+optimizer.amsgrad=true", "optimizer.amsgrad"),
        ("train", "+objective.guidance=3", "objective.guidance"),
        ("train", "+conditions.size.tokens=2", "conditions.size.tokens"),
        ("train", "~seed", "~seed: the option is needed"),
        ("train", "~trainer.devices", "~trainer.devices: the option is needed"),
        ("train", "~backbone.width", "~backbone.width: the option is needed"),
        ("train", "~sample_grid.rows", "~sample_grid.rows: the option is needed"),
        ("train", "+backbone._partial_=perhaps", "backbone._partial_: there is no such option"),
        ("sample", "+guidance=4", "guidance"),
        ("evaluate", "+clip=true", "clip"),
        ("make_stats", "imagse=x", "did you mean images?"),
        ("shard", "+class_name=x", "did you mean class_names"),
        ("convert", "+emas=2k", "emas"),
        ("info", "+gpu=8", "gpu"),
        ("toy", "+dimension=[2]", "did you mean dimensions?"),
        ("dashboard", "projet=x", "did you mean project?"),
    ],
)
def test_unknown_options_are_refused_with_or_without_a_plus(command, override, words):
    assert words in refused(command, override)


@pytest.mark.parametrize(
    ("override", "option", "value"),
    [
        ("+trainer.detect_anomaly=true", "trainer.detect_anomaly", True),
        ("trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_algorithm", "value"),
        ("trainer.max_time=00:12:00:00", "trainer.max_time", "00:12:00:00"),
        ("callbacks=[lr_monitor]", "callbacks.lr_monitor.logging_interval", "step"),
        (
            "+callbacks.a._target_=lightning.pytorch.callbacks.Timer",
            "callbacks.a._target_",
            "lightning.pytorch.callbacks.Timer",
        ),
        ("logger=[wandb,csv]", "logger.csv.name", "csv"),
        ("+optimizer.betas=[0.9,0.99]", "optimizer.betas", [0.9, 0.99]),
        ("+optimizer.weight_decay=0.1", "optimizer.weight_decay", 0.1),
        ("++seed=3", "seed", 3),
    ],
)
def test_options_that_something_reads_can_be_added(override, option, value):
    assert OmegaConf.select(compose([*TINY, override]), option) == value


def test_the_options_of_lightnings_trainer_are_known():
    from lightning import Trainer

    known = set(inspect.signature(Trainer).parameters)
    assert _trainer_parameters().keys() == known
    assert known <= {*compose(TINY).trainer, *OURS}  # each is declared in conf/trainer or determined by others
    assert not set(compose(TINY).trainer) & OURS.keys()


def test_kinds_of_annotations():
    for annotation, right, wrong in [
        (bool, [True], [1, "yes"]),
        (int | None, [3, None], [3.5, True, "3"]),
        (int | float, [3, 0.5], ["fast", True]),
        (str, ["a"], [3, ""]),
    ]:
        kind = kind_of_annotation(annotation)
        for value in right:
            kind.check("x", value)
        for value in wrong:
            with pytest.raises(UserError, match="x="):
                kind.check("x", value)
    kind_of_annotation(dict).check("x", object())


@pytest.mark.parametrize(
    ("command", "override", "found"),
    [
        ("train", "logger=null", {"logger.wandb": None}),
        ("train", "~logger", {"logger.wandb": None}),
        ("train", "perceptual=null", {"features": {}}),
        ("train", "metrics=null", {"metrics.enabled": False}),
        ("train", "preconditioner=null", {"objective.preconditioner": None}),
        ("train", "experiment=null", {"study": None}),
        ("train", "launcher=null", {"run_dir": None}),
        ("evaluate", "data=null", {"data": None}),
        ("search_guidance", "logger=null", {"logger.wandb": None}),
    ],
)
def test_groups_that_may_be_left_out(command, override, found):
    cfg = compose([override], command)
    assert {option: OmegaConf.select(cfg, option) for option in found} == found


@pytest.mark.parametrize(
    ("command", "override", "words"),
    [
        ("train", "model=null", "such as model=pmf_digits"),
        ("train", "~trainer", "such as trainer=cpu"),
        ("train", "optimizer=null", "known: adam, adamw, muon"),
        ("train", "objective=null", "jit"),
        ("evaluate", "protocol=null", "such as protocol=jit"),
        ("evaluate", "~extractor", "such as extractor=inception"),
        ("info", "cluster=null", "cluster=h200"),
        ("toy", "toys=null", "such as toys=manifold"),
        ("train", "hydra/launcher=null", "hydra/launcher=null"),
    ],
)
def test_groups_that_are_needed_say_what_to_choose(command, override, words):
    assert words in refused(command, override)


NAMES = [
    *("2026_11", "1e3", "0x10", "007", "1_000", "true", "Null", "-5", "1.50", "nan"),
    *(
        "a=1",
        "a b",
        "a,b",
        "f(x)",
        "it's",
        '"q',
        "{a}",
        "[1]",
        "x{0..3}.tar",
        "$5",
        "a\\b",
        "c:\\d\\",
        "~x",
        "#1",
        "a:b",
    ),
    *("日本", "äö", "🙂", "a%b", "!x", "*", "@x", "a\tb", "choice(a,b)", "'", "a'b\"c"),
]


@pytest.mark.parametrize("text", NAMES)
def test_paths_are_taken_to_the_letter(text):
    for command, option in (("sample", "out"), ("shard", "in"), ("make_stats", "images")):
        found = readable([f"{option}={text}"], command)
        assert OmegaConf.select(compose(found, command), option) == text
        assert readable(found, command) == found  # in quotes already


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("train", option) for option in ("run_dir", "ckpt", "cache_dir")),
        *(("evaluate", option) for option in ("ckpt", "images", "reference", "out", "decoder.weights")),
        *(("shard", option) for option in ("in", "out", "class_names", "decoder.weights")),
        *(("convert", option) for option in ("in", "out")),
        *(("search_guidance", option) for option in ("ckpt", "reference", "out")),
        *(("benchmark", option) for option in ("out", "reader.originals", "run_dir")),
        ("sample", "ckpt"),
        ("toy", "out"),
        ("dashboard", "entity"),
    ],
)
def test_paths_of_every_command_that_look_like_numbers(command, option):
    assert taken(command, option, "2026_11") == "2026_11"
    assert taken(command, option, "x=1") == "x=1"


def test_paths_below_groups():
    more = ["data=folder", "data.resolution=32", "data.root=2024=a, b"]
    assert compose([*TINY, *more]).data.root == "2024=a, b"
    assert compose([*TINY, "perceptual=lpips", "features.lpips.weights=1e3"]).features.lpips.weights == "1e3"
    assert compose([*TINY, "logger=wandb", "logger.wandb.name=2026_11=β"]).logger.wandb.name == "2026_11=β"
    assert compose([*TINY, "run_dir=runs/${name}-${seed}"]).run_dir == "runs/pmf_tiny-0"
    assert taken("sample", "out", "'a b'") == "a b"
    assert taken("train", "run_dir", "null") is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.root=", "data.root=: the value is empty"),
        ("seed= ", "the value is empty"),
        ("model=", "the value is empty"),
        ("optimizer.lr=1=2", "'optimizer.lr=\"1=2\"'"),
        ("batch=六", "'batch=\"六\"'"),
        ("optimizer.lr=1)", "put quotes around the value"),
        ("日本=1", "日本=1: no option has such a name"),
        ("data", "data: options are written option=value"),
        ("seed=1,2", "add -m"),
        ("objective.prediction=x,u", "add -m"),
        ("seed=range(0,3)", "add -m"),
        ("ema.halflife_kimg=[1,2", "close brackets"),
    ],
)
def test_what_hydra_cannot_read_is_one_line_with_the_quotes_that_help(override, words):
    line = refused("train", override)
    assert words in line
    assert line.startswith(override.partition("=")[0])


def test_the_quotes_that_are_shown_work():
    line = refused("train", "seed=日本 (2)")
    (shown,) = shlex.split(line.rpartition(": ")[2])
    assert "set it to an integer" in refused("train", shown)


def test_commas_of_a_multirun_separate_paths():
    assert readable(["data.root=2026_11,b=1"], "train", several=True) == ['data.root="2026_11","b=1"']
    assert readable(["run_dir='a,b',c"], "train", several=True) == ["run_dir='a,b',c"]
    assert readable(["run_dir=choice(a,b)"], "train", several=True) == ["run_dir=choice(a,b)"]
    assert readable(["in=/x/{a,b}.tar"], "shard", several=True) == ['in="/x/{a,b}.tar"']
    with pytest.raises(UserError, match="between commas is empty"):
        readable(["data.root=a,"], "train", several=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=0,1,two", "seed=two"),
        ("optimizer.lr=0.1,fast", "optimizer.lr=fast"),
        ("flip=true,maybe", "flip=maybe"),
        ("batch=choice(8,16.5)", "batch=16.5"),
        ("steps=range(0,3)", "steps=0"),
        ("+sample_grid.colums=1,2", "sample_grid.colums"),
        ("model=pmf_tiny,null", "model=null"),
        ("run_dir=", "the value is empty"),
    ],
)
def test_a_multirun_is_refused_before_its_first_job(override, words):
    with pytest.raises(UserError) as caught:
        _check_jobs(prepared([*TINY, override], "train", several=True), "train")
    assert words in str(caught.value)


def test_a_multirun_that_is_fine_passes():
    overrides = [*TINY, "seed=range(0,3)", "optimizer.lr=0.1,0.2", "logger=null,wandb", "run_dir='r/${seed}'"]
    _check_jobs(prepared(overrides, "train", several=True), "train")


def test_flags_and_their_values_are_no_overrides():
    at, found = _overrides_among(["--cfg", "job", "seed=1", "-m", "run_dir=x y", "--package", "hydra"])
    assert (at, found) == ({2, 4}, ["seed=1", "run_dir=x y"])


@pytest.mark.parametrize("path", ["sh=2", "a b", "it's", "日本", "null", "'x'", "~x", "2026_11", "$HOME"])
def test_printed_commands_can_be_pasted(path):
    (word,) = shlex.split(path_argument("data.root", path))
    found = compose([*TINY, "data=folder", "data.resolution=32", word]).data.root
    assert found in (path, f"./{path}")


@pytest.mark.parametrize(
    ("of_hydra", "typed"),
    [
        (r"run_dir=out/$\{seed\}", 'run_dir="out/${seed}"'),
        (r"run_dir=a\=b", 'run_dir="a=b"'),
        ("run_dir='a b'", "run_dir='a b'"),
        ("seed=3", "seed=3"),
        ("metrics.extra_steps=[1,4]", "metrics.extra_steps=[1,4]"),
    ],
)
def test_overrides_of_a_sweeper_are_read_as_typed(of_hydra, typed):
    assert as_typed(of_hydra) == typed
