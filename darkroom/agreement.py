"""What the sections of params.yaml must agree on. It is asked before any work, so that no stage stops hours after the mistake.

Parameters alone are compared here; what stands in folders that they name is looked at by `darkroom.run_plan` and by the stages.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from darkroom.config import EvaluateParams, TrainClipParams, TrainUnetParams, TrainVaeParams
from darkroom.hub import NAMING, PREFIX, is_hub_folder
from darkroom.param_groups import SamplerParams

CLIP_HEAD_WIDTH = 32  # channels of an attention head in a new CLIP
DISCRIMINATOR_GROUPS = 8  # of its norms
DISCRIMINATOR_PATCH = 3  # least side of its last feature map
SHA256 = r"[0-9a-f]{64}"


def disagreements(sections: Mapping[str, Any]) -> list[str]:
    """One sentence per disagreement, with both keys and the nearest values that work; `sections` are valid each by itself."""
    side, clip, vae, unet = sections["ingest"].side, sections["train_clip"], sections["train_vae"], sections["train_unet"]
    return [
        *_of_clip(clip),
        *_of_vae(vae, side),
        *_of_unet(unet),
        *_of_views(sections["ingest"].crops, sections["cache_latents"].flip, unet),
        *_of_sides(side, vae, unet),
        *_of_beginnings(clip, vae, unet),
        *_of_sampling("train_unet.sampling", unet.sampling, unet),
        *_of_sampling("evaluate.sampling", sections["evaluate"].sampling, unet),
        *_of_counts(sections["evaluate"]),
    ]


def nearest_multiples(value: int, step: int) -> str:
    """The multiples of `step` on both sides of `value`, which is none of them: "28 or 32"."""
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{step}"


def _of_clip(clip: TrainClipParams) -> Iterator[str]:
    if clip.mode != "pretrained" and clip.micro_batch < 2:
        yield (
            f"`train_clip.batch_size` ({clip.batch_size}) leaves one pair of photo and caption for each of num_processes x "
            f"gradient_accumulation ({clip.num_processes} x {clip.gradient_accumulation}), and a pair is compared with the others of its "
            f"micro-batch: set batch_size: {2 * clip.batch_size} or gradient_accumulation: 1"
        )
    if clip.mode != "scratch":
        return
    for key in ("vision_width", "text_width"):
        if (width := getattr(clip.model, key)) % CLIP_HEAD_WIDTH:
            yield (
                f"`train_clip.model.{key}` is {width}; it must be a multiple of {CLIP_HEAD_WIDTH}, the width of an attention head: "
                f"set {nearest_multiples(width, CLIP_HEAD_WIDTH)}"
            )
    image, patch = clip.model.image_size, clip.model.patch_size
    if image % patch:
        yield (
            f"`train_clip.model.image_size` ({image}) must be a multiple of train_clip.model.patch_size ({patch}): "
            f"set image_size: {nearest_multiples(image, patch)}"
        )


def _of_vae(vae: TrainVaeParams, side: int) -> Iterator[str]:
    if vae.kind != "kl" and vae.steps:
        yield f"`train_vae.kind: {vae.kind}` is not trained, but `train_vae.steps` is {vae.steps}: set train_vae.steps: 0, or kind: kl"
    if vae.kind == "linear" and vae.init:
        yield f"`train_vae.kind: linear` is computed from the photos, but `train_vae.init` is {vae.init}: empty it, or set kind: pretrained"
    if vae.kind == "linear" and (vae.likelihood != "gaussian" or vae.learn_scale):
        yield "`train_vae.kind: linear` has a gaussian likelihood of its own scale: set train_vae.likelihood: gaussian, learn_scale: false"
    if vae.kind == "pretrained" and not vae.init:
        yield (
            "`train_vae.kind` is pretrained, but `train_vae.init` is empty: name the folder of an autoencoder, hf-hub:OWNER/NAME or "
            "models:/NAME@ALIAS"
        )
    if vae.init.startswith(PREFIX) and not is_hub_folder(vae.init):
        yield f"`train_vae.init` is {vae.init}, which names nothing on the Hugging Face hub: write {NAMING}"
    if vae.init_sha256 and not vae.init:
        yield "`train_vae.init_sha256` is set, but `train_vae.init` is empty: name the autoencoder that has this hash, or empty init_sha256"
    if vae.init_sha256 and not re.fullmatch(SHA256, vae.init_sha256):
        yield (
            f"`train_vae.init_sha256` is {vae.init_sha256}, but a hash has 64 digits of 0-9 and a-f: take content.init in "
            "data/vae/index.json of a run with this init, or empty it"
        )
    if vae.kind == "kl" and not vae.init:
        yield from _of_groups("train_vae", vae.model.block_out_channels, vae.model.norm_num_groups)
        if vae.steps == 0:
            yield "train_vae.steps is 0 and train_vae.init is empty: name the folder of a VAE to use as it is, or train one"
    adversary = vae.adversarial
    if not (adversary.weight and vae.steps):
        return
    if adversary.channels % DISCRIMINATOR_GROUPS:
        yield (
            f"`train_vae.adversarial.channels` is {adversary.channels}; it must be a multiple of {DISCRIMINATOR_GROUPS}, the groups of a "
            f"norm: set {nearest_multiples(adversary.channels, DISCRIMINATOR_GROUPS)}"
        )
    if side >> adversary.num_halvings < DISCRIMINATOR_PATCH:
        most = (side // DISCRIMINATOR_PATCH).bit_length() - 1
        yield (
            f"`train_vae.adversarial.num_halvings` ({adversary.num_halvings}) is too large for `ingest.side` ({side}): set num_halvings: "
            f"{most}, or side: {DISCRIMINATOR_PATCH << adversary.num_halvings} or more"
        )


def _of_unet(unet: TrainUnetParams) -> Iterator[str]:
    if unet.init:
        return
    if unet.steps == 0:
        yield "train_unet.steps is 0 and train_unet.init is empty: name the folder of a U-Net to use as it is, or train one"
    model = unet.model
    yield from _of_groups("train_unet", model.block_out_channels, model.norm_num_groups)
    if model.block_out_channels[0] % 2:
        yield f"`train_unet.model.block_out_channels` begins with {model.block_out_channels[0]}; the first must be even"
    for channels in model.block_out_channels:
        if channels % model.attention_head_dim:
            yield (
                f"`train_unet.model.block_out_channels` has {channels}, not a multiple of train_unet.model.attention_head_dim "
                f"({model.attention_head_dim}): set {nearest_multiples(channels, model.attention_head_dim)}, or another attention_head_dim"
            )


def _of_views(crops: int, flip: bool, unet: TrainUnetParams) -> Iterator[str]:
    if unet.augmentation_labels and crops == 1 and not flip:
        yield (
            "`train_unet.augmentation_labels` is true, but each photo has a single view: set ingest.crops: 2 or more, or "
            "cache_latents.flip: true, or train_unet.augmentation_labels: false"
        )


def _of_groups(section: str, widths: list[int], groups: int) -> Iterator[str]:
    for channels in widths:
        if channels % groups:
            yield (
                f"`{section}.model.block_out_channels` has {channels}, not a multiple of {section}.model.norm_num_groups ({groups}): "
                f"set {nearest_multiples(channels, groups)}, or another norm_num_groups"
            )


def _of_sides(side: int, vae: TrainVaeParams, unet: TrainUnetParams) -> Iterator[str]:
    """The photos must halve into latents, and those through the U-Net. With `init` the stage knows the network, not the parameters."""
    if vae.init:
        return
    vae_halvings = len(vae.model.block_out_channels) - 1
    unet_halvings = 0 if unet.init else len(unet.model.block_out_channels) - 1
    stride = vae.linear.patch_size if vae.kind == "linear" else 2**vae_halvings
    whole = stride * 2**unet_halvings
    if side % stride:
        why = (
            f"`train_vae.linear.patch_size` is {stride}"
            if vae.kind == "linear"
            else f"`train_vae.model.block_out_channels` has {vae_halvings + 1} resolutions and halves the side {vae_halvings} times"
        )
        yield f"`ingest.side` is {side}, but {why}: set ingest.side: {nearest_multiples(side, whole)}"
    elif side % whole:
        yield (
            f"`ingest.side` is {side}, so that the latents are {side // stride} wide, but `train_unet.model.block_out_channels` halves "
            f"them {unet_halvings} times: set ingest.side: {nearest_multiples(side, whole)}, or remove a resolution of the U-Net"
        )


def _of_beginnings(clip: TrainClipParams, vae: TrainVaeParams, unet: TrainUnetParams) -> Iterator[str]:
    """A U-Net understands the latents and token embeddings that it was trained on, and no others of the same shape."""
    new = {"train_vae.init": not vae.init, "train_clip.pretrained": clip.mode == "scratch"}
    if unet.init and any(new.values()):
        yield (
            f"`train_unet.init` is {unet.init}, but {' and '.join(f'`{key}`' for key, is_new in new.items() if is_new)} would be trained "
            "anew, and the U-Net understands only those that it was trained with: set train_vae.init, and train_clip.mode: pretrained with "
            "train_clip.pretrained, to the parts of the same model (`darkroom tune --from MODEL` sets them all), or leave train_unet.init "
            "empty"
        )


def _of_sampling(key: str, sampling: SamplerParams, unet: TrainUnetParams) -> Iterator[str]:
    timesteps = unet.schedule.num_train_timesteps
    most = {"trailing": timesteps, "leading": timesteps - 1}.get(sampling.spacing, sampling.steps)
    if sampling.steps > most:
        yield (
            f"`{key}.steps` is {sampling.steps}; with spacing: {sampling.spacing} and train_unet.schedule.num_train_timesteps: {timesteps} "
            f"it must be at most {most}"
        )


def _of_counts(evaluate: EvaluateParams) -> Iterator[str]:
    if evaluate.num_samples <= evaluate.num_neighbours:
        yield (
            f"`evaluate.num_neighbours` ({evaluate.num_neighbours}) must be below evaluate.num_samples ({evaluate.num_samples}): "
            f"set num_samples: {evaluate.num_neighbours + 1} or more"
        )
