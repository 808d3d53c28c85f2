"""Play with models in the browser: python -m pmf_lightning.play ckpt=runs/pmf_digits-digits/<time>"""

import socket
from importlib.util import find_spec

from omegaconf import DictConfig

from pmf_lightning.cli import command
from pmf_lightning.utils.errors import UserError


def play(cfg: DictConfig) -> None:
    """Serve the page that ``cfg`` (conf/commands/play.yaml) describes until Ctrl-C; raises UserError for bad input."""
    check(cfg)
    from pmf_lightning.commands import play as work  # imports PyTorch, which --help and refusals do without

    work.run(cfg)


def check(cfg: DictConfig) -> None:
    """Raise UserError unless gradio is installed and the port is free."""
    if find_spec("gradio") is None:
        raise UserError("play: it needs gradio; pip install 'pmf_lightning[play]'")
    with socket.socket(socket.AF_INET6 if ":" in cfg.host else socket.AF_INET, socket.SOCK_STREAM) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a port that was just closed is free
        try:
            free.bind((cfg.host, cfg.port))
        except OSError as error:
            raise UserError(_unusable(cfg, error)) from error


def _unusable(cfg: DictConfig, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or "assign" in str(error):
        return f"host={cfg.host}: it is no address of this machine ({error.strerror}); 127.0.0.1 serves it alone"
    return (
        f"port={cfg.port}: it cannot be opened ({error.strerror}); another page may be running, set port={cfg.port + 1}"
    )


@command("play", models=("ckpt",))
def main(cfg: DictConfig) -> None:
    """Serve the page and print its address."""
    play(cfg)


if __name__ == "__main__":
    main()
