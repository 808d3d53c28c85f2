"""Tab Inside: the fields between one noise and its image, and the training images nearest to it."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from pmf_lightning.evaluation.nearest import TrainingImages
from pmf_lightning.playground.drawing import draw_seed, labels_of
from pmf_lightning.playground.inside import look_inside
from pmf_lightning.playground.models import PlayModel
from pmf_lightning.playground.page import markup
from pmf_lightning.playground.page.parts import (
    class_choice,
    class_update,
    for_another_model,
    live,
    sampling_sliders,
    sampling_updates,
    seed_slider,
    settings_from,
)
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

Opener = Callable[[PlayModel], TrainingImages]


def inside_tab(models: Sequence[PlayModel], opened: Opener, chosen: gr.Dropdown, tab: gr.Tab) -> None:
    """Add the contents of the tab; ``opened`` returns the training images of a model, or raises UserError."""
    first = models[0]
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=2, min_width=260, elem_classes="controls"):
            label = class_choice(first, value=8)
            seed = seed_slider()
            sampling = sampling_sliders(first)
        with gr.Column(scale=4, min_width=300, elem_classes="picture"):
            near = gr.HTML(elem_id="inside-near")
            path = gr.HTML(elem_id="inside-fields")

    @markup.in_one_line()
    def fields(number: int, label: int, seed: Number, *sliders: Number) -> str:
        model = models[number]
        if model.module.decoder is not None:
            raise UserError("the fields of this model are latents, not images")
        return markup.fields(look_inside(model.using(), int(seed), label, settings_from(model, *sliders)))

    @markup.in_one_line()
    def nearest(number: int, label: int, seed: Number, *sliders: Number) -> str:
        model = models[number]
        there = opened(model)
        settings = settings_from(model, *sliders)
        image = draw_seed(model.using(), labels_of(label, 1, len(model.class_names)), int(seed), settings).images
        found = there.nearest(image)
        return markup.neighbours(image[0], found, model.class_names, len(there.train))

    def adapt(number: int) -> list[Any]:
        return [class_update(models[number], 8), *sampling_updates(models[number])]

    changing = [label, seed, *sampling.all]
    draws = [(nearest, [chosen, *changing], near), (fields, [chosen, *changing], path)]
    for one in draws:
        live([tab.select, *(control.input for control in changing)], *one)
    for_another_model(chosen, adapt, [label, *sampling.all], draws)
