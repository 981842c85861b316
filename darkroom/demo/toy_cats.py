"""The toy data set: cartoon cats with captions. Their coat colours can be measured, and so how well a model follows its prompts."""

import io
import json
import random
import re
from pathlib import Path

from darkroom.demo.cartoon import INK, Look, draw_cat
from darkroom.demo.pen import Colour
from darkroom.progress import progress

# Coats differ from each other and from everything else in the picture, so that pixels show which one it is even at 32 px.
COATS: dict[str, Colour] = {
    "black": (44, 42, 52),
    "white": (250, 250, 250),
    "grey": (140, 144, 152),
    "orange": (240, 128, 34),
    "brown": (122, 74, 42),
    "blue": (58, 152, 236),
    "pink": (246, 104, 170),
    "purple": (146, 84, 200),
}
EYES: dict[str, Colour] = {"green": (112, 214, 92), "golden": (255, 200, 50), "teal": (60, 205, 205)}
POSES = ("sitting", "lying", "standing", "peeking")
ACCESSORIES: dict[str, Colour] = {
    "none": (0, 0, 0),
    "scarf": (214, 44, 58),
    "bow tie": (36, 160, 92),
    "hat": (250, 214, 64),
    "ball": (52, 186, 186),
}
BACKGROUNDS: dict[str, tuple[Colour, Colour, Colour]] = {  # top of the sky, horizon, ground
    "meadow": ((150, 208, 240), (206, 234, 240), (154, 208, 108)),
    "beach": ((160, 224, 226), (204, 240, 228), (242, 218, 164)),
    "night": ((62, 66, 122), (98, 100, 160), (74, 92, 112)),
    "sunset": ((255, 196, 128), (255, 226, 150), (206, 164, 142)),
    "room": ((188, 216, 192), (188, 216, 192), (224, 200, 162)),
}
ACCESSORY_PHRASES = {
    "none": "",
    "scarf": ", wearing a red scarf",
    "bow tie": ", wearing a green bow tie",
    "hat": ", wearing a yellow hat",
    "ball": ", with a ball",
}
BACKGROUND_PHRASES = {"meadow": "in a meadow", "beach": "on the beach", "night": "at night", "sunset": "at sunset", "room": "in a room"}
OTHER_COLOURS: list[Colour] = [  # everything that is drawn, except the coats
    *(colour for colours in BACKGROUNDS.values() for colour in colours),
    *(colour for name, colour in ACCESSORIES.items() if name != "none"),
    *EYES.values(),
    INK,
]
METADATA = "metadata.jsonl"


def caption_of(attributes: dict[str, str]) -> str:
    """E.g. `a sitting orange cat with green eyes, wearing a red scarf, in a meadow`."""
    return (
        f"a {attributes['pose']} {attributes['coat']} cat with {attributes['eyes']} eyes"
        f"{ACCESSORY_PHRASES[attributes['accessory']]}, {BACKGROUND_PHRASES[attributes['background']]}"
    )


def parse_caption(text: str) -> dict[str, str] | None:
    """The attributes from which `caption_of` made `text`; None for any other text."""

    def one_of(name: str, words: dict[str, str] | tuple[str, ...] | dict[str, Colour]) -> str:
        return f"(?P<{name}>{'|'.join(re.escape(word) for word in words)})"

    accessories = {phrase: name for name, phrase in ACCESSORY_PHRASES.items()}
    backgrounds = {phrase: name for name, phrase in BACKGROUND_PHRASES.items()}
    pattern = (
        f"a {one_of('pose', POSES)} {one_of('coat', COATS)} cat with {one_of('eyes', EYES)} eyes"
        f"{one_of('accessory', accessories)}, {one_of('background', backgrounds)}"
    )
    match = re.fullmatch(pattern, text)
    if match is None:
        return None
    found = match.groupdict()
    return found | {"accessory": accessories[found["accessory"]], "background": backgrounds[found["background"]]}


def toy_cat(index: int, *, size: int, seed: int) -> tuple[bytes, dict[str, str]]:
    """Picture number `index` of the set `seed` as PNG bytes, and its attributes. It does not depend on the number of pictures."""
    rng = random.Random(f"toy cat {index} of set {seed}")
    attributes = _choose(rng)
    top, horizon, ground = BACKGROUNDS[attributes["background"]]
    look = Look(
        pose=attributes["pose"],
        coat=COATS[attributes["coat"]],
        eyes=EYES[attributes["eyes"]],
        accessory=attributes["accessory"],
        accessory_colour=ACCESSORIES[attributes["accessory"]],
        scene=attributes["background"],
        sky=(top, horizon),
        ground=ground,
    )
    file = io.BytesIO()
    draw_cat(look, size=size, rng=rng).save(file, format="PNG")
    return file.getvalue(), attributes


def draw_toy_cats(folder: Path, *, num_cats: int, size: int, seed: int) -> None:
    """Fill `folder` with `num_cats` PNG pictures of `size` px and a metadata.jsonl (file_name, text, one column per attribute).

    The same arguments give the same bytes. A folder with a part of this set is completed; a folder with anything else is
    refused. Nothing is overwritten or deleted.

    Raises:
        ValueError: `num_cats` or `size` is too small, or the folder contains something else.
    """
    if num_cats < 1 or size < 16:
        raise ValueError(f"A set of toy cats needs at least 1 cat of at least 16 px, got {num_cats} of {size} px.")
    names = [f"cat-{index:06d}.png" for index in range(num_cats)]
    lines = [_metadata_line(name, _choose(random.Random(f"toy cat {index} of set {seed}"))) for index, name in enumerate(names)]
    metadata = "".join(lines).encode()
    _refuse_other_content(folder, names, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(progress(names, desc="toy cats", unit="cat")):
        _write_new(folder / name, toy_cat(index, size=size, seed=seed)[0])
    _write_new(folder / METADATA, metadata)


def _choose(rng: random.Random) -> dict[str, str]:
    choices = {"coat": COATS, "eyes": EYES, "pose": POSES, "accessory": ACCESSORIES, "background": BACKGROUNDS}
    return {name: rng.choice(list(words)) for name, words in choices.items()}


def _metadata_line(name: str, attributes: dict[str, str]) -> str:
    return json.dumps({"file_name": name, "text": caption_of(attributes)} | attributes) + "\n"


def _refuse_other_content(folder: Path, names: list[str], metadata: bytes) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the toy cats.")
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    unexpected = sorted(found - {*names, METADATA})
    if unexpected:
        raise ValueError(_refusal(folder, f"{unexpected[0]!r}"))
    if METADATA in found and (folder / METADATA).read_bytes() != metadata:
        raise ValueError(_refusal(folder, f"a {METADATA} of another set"))


def _refusal(folder: Path, what: str) -> str:
    return (
        f"{folder} already contains {what}, which does not belong to these toy cats. Nothing was changed: "
        "name another folder, or move the content of this one away first."
    )


def _write_new(path: Path, content: bytes) -> None:
    if path.exists():
        if path.read_bytes() != content:
            raise ValueError(_refusal(path.parent, f"a different {path.name}"))
        return
    tmp = path.with_name(f".{path.name}.tmp")
    tmp.write_bytes(content)
    tmp.rename(path)
