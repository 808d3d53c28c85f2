"""Images as data sources decode them."""

from pmf_lightning.data.transforms import read_square


def read_image(source, size, channels, background="white"):
    """Return the levels of an image file or its bytes, [channels, size, size]."""
    return read_square(source, size, channels, background).levels
