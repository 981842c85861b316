"""How a text encoder conditions a U-Net: by which hidden layer, and with which padding of short captions."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, get_args

from torch import Tensor

from darkroom.choices import PadToken, TextLayer

FILE = "text_conditioning.json"


@dataclass(frozen=True)
class TextConditioning:
    """Stored with the text encoder, because a U-Net that was trained with one choice draws worse with another.

    Stable Diffusion 1.x: last layer, padded with the end mark. 2.x: penultimate layer, padded with token 0. Both apply the
    final norm to the hidden state.
    """

    layer: TextLayer = "last"
    pad_token: PadToken = "zero"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The conditioning stored in `folder`; open_clip's defaults if there is none.

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
        """tokens (B, L) padded with zeros, as open_clip's tokenizer gives them -> (B, L) with this padding"""
        if self.pad_token == "zero":
            return tokens
        ended = (tokens == end_id).cumsum(dim=1) > 0
        return tokens.masked_fill(ended, end_id)
