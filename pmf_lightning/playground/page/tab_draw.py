"""Tab Draw: a grid of images that changes while the sliders move."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from pmf_lightning.playground.drawing import draw_seed, labels_of
from pmf_lightning.playground.models import PlayModel
from pmf_lightning.playground.page import markup
from pmf_lightning.playground.page.parts import (
    ALL,
    about,
    class_choice,
    class_update,
    for_another_model,
    live,
    sampling_sliders,
    sampling_updates,
    seed_slider,
    settings_from,
)
from pmf_lightning.utils.precision import Number

MOST_IMAGES = 64


def draw_tab(models: Sequence[PlayModel], chosen: gr.Dropdown, tab: gr.Tab, page: gr.Blocks) -> None:
    """Add the contents of the tab; ``chosen`` holds the number of the model."""
    first = models[0]
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=2, min_width=260, elem_classes="controls"):
            label = class_choice(first, value=ALL, all_classes=True)
            seed = seed_slider()
            count = gr.Slider(1, MOST_IMAGES, _first_count(first), step=1, label="images")
            sampling = sampling_sliders(first)
        with gr.Column(scale=4, min_width=300, elem_classes=["picture", "stays"]):
            cost = gr.HTML(elem_id="draw-cost")
            picture = gr.HTML(elem_id="draw-images")

    @markup.in_one_line(2)
    def draw(number: int, label: int, seed: Number, count: Number, *sliders: Number) -> tuple[str, str]:
        model = models[number]
        settings, module = settings_from(model, *sliders), model.using()
        labels = labels_of(None if label == ALL else label, int(count), module.network.classes)
        drawn = draw_seed(module, labels, int(seed), settings)
        names = [model.class_names[one] for one in labels.tolist()]
        return markup.meter(drawn, about(model)), markup.images(drawn, names)

    def adapt(number: int) -> list[Any]:
        return [class_update(models[number], ALL, all_classes=True), *sampling_updates(models[number])]

    changing = [label, seed, count, *sampling.all]
    wiring = (draw, [chosen, *changing], [cost, picture])
    live([tab.select, page.load, *(one.input for one in changing)], *wiring)
    for_another_model(chosen, adapt, [label, *sampling.all], [wiring])


def _first_count(model: PlayModel) -> int:
    """Return how many images the page begins with: two of each of ten classes, fewer of large images."""
    return 20 if model.module.image_shape[-1] <= markup.SHARP else 4
