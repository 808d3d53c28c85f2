"""Tab Compare: up to four models, averages or numbers of steps at the same noise."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from pmf_lightning.playground.comparing import Column, compare, first_columns
from pmf_lightning.playground.drawing import controls, labels_of
from pmf_lightning.playground.models import MOST, PlayModel
from pmf_lightning.playground.page import markup
from pmf_lightning.playground.page.parts import ALL, class_choice, live, seed_slider
from pmf_lightning.utils.precision import Number

NONE = ""  # value of a column that is not shown


def compare_tab(models: Sequence[PlayModel], tab: gr.Tab) -> None:
    """Add the contents of the tab."""
    fewest = min(models, key=lambda model: len(model.class_names))
    begin = first_columns(models)
    with gr.Row():
        label = class_choice(fewest, value=ALL, all_classes=True)
        seed = seed_slider()
        count = gr.Slider(1, 12, 4, step=1, label="noises")
    with gr.Row():
        asked = [_column(models, begin[n] if n < len(begin) else None, n) for n in range(MOST)]
    picture = gr.HTML(elem_id="compare-images")
    choices, steps = zip(*asked, strict=True)

    @markup.in_one_line()
    def draw(label: int, seed: Number, count: Number, *asked: Any) -> str:
        columns = _columns(models, asked[:MOST], asked[MOST:])
        labels = labels_of(None if label == ALL else label, int(count), len(fewest.class_names))
        drawn = compare(columns, labels, int(seed))
        return markup.comparison(columns, drawn, [fewest.class_names[one] for one in labels.tolist()])

    changing = [label, seed, count, *choices, *steps]
    live([tab.select, *(one.input for one in changing)], draw, changing, picture)


def _column(models: Sequence[PlayModel], column: Column | None, number: int) -> tuple[gr.Dropdown, gr.Slider]:
    named = [
        (f"{model.name}, {average}", f"{place}:{average}")
        for place, model in enumerate(models)
        for average in model.averages
    ]
    value = NONE if column is None else f"{list(models).index(column.model)}:{column.average}"
    most = max(2, *(controls(model.module).most_steps for model in models))
    with gr.Group(elem_classes="column"):
        chosen = gr.Dropdown([("none", NONE), *named], value=value, label=f"column {number + 1}", min_width=140)
        steps = gr.Slider(1, most, 1 if column is None else column.steps, step=1, label="steps", min_width=140)
    return chosen, steps


def _columns(models: Sequence[PlayModel], chosen: Sequence[str], steps: Sequence[Number]) -> list[Column]:
    """Return the columns that are shown, with steps as far as the models take them."""
    found = []
    for value, number in zip(chosen, steps, strict=True):
        if value != NONE:
            place, _, average = value.partition(":")
            model = models[int(place)]
            found.append(Column(model, average, min(int(number), controls(model.module).most_steps)))
    return found
