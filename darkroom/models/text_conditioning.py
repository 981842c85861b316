"""What a U-Net was given of a text tower: which hidden layer, and what filled the places behind a short caption."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, get_args

from torch import Tensor

from darkroom.choices import PadToken, TextLayer

FILE = "text_conditioning.json"


@dataclass(frozen=True)
class TextConditioning:
    """A property of the stored tower, because a U-Net that learned with one choice draws worse with another.

    Stable Diffusion 1.x: last layer, padded with the end mark. 2.x: penultimate layer, padded with token 0. Both pass the
    hidden state through the final norm.
    """

    layer: TextLayer = "last"
    pad_token: PadToken = "zero"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What lies beside the weights; the defaults, which are open_clip's, where a folder says nothing.

        Raises:
            ValueError: an unknown key or value.
        """
        path = folder / FILE
        if not path.is_file():
            return cls()
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        choices = {"layer": get_args(TextLayer), "pad_token": get_args(PadToken)}
        for key, value in values.items():
            if key not in choices or value not in choices[key]:
                known = "; ".join(f"`{name}` is {' or '.join(options)}" for name, options in choices.items())
                raise ValueError(f"{path}: `{key}: {json.dumps(value)}` is not known: {known}.")
        return cls(**values)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def pad(self, tokens: Tensor, end_id: int) -> Tensor:
        """tokens (B, L) padded with zeros, as open_clip's tokenizer gives them -> (B, L) padded as this tower wants it"""
        if self.pad_token == "zero":
            return tokens
        ended = (tokens == end_id).cumsum(dim=1) > 0
        return tokens.masked_fill(ended, end_id)
