"""The card (README.md) of an exported model: what it is, how to load it, and how it differs from Stable Diffusion."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.interchange.ldm_config import HEAD_WIDTH, HEADS
from darkroom.interchange.scheduler import STABLE_DIFFUSION, has_betas, read_scheduler
from darkroom.models.autoencoder_kl import AutoencoderKLConfig
from darkroom.models.unet import UNetConfig

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image]
---

# A text-to-image model

A latent diffusion model with the architecture of Stable Diffusion, exported by darkroom {version}. Its licence follows from
the licences of the photos, and of the model, that it was trained from.

| | |
|---|---|
| training images | {size} x {size} px |
| prediction of the U-Net | {prediction} |
| noise schedule | {schedule} |
| default sampling | {sampling} |
"""
ONLY_CAPTION = """
It was trained with one caption, `{}`, and knows no other: use this one as the prompt, with guidance_scale 1.
"""
PIPELINE = """
## Use

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a prompt", height={size}, width={size}, num_inference_steps={steps}, guidance_scale={guidance_scale:g}).images[0]
```

The scheduler is DDIM; other schedulers can be created from its configuration. There is no safety checker.
"""
EXCLAMATION = """
The tokenizer pads with "!" (token 0), as Stable Diffusion 2.x does. Therefore transformers reads a "!" in a prompt as padding, while
darkroom reads it as an exclamation mark.
"""
SINGLE_FILE = """
## Use

For programs that read a complete Stable Diffusion from one file, such as ComfyUI, A1111 and diffusers' `from_single_file`. The
autoencoder has Stable Diffusion's scale of the latents (0.18215), which these programs assume.
"""
NO_OBSTACLES = "Its architecture, text encoder and noise schedule are those of Stable Diffusion, so these programs draw the same images.\n"
OBSTACLES = """## Differences from Stable Diffusion

These programs assume the values of Stable Diffusion 1.x or 2.x for everything that a file does not contain. This model differs:
without matching settings they will refuse it or draw something else. A pipeline folder (`darkroom export --format diffusers`)
contains all values.

"""
WIDTHS = (320, 640, 1280, 1280)
VAE = AutoencoderKLConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
UNETS = {  # family -> its U-Net, except `sample_size`
    "1.x": UNetConfig(block_out_channels=WIDTHS, cross_attention_dim=768, attention_head_dim=(HEADS,) * 4),
    "2.x": UNetConfig(
        block_out_channels=WIDTHS,
        cross_attention_dim=1024,
        attention_head_dim=tuple(width // HEAD_WIDTH for width in WIDTHS),
        use_linear_projection=True,
    ),
}
# family -> width, heads, quick GELU, padding, and pairs of (number of layers, layer for the U-Net)
TEXTS = {
    "1.x": (768, 12, True, "end", ((12, "last"),)),
    "2.x": (1024, 16, False, "zero", ((24, "penultimate"), (23, "last"))),
}
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Card:
    version: str  # of darkroom
    size: int  # px, side of the training images
    diffusion: DiffusionConfig
    pad_token: str  # zero or end

    def of_pipeline(self) -> str:
        config = self.diffusion
        use = PIPELINE.format(size=self.size, steps=config.steps, guidance_scale=config.guidance_scale)
        return self._head() + use + (EXCLAMATION if self.pad_token == "zero" else "")

    def of_single_file(self, obstacles: Sequence[str]) -> str:
        differences = OBSTACLES + "".join(f"- {sentence}\n" for sentence in obstacles)
        return self._head() + SINGLE_FILE + "\n" + (differences if obstacles else NO_OBSTACLES)

    def _head(self) -> str:
        schedule = self.diffusion.schedule
        ending = ", rescaled to zero terminal SNR" if schedule.zero_terminal_snr else ""
        caption = self.diffusion.only_caption
        head = HEAD.format(
            version=self.version,
            size=self.size,
            prediction=self.diffusion.prediction,
            schedule=f"{schedule.kind}, {schedule.num_train_timesteps} steps{ending}",
            sampling=self.diffusion.in_words,
        )
        return head if caption is None else head + ONLY_CAPTION.format(caption)


def obstacles(diffusion: DiffusionConfig, unet: UNetConfig, vae: AutoencoderKLConfig, text: dict[str, Any]) -> list[str]:
    """One sentence for each value that single-file tools would assume wrongly; [] if they draw what we draw."""
    family = "1.x" if text["model_cfg"]["quick_gelu"] else "2.x"
    return [
        *_text_obstacles(text, family),
        *_shape_obstacles(unet, UNETS[family], f"The U-Net has {{}}; that of Stable Diffusion {family} has {{}}."),
        *_shape_obstacles(vae, VAE, "The autoencoder has {}; that of Stable Diffusion has {}."),
        *_diffusion_obstacles(diffusion, family),
    ]


def _text_obstacles(text: dict[str, Any], family: str) -> list[str]:
    config, use = text["model_cfg"]["text_cfg"], text["conditioning"]
    width, heads, _, pad, layers = TEXTS[family]
    wanted = {"width": width, "heads": heads, "context_length": CONTEXT_LENGTH, "mlp_ratio": 4.0}
    found = [
        f"The text encoder has {name} {config[name]}; that of Stable Diffusion {family} has {value}."
        for name, value in wanted.items()
        if config[name] != value
    ]
    if (config["layers"], use["layer"]) not in layers:
        known = " or ".join(f"the {layer} of {number}" for number, layer in layers)
        found.append(f"The U-Net attends to the {use['layer']} of {config['layers']} text layers; tools use {known}.")
    if use["pad_token"] != pad:
        found.append(f"Short prompts are padded with `{use['pad_token']}`; tools pad with `{pad}` in files of this kind.")
    return found


def _shape_obstacles(config: UNetConfig | AutoencoderKLConfig, wanted: UNetConfig | AutoencoderKLConfig, sentence: str) -> list[str]:
    free = ("sample_size",)
    pairs = {field.name: (getattr(config, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, UNetConfig) and isinstance(wanted, UNetConfig):
        pairs["attention_head_dim"] = (config.heads, wanted.heads)
    return [sentence.format(f"`{name}` {ours}", theirs) for name, (ours, theirs) in pairs.items() if ours != theirs and name not in free]


def _diffusion_obstacles(diffusion: DiffusionConfig, family: str) -> list[str]:
    schedule, found = diffusion.schedule, []
    if not has_betas(read_scheduler(STABLE_DIFFUSION, "").schedule, schedule.betas):
        ending = ", zero terminal SNR" if schedule.zero_terminal_snr else ""
        found.append(
            f"The noise schedule is `{schedule.kind}` ({schedule.num_train_timesteps} steps, beta {schedule.beta_start} to "
            f"{schedule.beta_end}{ending}); tools assume that of Stable Diffusion (scaled_linear, 1000 steps, beta 0.00085 to 0.012)."
        )
    if diffusion.prediction not in ("epsilon", "v_prediction") or (diffusion.prediction, family) == ("v_prediction", "1.x"):
        found.append(
            f"The U-Net predicts `{diffusion.prediction}`, which tools do not expect in a file of kind {family}. Set it if the tool allows "
            "it (ComfyUI: the node ModelSamplingDiscrete)."
        )
    return found
