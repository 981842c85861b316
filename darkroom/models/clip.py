"""CLIP (Radford et al. 2021): a text encoder and an image encoder. The only module that imports open_clip."""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from open_clip.model import get_model_preprocess_cfg
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.weights import hash_weights, load_weights, read_weights

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
LOCAL = "local-dir:"  # prefix of a folder in open_clip's names
VOCAB_SIZE = 49408  # of CLIP's byte-pair tokenizer, start and end mark included
HEAD_WIDTH = 32  # channels of an attention head in new encoders
MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021, section 2.5
PLAIN_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
SMALLEST_VISION = {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1}  # open_clip cannot build a CLIP without one


class ClipTowers(nn.Module):
    """An open_clip model with its tokenizer and its preprocessing of images.

    The image encoder may be absent: checkpoints of Stable Diffusion have only the text encoder, which is all that sampling needs.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        model: open_clip.CLIP,
        model_cfg: dict[str, Any],  # in open_clip's format; `vision_cfg` is None without an image encoder
        preprocess_cfg: dict[str, Any],
        conditioning: TextConditioning | None = None,  # None = open_clip's: last layer, padded with zeros
    ) -> None:
        super().__init__()
        self.model = model
        self.model_cfg = model_cfg
        self.preprocess_cfg = preprocess_cfg
        self.conditioning = conditioning or TextConditioning()
        self.tokenizer = _tokenizer(model.context_length, json.dumps(model_cfg["text_cfg"].get("tokenizer_kwargs") or {}))
        self.register_buffer("pixel_mean", torch.tensor(preprocess_cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(preprocess_cfg["std"])[:, None, None], persistent=False)

    @classmethod
    def build(cls, model: Mapping[str, int], seed: int) -> Self:
        """New small encoders for training from scratch.

        Args:
            model: embed_dim, image_size, patch_size, vision_width, vision_layers, text_width, text_layers, context_length.
            seed: of the initial weights; the state of the global generator does not change.

        Raises:
            ValueError: a width that is not a multiple of the heads, or an image size that is not a multiple of the patches.
        """
        for name in ("vision_width", "text_width"):
            if model[name] % HEAD_WIDTH:
                raise ValueError(f"model.{name} is {model[name]}; it must be a multiple of {HEAD_WIDTH}, the width of an attention head.")
        if model["image_size"] % model["patch_size"]:
            raise ValueError(f"model.image_size ({model['image_size']}) must be a multiple of model.patch_size ({model['patch_size']}).")
        model_cfg = {
            "embed_dim": model["embed_dim"],
            "vision_cfg": {
                "image_size": model["image_size"],
                "patch_size": model["patch_size"],
                "width": model["vision_width"],
                "layers": model["vision_layers"],
                "head_width": HEAD_WIDTH,
            },
            "text_cfg": {
                "context_length": model["context_length"],
                "vocab_size": VOCAB_SIZE,
                "width": model["text_width"],
                "heads": model["text_width"] // HEAD_WIDTH,
                "layers": model["text_layers"],
            },
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(open_clip.CLIP(**model_cfg), model_cfg, PLAIN_PIXELS)

    @classmethod
    def text_only(
        cls,
        model_cfg: dict[str, Any],  # in open_clip's format, with `vision_cfg` None
        weights: dict[str, Tensor],  # with open_clip's names
        *,
        conditioning: TextConditioning,
        where: Path | str,  # for messages
    ) -> Self:
        """A text encoder without an image encoder and without the projection into their shared space.

        Raises:
            ValueError: a weight is missing, left over or of another shape.
        """
        with torch.device("meta"):  # do not draw initial weights that are overwritten
            model = open_clip.CLIP(**model_cfg | {"vision_cfg": SMALLEST_VISION})
        model.visual, model.logit_scale = None, None
        load_weights(model, weights, where=where)
        model.attn_mask = torch.full((model.context_length, model.context_length), -math.inf).triu(1)  # not a weight, therefore not loaded
        return cls(model, model_cfg, PLAIN_PIXELS, conditioning).eval()

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """A CLIP from a folder that `save` wrote, `ARCH::TAG` or `ARCH::FILE` in open_clip's names, or `hf-hub:OWNER/NAME`.

        Tags and hub names are downloaded once, by open_clip, into its cache. Pickled weights are read with `weights_only`.

        Raises:
            ValueError: a source that is none of these, whose weights are missing or do not fit, or that is not a plain CLIP.
        """
        name, pretrained = _parse_source(source)
        conditioning = TextConditioning()
        if name.startswith(LOCAL):
            conditioning = TextConditioning.load(Path(source))
            model_cfg = _read_model_cfg(Path(source))
            if model_cfg is not None and model_cfg.get("vision_cfg", {}) is None:
                file = Path(source) / WEIGHTS_FILE
                return cls.text_only(model_cfg, read_weights(file), conditioning=conditioning, where=file)
        try:
            with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights before it reads the file
                model = open_clip.create_model(name, pretrained=pretrained, weights_only=True, require_pretrained=True)
            model_cfg = open_clip.get_model_config(name)
        except (RuntimeError, OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
            raise ValueError(f"CLIP `{source}` could not be loaded: {' '.join(str(error).split())}") from error
        if type(model) is not open_clip.CLIP or model_cfg["text_cfg"].get("hf_tokenizer_name"):
            raise ValueError(
                f"CLIP `{source}` has a text encoder or tokenizer other than CLIP's own; use a plain one, e.g. ViT-B-32::laion2b_s34b_b79k."
            )
        return cls(model, model_cfg, get_model_preprocess_cfg(model), conditioning).eval()

    @classmethod
    def outline(cls, source: str) -> Self:
        """The encoders of `source` (see `load`) on the meta device: shapes without weights, and nothing is downloaded.

        Raises:
            ValueError: the source is none of these, is unknown to open_clip, or is on the hub, where its shapes are not known.
        """
        name, _ = _parse_source(source)
        model_cfg = _read_model_cfg(Path(source)) if name.startswith(LOCAL) else open_clip.get_model_config(name)
        if not model_cfg:
            raise ValueError(f"CLIP `{source}` has no known shapes: neither a {CONFIG_FILE} that describes them, nor a name of open_clip.")
        with torch.device("meta"):
            model = open_clip.CLIP(**model_cfg | {"vision_cfg": model_cfg["vision_cfg"] or SMALLEST_VISION})
            model.visual = model.visual if model_cfg["vision_cfg"] else None
            return cls(model, model_cfg, PLAIN_PIXELS)

    def save(self, folder: Path) -> None:
        """Write a folder that `open_clip.create_model("local-dir:FOLDER")` and `open_clip.get_tokenizer` can read."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        weights = {key: value.detach().float().cpu().contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        self.conditioning.save(folder)

    def fingerprint(self) -> str:
        """sha256 of the weights."""
        return hash_weights(self.model)

    @property
    def has_image_encoder(self) -> bool:
        return self.model.visual is not None

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @property
    def context_dim(self) -> int:
        return self.model.ln_final.normalized_shape[0]

    @property
    def image_size(self) -> int:
        self.check_image_encoder()
        size = self.model.visual.image_size
        return size[0] if isinstance(size, tuple) else size

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(B, L) on the CPU: start mark, tokens, end mark, padding. Longer captions are cut; see `lost_words`."""
        return self.conditioning.pad(self.tokenizer(list(captions)), self.tokenizer.eot_token_id)

    def lost_words(self, caption: str) -> str:
        """The end of a caption that is too long, from the first word that does not fit whole; "" if all of it fits."""
        tokens = self.tokenizer.encode(caption)
        kept = self.context_length - 2  # start and end marks
        if len(tokens) <= kept:
            return ""
        while kept > 0 and not self.tokenizer.decoder[tokens[kept - 1]].endswith("</w>"):
            kept -= 1
        return self.tokenizer.decode(tokens[kept:]).strip()

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) -> token embeddings (B, L, D): the last or penultimate hidden state after the final norm"""
        model = self.model
        x = model.token_embedding(tokens) + model.positional_embedding
        blocks = list(model.transformer.resblocks)
        for block in blocks[:-1] if self.conditioning.layer == "penultimate" else blocks:
            x = block(x, attn_mask=model.attn_mask)
        return model.ln_final(x)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both encoders in one pass, so that DistributedDataParallel sees all parameters in use.

        Args:
            images: float (B, 3, H, W) in [-1, 1], or uint8 (B, H, W, 3), of any size.
            tokens: (B, L).

        Returns:
            image features and text features, each (B, E) of length 1, fp32, and the scale of their cosines in the logits
        """
        image_features = self.model.encode_image(self.preprocess(images))
        text_features = self.model.encode_text(tokens)
        scale = self.model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1), scale

    def preprocess(self, images: Tensor) -> Tensor:
        """images as in `forward` -> (B, 3, S, S): resized by its shorter side (antialiased bicubic), centre-cropped and normalised"""
        images = images.permute(0, 3, 1, 2).float() / 255 if images.dtype == torch.uint8 else (images.float() + 1) / 2
        target = self.image_size
        if images.shape[2:] != (target, target):
            images = TF.resize(images, target, TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
            images = TF.center_crop(images, [target, target])
        return (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def encode_images(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> (B, E) of length 1, for metrics"""
        images = torch.as_tensor(images).to(self.pixel_mean.device)
        return F.normalize(self.model.encode_image(self.preprocess(images)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str]) -> Tensor:
        """(B, E) of length 1, for metrics"""
        self.check_image_encoder()
        tokens = self.tokenize(captions).to(self.pixel_mean.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def check_image_encoder(self) -> None:
        """Raise ValueError if there is no image encoder."""
        if not self.has_image_encoder:
            raise ValueError(
                "This CLIP has no image encoder (Stable Diffusion checkpoints contain only the text encoder). It conditions a U-Net, but "
                "cannot be trained or compare images with captions. Use a complete CLIP (train_clip.pretrained: ARCH::TAG), or "
                "metrics without CLIP (evaluate.features.kind: squeezenet)."
            )


@cache
def _tokenizer(context_length: int, settings: str) -> open_clip.SimpleTokenizer:
    """Shared by all models: it does not change, and reading its vocabulary takes 0.1 seconds. `settings` is JSON."""
    return open_clip.SimpleTokenizer(context_length=context_length, **json.loads(settings))


def _read_model_cfg(folder: Path) -> dict[str, Any] | None:
    """open_clip's description of the model in a folder; None if it is missing or broken, which open_clip itself reports."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_cfg") if isinstance(config, dict) else None


def _parse_source(source: str | Path) -> tuple[str, str | None]:
    """open_clip's `model_name` and `pretrained`."""
    if str(source) and Path(source).is_dir():
        return f"{LOCAL}{source}", None
    match str(source).split("::"):
        case [arch, weights] if arch and weights:
            return arch, weights
        case [hub] if hub.startswith("hf-hub:"):
            return hub, None
    raise ValueError(
        f"CLIP `{source}` not found: give an existing folder, ARCH::TAG or ARCH::FILE "
        "(e.g. ViT-B-32::laion2b_s34b_b79k), or hf-hub:OWNER/NAME."
    )
