"""Image files that commands read and write."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
WHITE = 128  # of 255: from here on a mask means "repaint"


def check_out(path: Path, *, force: bool) -> None:
    """Check --out. Call it before loading the model, which takes long."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--out {path} must end in one of {', '.join(IMAGE_SUFFIXES)}.")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; must be a file.")
    if path.exists() and not force:
        raise ValueError(f"{path} already exists. Give another file, or --force to replace it.")


def check_in(path: Path | None, option: str) -> None:
    if path is not None and not path.is_file():
        raise ValueError(f"{option} {path}: file not found.")


def write_images(path: Path, images: "np.ndarray", *, columns: int) -> None:
    """uint8 (B, H, W, 3) side by side in one file, `columns` per row; print the path."""
    from PIL import Image

    from darkroom.pixels import picture_grid
    from darkroom.provenance import replacing

    grid = images[0] if len(images) == 1 else picture_grid(images, columns)
    with replacing(path) as file:
        Image.fromarray(grid).save(file, format=Image.registered_extensions()[path.suffix.lower()])
    print(f"{path}: {len(images)} image(s) of {images.shape[2]} x {images.shape[1]} px.")


def read_image(path: Path, size: tuple[int, int]) -> "np.ndarray":
    """The upright middle of a photo in uint8 (*size, 3)."""
    from darkroom.data.picture import read_upright

    return read_upright(path, size)[0]


def read_mask(path: Path, size: tuple[int, int], image: Path) -> "np.ndarray":
    """bool (*size), True where the file is white; cut as `image` is.

    Raises:
        ValueError: its size is not that of the image.
    """
    from darkroom.data.picture import read_upright

    mask, whole = read_upright(path, size)
    _, wanted = read_upright(image, size)
    if whole != wanted:
        raise ValueError(
            f"--mask {path} is {whole[1]} x {whole[0]} px, but --image {image} is {wanted[1]} x {wanted[0]} px: make them one size."
        )
    white: np.ndarray = mask.mean(axis=2) >= WHITE
    return white


def parse_size(text: str) -> tuple[int, int]:
    """ "WIDTHxHEIGHT" or one number for both -> (height, width)"""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size; write WIDTHxHEIGHT in pixels, e.g. 768x512, or one number for a square")
    width, height = match[1], match[2] or match[1]
    return int(height), int(width)
