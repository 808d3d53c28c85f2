"""The look of the page: gradio's base theme with system fonts and our colours, and page.css."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("page.css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Return the theme, in light and dark; no font is fetched."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=FONT,
        font_mono=MONO,
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#0b1020",
        background_fill_primary_dark="#141b2e",
        background_fill_secondary_dark="#0f1526",
        block_background_fill="white",
        block_background_fill_dark="#141b2e",
        block_border_width="0px",
        block_border_color_dark="#26304a",
        border_color_primary_dark="#26304a",
        block_label_text_weight="500",
        block_title_text_weight="500",
        block_title_text_size="*text_sm",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_shadow="none",
        input_background_fill="*neutral_100",
        input_background_fill_dark="#0f1526",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_500",
    )
