"""A generator with the methods of the Hugging Face hub: from_pretrained, save_pretrained and push_to_hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.exporting.card import UNKNOWN, RunFacts, card, facts_of, usage_of, write_facts
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.conversion import stored_of
from pmf_lightning.pipeline.loading import load
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import fetched
from pmf_lightning.sampling.generate import sample_images
from pmf_lightning.utils.precision import Number


class HubGenerator(ModelHubMixin, library_name="pmf_lightning", tags=["pmf_lightning"]):
    """A loaded generator, as a function of labels.

    Args:
        module: the return value of ``load``.
        facts: of its run, for the model card.
    """

    def __init__(self, module: GenerativeModule, facts: RunFacts | None = None):
        self.module = module
        self.facts = facts or RunFacts()

    def __call__(self, labels: Int64[Tensor, " n"] | Sequence[int], **options: Any) -> Float[Tensor, "n c h w"]:
        """Return images in [-1, 1], one for each label; ``options`` as for ``sample_images``."""
        return sample_images(self.module, labels, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        ema: str | Number | None = None,
        trust: Sequence[str] = (),
        **hub: Any,
    ) -> "HubGenerator":
        """Load what ``load`` can: a folder, a run, or owner/name on the hub at a ``revision``.

        ``hub`` are options of huggingface_hub: ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.
        Raises UserError as ``load`` does.
        """
        path = Path(pretrained_model_name_or_path).expanduser()
        if not path.exists():
            path = fetched(str(pretrained_model_name_or_path), **({"revision": revision} if revision else {}), **hub)
        return cls(load(path, ema, trust), facts_of(path))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save into a repository of the hub, which is made; return the URL of the commit.

        ``options`` are those of huggingface_hub's ModelHubMixin: ``private``, ``token``, ``commit_message`` and others.
        """
        card_options = {"name": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card_options, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json, model.safetensors and the grid of samples."""
        weights_folder.write_into(save_directory, stored_of(self.module))
        write_facts(save_directory, self.facts)

    def generate_model_card(self, licence: str = UNKNOWN, name: str = "FOLDER", **unused: Any) -> ModelCard:
        """Return the card; ``save_pretrained`` and ``push_to_hub`` pass on ``model_card_kwargs={"licence": "mit"}``."""
        return ModelCard(card(self.module, self.facts, usage_of(self.module, name), licence))
