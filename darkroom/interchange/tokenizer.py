"""CLIP's byte-pair tokenizer in the files of transformers' `CLIPTokenizer`, made from open_clip's vocabulary."""

import json
from pathlib import Path
from typing import Any

from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import PadToken
from darkroom.models.weights import read_json
from darkroom.provenance import write_json

MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's names -> transformers'
START, END = MARKS.values()
PADS: dict[PadToken, str] = {"zero": "!", "end": END}  # "!" is token 0
MERGES_HEAD = "#version: 0.2"  # a line that readers skip


def write_tokenizer(clip: ClipTowers, folder: Path) -> None:
    """vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(clip), ensure_ascii=False) + "\n", encoding="utf-8")
    ranks = clip.tokenizer.bpe_ranks
    merges = [MERGES_HEAD, *(" ".join(pair) for pair in sorted(ranks, key=ranks.__getitem__))]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PADS[clip.conditioning.pad_token]}
    write_json(folder / "special_tokens_map.json", marks)
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": clip.context_length}
    write_json(folder / "tokenizer_config.json", marks | settings | {"tokenizer_class": "CLIPTokenizer"})


def vocabulary(clip: ClipTowers) -> dict[str, int]:
    """token -> id, with transformers' names of the two marks"""
    return {MARKS.get(token, token): index for token, index in clip.tokenizer.encoder.items()}


def read_pad_token(folder: Path) -> PadToken:
    """What fills short captions.

    Where two files name it, transformers takes the map of special tokens, unless the configuration is of the newer kind that lists
    its added tokens. The folders of Stable Diffusion 2.x are of the older kind.

    Raises:
        ValueError: no tokenizer there, or one that pads with something else.
    """
    config, marks = read_json(folder / "tokenizer_config.json"), folder / "special_tokens_map.json"
    if marks.is_file() and "added_tokens_decoder" not in config:
        config |= read_json(marks)
    pad: Any = config.get("pad_token") or END
    content = pad["content"] if isinstance(pad, dict) else pad
    for name, token in PADS.items():
        if content == token:
            return name
    raise ValueError(f"{folder}: `pad_token` is {content!r}; Stable Diffusion pads with {' or '.join(PADS.values())}.")


def check_vocabulary(folder: Path, clip: ClipTowers) -> None:
    """Raises ValueError where a folder's tokenizer has other tokens than CLIP's own, e.g. added ones."""
    if (folder / "vocab.json").is_file():
        found = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        found = read_json(folder / "tokenizer.json")["model"]["vocab"]
    else:
        raise ValueError(f"{folder} has neither vocab.json nor tokenizer.json: it is no tokenizer of CLIP.")
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    ours = vocabulary(clip)
    if strange := [token for token, index in (found | added).items() if ours.get(token) != index]:
        raise ValueError(
            f"{folder}: token {strange[0]!r} is not one of CLIP's own ({len(strange)} such); other tokenizers are not built here."
        )
    if len(found) != len(ours):
        raise ValueError(f"{folder} has {len(found)} tokens, CLIP's tokenizer {len(ours)}; other tokenizers are not built here.")
