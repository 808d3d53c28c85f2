"""Write a model as a folder of diffusers: model_index.json, a folder for each component, and our pipeline."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pmf_lightning.exporting.card import example_labels
from pmf_lightning.exporting.sampler import Sampler
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import DIFFUSERS_INDEX, NETWORK, PIPELINE

USAGE = """```python
from diffusers import DiffusionPipeline  # pip install pmf_lightning diffusers

pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
images = pipeline(class_labels=LABELS, guidance_scale=OMEGA, num_inference_steps=STEPS, seed=0).images
```"""
_FILES = {"pipeline.py": "diffusers_pipeline.py", f"{NETWORK}/pmf_network.py": "diffusers_network.py"}


def write(folder: Path, module: GenerativeModule, with_vae: bool) -> None:
    """Write the components of ``module`` into ``folder``, which is made; ``with_vae`` adds the decoder of latents.

    The decoder must be loaded. Raises OSError for a disk error.
    """
    folder.mkdir()
    Sampler(module).save(folder / NETWORK)
    for name, ours in _FILES.items():
        shutil.copyfile(Path(__file__).with_name(ours), folder / name)
    if with_vae:
        module.decoder.vae.save_pretrained(folder / "vae")
    index = {
        "_class_name": ["pipeline", PIPELINE],
        "_diffusers_version": _version(),
        NETWORK: ["pmf_network", "PMFLightningNetwork"],
        "vae": ["diffusers", "AutoencoderKL"] if with_vae else [None, None],
    }
    (folder / DIFFUSERS_INDEX).write_text(json.dumps(index, indent=2) + "\n")


def usage(module: GenerativeModule, folder: str) -> str:
    """Return a block of Python that opens the folder."""
    sampling = module.config["sampling"]
    return (
        USAGE.replace("FOLDER", folder)
        .replace("LABELS", str(example_labels(module)))
        .replace("OMEGA", str(sampling["omega"]))
        .replace("STEPS", str(sampling["steps"]))
    )


def _version() -> str:
    try:
        return version("diffusers")
    except PackageNotFoundError:  # the folder is written without it
        return "0.30.0"
