"""Benchmark one component: python -m pmf_lightning.benchmark what=optimizer model=pmf_digits"""

from omegaconf import DictConfig

from pmf_lightning.cli import command


def benchmark(cfg: DictConfig) -> dict:
    """Run the benchmark ``cfg.what`` and return its numbers with the facts of the machine; raises UserError."""
    from pmf_lightning.commands import benchmark as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Run the benchmark and print its result."""
    from pmf_lightning.commands import benchmark as work

    work.run_and_show(cfg)


if __name__ == "__main__":
    main()
