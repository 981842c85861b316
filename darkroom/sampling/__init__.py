"""From prompts to pictures: the one way that evaluation, the command line and the served model draw."""

from darkroom.sampling.text_to_image import TextToImage

__all__ = ["TextToImage"]
