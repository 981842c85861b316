"""From prompts to images: the one way in which evaluation, the command line and the served model draw."""

PARTS = ("clip", "vae", "unet")  # the folders of a model
