"""Colours of an opened photo: from its profile to sRGB, and a background behind what is transparent."""

import io
from functools import lru_cache

from PIL import Image, ImageCms, ImageColor

ALPHA_MODES = ("LA", "RGBA")


def background_colour(text: str) -> tuple[int, int, int]:
    """
    Raises:
        ValueError: `text` is not a colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise ValueError(f'ingest.background {text!r} is not a colour; write e.g. "white" or "#808080".') from error
    return red, green, blue


def to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """RGB or RGBA; without a profile, or with an unusable one, colours are assumed to be sRGB."""
    alpha = image.getchannel("A") if image.mode in ALPHA_MODES else None
    colours = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    converted = None
    if profile:
        try:
            transform, mode = _srgb_transform(profile, colours.mode)
            converted = transform.apply(colours.convert(mode))
        except (OSError, ValueError) as error:
            notes.append(f"colour profile cannot be used ({type(error).__name__}): taken as sRGB")
    rgb = converted or colours.convert("RGB")
    if alpha:
        rgb.putalpha(alpha)
    return rgb


@lru_cache(maxsize=8)
def _srgb_transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform, str]:
    """
    Raises:
        ValueError: the profile is for another image mode.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and mode == "L":
        mode = "RGB"
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != mode:
        raise ValueError(f"a {space} profile in an image of mode {mode}")
    return ImageCms.ImageCmsTransform(source, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB"), mode


def flatten(image: Image.Image, background: str) -> Image.Image:
    """RGB, with `background` behind transparent pixels."""
    if image.mode == "RGB":
        return image
    ground = Image.new("RGBA", image.size, (*background_colour(background), 255))
    return Image.alpha_composite(ground, image).convert("RGB")
