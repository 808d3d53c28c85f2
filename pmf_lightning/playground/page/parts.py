"""Parts that several tabs share: live events, sliders of the sampling settings, choice of a class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from pmf_lightning.playground.drawing import GUIDANCE, Settings, allowed, controls, own_settings
from pmf_lightning.playground.models import PlayModel
from pmf_lightning.utils.precision import Number

LIVE_STEPS = 10  # most steps that a page begins with: more are too slow to follow a hand
ALL = -1  # value of a class choice: all classes in turn
TITLES = {"omega": "guidance scale", "t_min": "guidance from t", "t_max": "guidance to t"}


def live(triggers: Sequence[Any], handler: Callable[..., Any] | None, inputs: Any, outputs: Any, **more: Any) -> Any:
    """Call ``handler`` at each trigger, one request at a time; while it works, only the latest values wait."""
    settings = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private"}
    if handler is not None:
        settings |= {"concurrency_limit": 1, "concurrency_id": "model"}
    return gr.on(triggers, handler, inputs, outputs, **(settings | more))


def for_another_model(chosen: gr.Dropdown, adapt: Callable[..., Any], controls: Any, draws: Sequence[Any]) -> None:
    """When another model is chosen, let ``adapt`` update the controls, then call each (handler, inputs, outputs)."""
    event = live([chosen.input], adapt, chosen, controls)
    for handler, inputs, outputs in draws:
        event = event.then(
            handler, inputs, outputs, show_progress="hidden", api_visibility="private", concurrency_id="model"
        )


def seed_slider(label: str = "seed", value: int = 0, **more: Any) -> gr.Slider:
    """Return a slider over seeds."""
    return gr.Slider(0, 999, value, step=1, label=label, **more)


def classes_of(model: PlayModel, all_classes: bool) -> list[tuple[str, int]]:
    """Return the choices of a class, by name; with ``all_classes`` also all in turn."""
    named = [(name, number) for number, name in enumerate(model.class_names)]
    return [*([("all, in turn", ALL)] if all_classes else []), *named]


def class_choice(model: PlayModel, label: str = "class", value: int = 0, all_classes: bool = False) -> gr.Dropdown:
    """Return the choice of a class, of which there may be fewer than ``value``."""
    named = model.class_names
    value = min(value, len(named) - 1)
    return gr.Dropdown(classes_of(model, all_classes), value=value, label=label, visible=len(named) > 1)


def class_update(model: PlayModel, value: int = 0, all_classes: bool = False) -> dict[str, Any]:
    """Return the update of ``class_choice`` for another model."""
    named = model.class_names
    return gr.update(choices=classes_of(model, all_classes), value=min(value, len(named) - 1), visible=len(named) > 1)


@dataclass
class Sampling:
    """Sliders of steps and guidance; those that do not change the images of a model are hidden."""

    steps: gr.Slider
    guidance: list[gr.Slider]

    @property
    def all(self) -> list[gr.Slider]:
        """The components, in the order of the values of ``settings_from``."""
        return [self.steps, *self.guidance]


def _sliders(model: PlayModel) -> list[dict[str, Any]]:
    """Return the properties of the sliders of ``Sampling``."""
    module = model.module
    known, own = controls(module), own_settings(module)
    steps = {"maximum": max(2, known.most_steps), "value": min(own.steps, LIVE_STEPS), "visible": known.most_steps > 1}
    ends = {"omega": known.most_omega, "t_min": 1, "t_max": 1}
    return [
        steps,
        *({"maximum": ends[name], "value": getattr(own, name), "visible": name in known.guidance} for name in GUIDANCE),
    ]


def sampling_sliders(model: PlayModel) -> Sampling:
    """Return the sliders of a model."""
    first, *others = _sliders(model)
    steps = gr.Slider(1, step=1, label="steps", **first)
    least = {"omega": 1, "t_min": 0, "t_max": 0}
    made = [
        gr.Slider(least[name], step=0.05, label=TITLES[name], **more)
        for name, more in zip(GUIDANCE, others, strict=True)
    ]
    return Sampling(steps, made)


def sampling_updates(model: PlayModel) -> list[dict[str, Any]]:
    """Return the updates of ``sampling_sliders`` for another model."""
    return [gr.update(**properties) for properties in _sliders(model)]


def settings_from(model: PlayModel, steps: Number, omega: Number, t_min: Number, t_max: Number) -> Settings:
    """Return the settings that the sliders of a model say; its own where it has no such slider."""
    asked = dict(zip(GUIDANCE, (omega, t_min, t_max), strict=True))
    known = {name: asked[name] for name in controls(model.module).guidance}
    return allowed(model.module, replace(own_settings(model.module), steps=int(steps), **known))


def about(model: PlayModel) -> str:
    """Return what the measured numbers belong to."""
    weights = "raw weights" if model.average == "raw" else f"ema {model.average}"
    return f"{model.name}, {weights}, on {model.module.device.type}"
