"""Tab Walk: between noises and between classes, with a film of the way."""

import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from pmf_lightning.playground.drawing import Drawn
from pmf_lightning.playground.films import formats, save_film
from pmf_lightning.playground.models import PlayModel
from pmf_lightning.playground.page import markup
from pmf_lightning.playground.page.parts import (
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
from pmf_lightning.playground.walking import Places, Walk, in_parts, place, plane, tour, walk
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

LINE, SIDE = 9, 5  # images of the map in a row: between two corners, and between four
FILM_BATCH = 24  # frames that are sampled at once: all 144 would take the memory of a large model
PAD = '<div class="area"><span class="dot" style="left:${100 * value[0]}%;top:${100 * value[1]}%"></span></div>'
PAD_EVENTS = """
const bounded = number => Math.round(100 * Math.min(1, Math.max(0, number))) / 100;
const to = (x, y) => { props.value = [bounded(x), bounded(y)]; trigger('input'); };
const follow = event => {
  const box = element.querySelector('.area').getBoundingClientRect();
  to((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
};
element.tabIndex = 0;
element.setAttribute('role', 'application');
element.setAttribute('aria-label', 'place between the four corners; move it with the arrow keys');
element.addEventListener('pointerdown', event => { element.setPointerCapture(event.pointerId); follow(event); });
element.addEventListener('pointermove', event => { if (event.buttons) follow(event); });
element.addEventListener('keydown', event => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    event.preventDefault();
    to(props.value[0] + moves[event.key][0] / 20, props.value[1] + moves[event.key][1] / 20);
  }
});
"""


def walk_tab(models: Sequence[PlayModel], chosen: gr.Dropdown, tab: gr.Tab) -> None:
    """Add the contents of the tab; ``chosen`` holds the number of the model."""
    first = models[0]
    with gr.Row(elem_classes=["tab", "three"]):
        with gr.Column(scale=2, min_width=260, elem_classes="controls"):
            corners = gr.Radio([("2", 2), ("4", 4)], value=2, label="corners of noise")
            across = gr.Slider(0, 1, 0.5, step=0.01, label="from A to B")
            down = gr.Slider(0, 1, 0.5, step=0.01, label="from A, B to C, D", visible=False)
            pad = gr.HTML([0.5, 0.5], html_template=PAD, js_on_load=PAD_EVENTS, elem_id="pad", visible=False)
            to_class = gr.Slider(
                0, 1, 0, step=0.01, label="from the first class to the second", visible=len(first.class_names) > 1
            )
            labels = [class_choice(first, "first class", 3), class_choice(first, "second class", 8)]
            with gr.Row():
                seeds = [seed_slider(f"noise {name}", n, min_width=150) for n, name in enumerate("ABCD")]
            with gr.Accordion("steps and guidance", open=False):
                sampling = sampling_sliders(first)
        with gr.Column(scale=4, min_width=300, elem_classes=["picture", "stays"]):
            cost = gr.HTML(elem_id="walk-cost")
            here = gr.HTML(elem_id="walk-here")
        with gr.Column(elem_classes=["picture", "rest"]):
            whole = gr.HTML(elem_id="walk-map")
            film = _film_controls()
    route = [corners, *labels, *seeds, *sampling.all]
    draws = _follow(models, chosen, tab, route, [across, down, to_class], pad, [cost, here, whole])
    shown = [down, pad, *seeds[2:]]
    live([corners.input, tab.select], lambda n: [gr.update(visible=n == 4)] * len(shown), corners, shown)
    for_another_model(chosen, _adapt(models), [*labels, to_class, *sampling.all], draws)
    _make_films(models, [chosen, *route], *film)


def _adapt(models: Sequence[PlayModel]) -> Any:
    def adapt(number: int) -> list[Any]:
        model = models[number]
        several = gr.update(visible=len(model.class_names) > 1)
        return [class_update(model, 3), class_update(model, 8), several, *sampling_updates(model)]

    return adapt


def _film_controls() -> tuple[gr.Radio, gr.Slider, gr.Button, gr.File, gr.HTML]:
    with gr.Accordion("a film of the walk", open=False):
        with gr.Row():
            kind = gr.Radio(formats(), value="gif", label="format", min_width=140)
            frames = gr.Slider(12, 144, 48, step=12, label="frames", min_width=140)
        button = gr.Button("Make the film", elem_id="film-button")
        trouble = gr.HTML()
        file = gr.File(label="film", elem_id="film", visible=False)
    return kind, frames, button, file, trouble


def _walk_of(models: Sequence[PlayModel], number: int, route: Sequence[Any]) -> Any:
    """Return the function from places to images of the walk that the controls describe."""
    corners, first, second, *rest = route
    seeds, sliders = rest[:4], rest[4:]
    model = models[number]
    settings, module = settings_from(model, *sliders), model.using()
    found = Walk([int(seed) for seed in seeds[:corners]], int(first), int(second))
    return lambda places: walk(module, found, places, settings)


def _follow(models, chosen, tab, route, position, pad, outputs) -> list[Any]:
    """Wire the controls: a move changes the place alone, anything else the map too; return what draws both."""
    cost, here, whole = outputs

    @lru_cache(maxsize=8)  # the corners stay while the place between them moves
    def ends(number: int, to_class: Number, *route: Any) -> Drawn:
        return _walk_of(models, number, route)(_corners(route[0], to_class))

    @markup.in_one_line(2)
    def at_place(number: int, across: Number, down: Number, to_class: Number, *route: Any) -> tuple[str, str]:
        found = _walk_of(models, number, route)(place(across, down, to_class))
        shown = markup.walk_place(found, ends(number, to_class, *route), f"{across:.2f} from A to B")
        return markup.meter(found, about(models[number])), shown

    @markup.in_one_line()
    def everywhere(number: int, to_class: Number, *route: Any) -> str:
        images = _walk_of(models, number, route)
        corners, first, second, *_ = route
        if corners == 4:
            return markup.walk_map(images(plane(SIDE, SIDE, to_class)), SIDE)
        return markup.walk_map(images(plane(LINE, 3 if first != second else 1, None)), LINE)

    changed = [tab.select, *(one.input for one in route)]
    draw_place = (at_place, [chosen, *position, *route], [cost, here])
    draw_map = (everywhere, [chosen, position[2], *route], whole)
    live([*changed, *(one.change for one in position)], *draw_place)
    live([*changed, position[2].release], *draw_map)
    live([pad.input], None, pad, position[:2], js="value => value", queue=False)
    live([one.input for one in position[:2]], None, position[:2], pad, js="(x, y) => [[x, y]]", queue=False)
    return [draw_place, draw_map]


def _corners(corners: int, to_class: Number) -> Places:
    across = torch.tensor([0.0, 1.0] * (corners // 2))
    down = torch.tensor([0.0, 0.0, 1.0, 1.0][:corners])
    return Places(across, down, torch.full_like(across, float(to_class)))


def _make_films(models, inputs, kind, frames, button, file, trouble) -> None:
    def film(kind: str, frames: Number, number: int, *route: Any) -> tuple[str, Any]:
        try:
            images = _walk_of(models, number, route)
            drawn = torch.cat([images(part).images for part in in_parts(tour(route[0], int(frames)), FILM_BATCH)])
            folder = Path(tempfile.mkdtemp(prefix="walk-", dir=os.environ.get("GRADIO_TEMP_DIR")))
            path = save_film(drawn, folder / f"walk.{kind}")
        except UserError as error:
            return markup.problem(str(error)), gr.update(visible=False)
        return "", gr.update(value=str(path), visible=True)

    live([button.click], film, [kind, frames, *inputs], [trouble, file], show_progress="minimal")
