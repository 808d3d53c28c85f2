"""What an offline run of W&B holds, read from its file: a log of LevelDB's kind (blocks of 32 KiB) of W&B's records."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD = 32768, 7  # bytes; each piece of a record begins with its checksum, length and kind
PATIENCE = 300  # seconds
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """One session: the run's labels and configuration, rows with W&B's own keys, and the exit code of a closed run."""

    run: object = None
    config: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    defined: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def keys(self):
        return set().union(*self.rows)


def quiet_and_offline(monkeypatch):
    """Keep W&B offline, and from looking at the machine and the installed packages, which takes seconds."""
    quick = {"_DISABLE_STATS": "true", "_SAVE_REQUIREMENTS": "false", "_DISABLE_META": "true", "DISABLE_GIT": "true"}
    for name, value in {"MODE": "offline", **quick}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def logged_out(monkeypatch, folder: Path):
    """Let W&B begin anew without any login; a folder where there is none. It would keep what it was first told."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(folder / "nothing"))
    wandb.teardown()


def records(path: Path):
    data, at, parts = path.read_bytes(), HEAD, []  # the file has a head of its own
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + HEAD : at + HEAD + length]
        if len(piece) < length:  # it is being written
            return
        at += HEAD + length
        parts = [piece] if kind in (WHOLE, FIRST) else [*parts, piece]
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            yield record


def read(folder: Path) -> OfflineRun:
    """Read the folder "offline-run-<time>-<id>" of a closed run.

    W&B writes from a process of its own, which may get to the last records when the run is closed already.
    """
    (path,) = Path(folder).glob("*.wandb")
    until = time.monotonic() + PATIENCE
    while (found := _contents(path)).exit_code is None and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _contents(path: Path) -> OfflineRun:
    found = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.rows.append(_row(record.history))
        elif kind == "metric":
            found.defined[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _row(history) -> dict:
    """Numbers by key; a picture is a dictionary of what it is made of."""
    row = {}
    for item in history.item:
        key, *inner = item.nested_key or [item.key]
        place, last = (row.setdefault(key, {}), inner[0]) if inner else (row, key)
        place[last] = json.loads(item.value_json)
    return row


def sessions(run_dir: Path) -> list[Path]:
    """The folders of all sessions in a run directory, in their order."""
    return sorted((Path(run_dir) / "wandb").glob("offline-run-*"))
