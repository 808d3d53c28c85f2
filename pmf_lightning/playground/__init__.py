"""A page in the browser that samples from trained models while its sliders move (command play)."""
