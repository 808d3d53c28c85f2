"""Nothing but Linux's own features needs Linux: without what Windows and macOS lack everything imports, and trains."""

import pytest
from processes import python
from shrunk import RUN

ELSEWHERE = """
import importlib, os, pkgutil, signal, sys, types
import hydra, lightning, torch, torchmetrics, torchvision, matplotlib.pyplot, sklearn.datasets, wandb, webdataset
from filelock import FileLock, SoftFileLock  # Windows has one of its own
import lightning.pytorch.strategies, torch.distributed.fsdp, multiprocessing.context, concurrent.futures.process

# Lightning looks at the name of the system before it takes one of the signals.
lightning.pytorch.trainer.connectors.signal_connector.signal = types.SimpleNamespace(**vars(signal))
for module in ("fcntl", "resource", "pwd", "grp", "termios", "posix_ipc"):
    sys.modules[module] = None
for name in ("pthread_sigmask", "sigwaitinfo", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
for name in (
    "fork register_at_fork setsid killpg getpgid getuid geteuid uname sysconf sched_getaffinity pread posix_fadvise "
    "posix_fallocate O_CLOEXEC"
).split():
    delattr(os, name)

import pmf_lightning

modules = [one.name for one in pkgutil.walk_packages(pmf_lightning.__path__, "pmf_lightning.")]
page = "pmf_lightning.playground.page"  # of gradio, which chooses its own modules by sys.platform
modules = [name for name in modules if not name.startswith(page)]
for name in modules:
    importlib.import_module(name)
print(len(modules), "modules")

from pmf_lightning import compose, load_checkpoint
from pmf_lightning.sample import sample
from pmf_lightning.train import train

folder, *overrides = sys.argv[1:]
assert train(compose([*overrides, f"run_dir={folder}/run", "steps=2"]))["steps"] == 2
assert train(compose([*overrides, f"run_dir={folder}/run", "steps=3", "ckpt=last"]))["steps"] == 3
print(sample(compose([f"ckpt={folder}/run", f"out={folder}/samples", "n=4"], "sample"))["grid"])
"""


@pytest.mark.slow
def test_without_what_other_systems_lack(tmp_path):
    done = python("-c", ELSEWHERE, tmp_path, *RUN, "num_workers=0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "modules" in done.stdout
    assert (tmp_path / "samples" / "grid.png").is_file()
