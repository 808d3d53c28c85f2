"""The page: a head and four tabs."""

from collections.abc import Sequence

import gradio as gr

from pmf_lightning.playground.models import PlayModel
from pmf_lightning.playground.page.tab_compare import compare_tab
from pmf_lightning.playground.page.tab_draw import draw_tab
from pmf_lightning.playground.page.tab_inside import Opener, inside_tab
from pmf_lightning.playground.page.tab_walk import walk_tab

TITLE = "<h1>pmf_lightning</h1><p>images while your hand moves</p>"
TURN_DARK = "() => { document.body.classList.toggle('dark'); }"


def build_page(models: Sequence[PlayModel], opened: Opener) -> gr.Blocks:
    """Return the page of the models; ``opened`` returns the training images of one, or raises UserError."""
    with gr.Blocks(title="pmf_lightning playground", analytics_enabled=False) as page:
        with gr.Row(elem_id="head"):
            gr.HTML(f'<div id="title">{TITLE}</div>')
            chosen = gr.Dropdown(
                [(model.name, number) for number, model in enumerate(models)],
                value=0,
                label="model",
                elem_id="model",
                visible=len(models) > 1,
            )
            dark = gr.Button("light / dark", size="sm", elem_id="dark")
        dark.click(None, js=TURN_DARK, api_visibility="private")
        with gr.Tabs():
            with gr.Tab("Draw") as tab:
                draw_tab(models, chosen, tab, page)
            with gr.Tab("Walk") as tab:
                walk_tab(models, chosen, tab)
            with gr.Tab("Compare") as tab:
                compare_tab(models, tab)
            with gr.Tab("Inside") as tab:
                inside_tab(models, opened, chosen, tab)
    return page
