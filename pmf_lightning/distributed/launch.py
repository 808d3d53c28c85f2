"""Join the process group of torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pmf_lightning.distributed.launched import srun_tasks
from pmf_lightning.utils.errors import UserError

PATIENCE = timedelta(hours=2)  # ranks wait while rank 0 compares 50,000 features
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_rank_zero() -> bool:
    """Whether this process prints: it is rank 0 or the only process."""
    return os.environ.get("RANK", "0") == "0"


def print_on_main(lines: list[str]) -> None:
    """Print lines on rank 0 only."""
    if lines and is_rank_zero():
        print("\n".join(lines), flush=True)


@contextmanager
def torchrun_group(device: str) -> Iterator[torch.device]:
    """Yield this process's device, after joining the process group if torchrun started one (WORLD_SIZE above 1).

    "cuda" becomes the GPU of the local rank. The backend is gloo on CPUs and NCCL on GPUs. Raises UserError for an
    environment that is not torchrun's, several tasks of srun, or fewer GPUs than local ranks.
    """
    if "WORLD_SIZE" not in os.environ and not dist.is_initialized() and (tasks := srun_tasks()) > 1:
        raise UserError(
            f"srun started {tasks} processes, each of which would do all the work of this command; use --ntasks=1, and "
            "torchrun for several GPUs"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield torch.device(device)
        return
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {', '.join(missing)} not set; start by torchrun")
    kind = torch.device(device).type
    chosen = torch.device(kind)
    if kind == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"LOCAL_RANK={local}: this machine has {there} GPUs; set --nproc-per-node={there}")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()
