"""Data source of images in tables: the Hugging Face hub, parquet files, folders of save_to_disk."""

from dataclasses import dataclass
from functools import cached_property

import torch

from pmf_lightning.data.dataset import ArrayDataset, ImageDataset, Rows
from pmf_lightning.data.sources.decode_cache import DecodeJob
from pmf_lightning.data.sources.decoding import DecodingSource
from pmf_lightning.data.sources.hf.columns import TableImages, check_classes, image_column, labels_of
from pmf_lightning.data.sources.hf.files import OpenTables, open_tables
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Tables(DecodingSource):
    """The images of ``split`` of a data set in tables, cropped to squares and decoded once into the cache.

    ``root`` is a name on the Hugging Face hub (owner/set), which the library datasets loads in full, or a folder:
    parquet files, or what save_to_disk wrote. Streaming is not offered, because a run needs every image by its number.
    ``held_out_split`` is not trained on; without it a fraction ``held_out_fraction`` of every class is held out. See
    conf/data/hf.yaml for the other fields.
    """

    name: str
    root: str | None
    subset: str | None
    split: str
    image_column: str | None
    label_column: str | None
    held_out_split: str | None
    held_out_fraction: float | int
    resolution: int
    channels: int
    classes: int
    background: str
    unreadable: str
    cache_dir: str | None

    def check(self) -> None:
        """Raise UserError for invalid settings, missing tables or wrong columns, reading labels but no images."""
        self.check_decoding()
        if self.held_out_split == self.split:
            raise UserError(f"data.held_out_split={self.held_out_split}: it is trained on; name another split")
        for split in self._splits:
            tables = self._tables(split)
            image_column(tables, self.image_column)
            labels = labels_of(tables, self.label_column)
            if split == self.split:
                check_classes(tables, self.label_column, labels)
            elif labels.names != self.class_names:
                raise UserError(f"data.held_out_split={split}: its classes are others than those of {self.split}")
        if self.classes != len(self.class_names):
            raise UserError(f"data.classes={self.classes}: there are {len(self.class_names)} classes; leave it out")
        cache_root(self.cache_dir)

    @property
    def _splits(self) -> list[str]:
        return [self.split] if self.held_out_split is None else [self.split, self.held_out_split]

    @cached_property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        return labels_of(self._tables(self.split), self.label_column).names

    @property
    def has_held_out(self) -> bool:
        """Return whether a split or a fraction is held out."""
        return self.held_out_split is not None or self.held_out_fraction > 0

    def train(self) -> ImageDataset:
        """Return the training images, uint8 [N, channels, resolution, resolution], memory-mapped."""
        whole, quantiles = self._decoded[self.split]
        return whole if self.held_out_split else Rows(whole, (quantiles >= self.held_out_fraction).nonzero()[:, 0])

    def held_out(self) -> ImageDataset:
        """Return the images that are not trained on; UserError if there are none."""
        if self.held_out_split is not None:
            return self._decoded[self.held_out_split][0]
        whole, quantiles = self._decoded[self.split]
        rows = (quantiles < self.held_out_fraction).nonzero()[:, 0]
        if not len(rows):
            raise UserError(
                f"data.held_out_fraction={self.held_out_fraction} of {self.root} selects no image: raise it, or name a "
                "data.held_out_split"
            )
        return Rows(whole, rows)

    def fingerprint(self) -> str:
        """Return a hex digest of the tables and settings that determine images and splits."""
        return digest(*(self._key(split) for split in self._splits), self.held_out_split, self.held_out_fraction)

    def _tables(self, split: str) -> OpenTables:
        return open_tables(self.root, self.subset, split)

    def _key(self, split: str) -> str:
        tables = self._tables(split)
        columns = (image_column(tables, self.image_column), self.label_column)
        rules = (CROP_RULE, self.background, self.resolution, self.channels)
        return digest("tables", *rules, *columns, *tables.states)

    @cached_property
    def _decoded(self) -> dict[str, tuple[ArrayDataset, torch.Tensor]]:
        """The images of each split with their quantiles, decoded at first use."""
        self.check()
        return {split: self._decode(split) for split in self._splits}

    def _decode(self, split: str) -> tuple[ArrayDataset, torch.Tensor]:
        tables = self._tables(split)
        images = TableImages(tables, image_column(tables, self.image_column))
        labels = torch.from_numpy(labels_of(tables, self.label_column).labels)
        job = DecodeJob(
            files=images,
            names=images.names(),
            labels=labels,
            quantiles=class_quantiles(labels, "folder"),
            resolution=self.resolution,
            channels=self.channels,
            background=self.background,
        )
        images, classes = counted(len(labels), "image"), counted(len(self.class_names), "class", "classes")
        print(f"{images} of {split} in {self.root}, {classes}", flush=True)

        def name_of(label: int) -> str:
            return f"class {self.class_names[label]} of {split} in {self.root}"

        decoded = self.open_images(f"hf-{self._key(split)}", job, name_of)
        return ArrayDataset(decoded.images, decoded.labels), decoded.quantiles

    def describe(self, unreadable: list[str]) -> str:
        """Return the end of a warning: the first unreadable row, with the reason."""
        return ", first " + unreadable[0].replace("\t", ": ")
