"""The networks of a run before anything is trained: their shapes and arithmetic, on the meta device, where nothing is computed.

It looks into the folders that params.yaml names, so that a U-Net that does not fit its VAE is found before the first stage.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darkroom.config import TrainClipParams, TrainUnetParams, TrainVaeParams
from darkroom.hub import PREFIX
from darkroom.models.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.clip import ClipTowers
from darkroom.models.layers import use_gradient_checkpointing
from darkroom.models.linear_autoencoder import LinearAutoencoder, LinearAutoencoderConfig
from darkroom.models.lora import add_lora
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import CONFIG_FILE, empty, read_json
from darkroom.provenance import INDEX, check_made_with

REMOTE = ("models:/", PREFIX)  # in the registry or on the hub: not a folder yet


@dataclass
class Part:
    """A network on the meta device, and the shapes of its inputs for one picture."""

    stage: str
    net: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    trained: bool = True
    flop: float = field(init=False)  # of a forward pass of one picture
    kept: float = field(init=False)  # bytes that it keeps for the backward pass, in fp32

    def __post_init__(self) -> None:
        kept: dict[int, int] = {}
        weights = {parameter.untyped_storage()._cdata for parameter in self.net.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = 0 if storage._cdata in weights else storage.nbytes()
            return tensor

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = self.net(*self.inputs(1, "meta"))  # the graph keeps the tensors alive, so that no storage is counted for another
        del outputs
        self.flop, self.kept = float(counter.get_total_flops()), float(sum(kept.values()))

    def inputs(self, num: int, device: torch.device | str) -> list[Tensor]:
        """Inputs of `num` pictures; those with one axis are tokens."""
        kinds = [torch.long if len(shape) == 1 else torch.float32 for shape in self.shapes]
        return [torch.ones(num, *shape, dtype=kind, device=device) for shape, kind in zip(self.shapes, kinds, strict=True)]

    @property
    def num_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def num_trained(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters() if parameter.requires_grad) if self.trained else 0


def not_here(sections: Mapping[str, Any]) -> list[str]:
    """The models that training starts from and that are fetched when their stage starts."""
    sources = (sections["train_clip"].pretrained, sections["train_vae"].init, sections["train_unet"].init)
    return [source for source in sources if source.startswith(REMOTE)]


def networks(sections: Mapping[str, Any]) -> dict[str, Part]:
    """The networks of a run by the stage that trains them.

    Raises:
        ValueError: a folder of `init` or `pretrained` is missing or holds a network that does not fit the others.
    """
    clip, vae, unet, side = sections["train_clip"], sections["train_vae"], sections["train_unet"], sections["ingest"].side
    towers, autoencoder = _clip(clip), _vae(vae, side)
    stride, channels = autoencoder.config.stride, autoencoder.config.latent_channels
    latent = (channels, side // stride, side // stride)
    denoiser = _unet(unet, latent, towers)
    if unet.init:
        _check_weights(unet.init, {"vae": vae.init, "clip": clip.pretrained})
    image = towers.image_size if towers.has_image_encoder else 0
    parts = {
        "train_vae": Part("train_vae", autoencoder, ((3, side, side), latent), trained=vae.steps > 0),
        "train_unet": Part("train_unet", denoiser, (latent, (), (towers.context_length, towers.context_dim)), trained=unet.steps > 0),
    }
    if image:
        shapes = ((3, image, image), (towers.context_length,))
        parts["train_clip"] = Part("train_clip", towers, shapes, trained=clip.mode != "pretrained" and clip.steps > 0)
    return parts


def _clip(params: TrainClipParams) -> ClipTowers:
    if params.mode != "scratch":
        return ClipTowers.outline(params.pretrained)
    with torch.device("meta"):
        return ClipTowers.build(params.model.model_dump(), seed=0)


def _vae(params: TrainVaeParams, side: int) -> Autoencoder:
    kind: type[Autoencoder] = AutoencoderKL
    config: AutoencoderConfig
    if params.kind == "linear":
        kind, config = LinearAutoencoder, LinearAutoencoderConfig(**params.linear.model_dump())
    elif params.kind == "pretrained":
        model = load_autoencoder(_existing(params.init, "train_vae.init"))
        kind, config = type(model), model.config
    elif params.init:
        config = _stored(AutoencoderKLConfig, params.init, "train_vae.init")
    else:
        config = AutoencoderKLConfig(**params.model.model_dump())
    if side % config.stride:
        raise ValueError(f"`ingest.side` is {side}, but the VAE of `train_vae.init` ({params.init}) needs a multiple of {config.stride}.")
    return empty(kind, config)


def _unet(params: TrainUnetParams, latent: tuple[int, int, int], towers: ClipTowers) -> UNet2DConditionModel:
    if params.init:
        config = _stored(UNetConfig, params.init, "train_unet.init")
    else:
        model = params.model.model_dump()
        config = UNetConfig.from_levels(
            **{key: value for key, value in model.items() if key != "attention_head_dim"},
            channels_per_head=params.model.attention_head_dim,
            latent_channels=latent[0],
            latent_size=latent[1],
            context_dim=towers.context_dim,
        )
    halvings = len(config.block_out_channels) - 1
    if latent[1] % 2**halvings:
        raise ValueError(f"The latents are {latent[1]} wide, but the U-Net halves them {halvings} times: choose another `ingest.side`.")
    if (config.in_channels, config.cross_attention_dim) != (latent[0], towers.context_dim):
        raise ValueError(
            f"The U-Net of `train_unet.init` ({params.init}) takes {config.in_channels} latent channels and token embeddings of width "
            f"{config.cross_attention_dim}, but train_vae gives {latent[0]} and train_clip {towers.context_dim}: name the VAE and the text "
            "encoder that belong to it in `train_vae.init` and `train_clip.pretrained`."
        )
    unet = empty(UNet2DConditionModel, config)
    if params.gradient_checkpointing:
        use_gradient_checkpointing(unet)
    if params.lora.rank:
        with torch.device("meta"):
            add_lora(unet, **params.lora.model_dump(), seed=0)
    return unet


def _check_weights(unet: str, folders: Mapping[str, str]) -> None:
    """Refuse a U-Net that was made with other weights than those in `folders`, as far as their index.json says which these are."""
    files = {part: Path(folder) / INDEX for part, folder in folders.items()}
    contents = {part: json.loads(file.read_text(encoding="utf-8"))["content"] for part, file in files.items() if file.is_file()}
    weights = {part: content["weights"] for part, content in contents.items() if "weights" in content}
    check_made_with(Path(unet), {part: {"weights": value, "init": value} for part, value in weights.items()})


def _stored(kind: type[Any], folder: str, key: str) -> Any:
    file = _existing(folder, key) / CONFIG_FILE
    return kind.from_json(read_json(file), file)


def _existing(folder: str, key: str) -> Path:
    if not Path(folder).is_dir():
        raise ValueError(f"`{key}` names {folder}, which is not there: import it (`darkroom import SOURCE FOLDER`), or correct the path.")
    return Path(folder)
