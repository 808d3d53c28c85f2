"""The page itself: gradio's components around the functions of the playground. Nothing is fetched from other hosts."""

import os

# Read when gradio is imported, which the modules of this folder do.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
