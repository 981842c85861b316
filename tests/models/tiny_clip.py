"""Towers that are built in a blink."""

TINY = {
    "embed_dim": 16,
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 1,
    "text_width": 64,
    "text_layers": 2,
    "context_length": 12,
}
CAPTIONS = ["a black cat", "two ginger cats on a sofa"]
