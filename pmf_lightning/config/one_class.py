"""Training on images of one class, such as a folder of faces: no label is dropped and nothing is guided.

Classifier-free guidance compares a class with all of them, which are the same here. So the objective's options that
serve it alone are set to the values that switch it off (``without_classes`` of the objective).
"""

import copy

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict


def for_its_classes(cfg: DictConfig) -> tuple[DictConfig, str | None]:
    """Return ``cfg`` and None; for data of one class a copy without label dropout and guidance, and a line about it.

    Raises UserError if the data cannot be found.
    """
    if OmegaConf.select(cfg, "data.classes") != 1:
        return cfg, None
    wanted = {**getattr(get_object(cfg.objective["_target_"]), "without_classes", {}), "sampling.omega": 1.0}
    if OmegaConf.select(cfg, "search.omega") is not None:
        wanted["search.omega"] = [1]
    changed = {option: value for option, value in wanted.items() if OmegaConf.select(cfg, option) not in (None, value)}
    if not changed:
        return cfg, None
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        for option, value in changed.items():
            OmegaConf.update(cfg, option, value)
    listed = ", ".join(f"{option}={value}".removesuffix(".0") for option, value in changed.items())
    return cfg, f"one class: no label is dropped and guidance has no meaning, so {listed}"
