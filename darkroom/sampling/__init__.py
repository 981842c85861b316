"""Drawing images from prompts, for evaluation, the command line and the served model."""

PARTS = ("clip", "vae", "unet")  # the folders of a model
