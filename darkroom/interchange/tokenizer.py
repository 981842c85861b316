"""CLIP's byte-pair tokenizer in the files of transformers' `CLIPTokenizer`, made from open_clip's vocabulary."""

import json
from pathlib import Path
from typing import Any

from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import PadToken
from darkroom.models.weights import read_json
from darkroom.provenance import write_json

MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's names -> those of transformers
START, END = MARKS.values()
PADS: dict[PadToken, str] = {"zero": "!", "end": END}  # "!" is token 0
MERGES_HEAD = "#version: 0.2"  # the first line, which readers skip


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
    """Token -> id, with transformers' names of the start and end marks."""
    return {MARKS.get(token, token): index for token, index in clip.tokenizer.encoder.items()}


def read_pad_token(folder: Path) -> PadToken:
    """The padding of short captions.

    If two files define it, transformers takes the map of special tokens, unless the configuration has the newer format with a list
    of added tokens. The folders of Stable Diffusion 2.x have the older format.

    Raises:
        ValueError: the tokenizer is missing or has another padding.
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
    """Raise ValueError if the tokenizer in `folder` has other tokens than CLIP's own, e.g. added ones."""
    if (folder / "vocab.json").is_file():
        found = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        found = read_json(folder / "tokenizer.json")["model"]["vocab"]
    else:
        raise ValueError(f"{folder} has neither vocab.json nor tokenizer.json: it is not a tokenizer of CLIP.")
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    ours = vocabulary(clip)
    if unexpected := [token for token, index in (found | added).items() if ours.get(token) != index]:
        raise ValueError(
            f"{folder}: the token {unexpected[0]!r} is not one of CLIP's own ({len(unexpected)} in total); other tokenizers do not work."
        )
    if len(found) != len(ours):
        raise ValueError(f"{folder} has {len(found)} tokens, CLIP's tokenizer has {len(ours)}; other tokenizers are not supported.")
