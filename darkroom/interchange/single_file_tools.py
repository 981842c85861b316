"""What ComfyUI and A1111 take for granted of a single file, and in which points a model differs."""

import dataclasses
from typing import Any

from darkroom.interchange.ldm_config import HEAD_WIDTH, HEADS
from darkroom.interchange.scheduler import STABLE_DIFFUSION, has_betas, read_scheduler
from darkroom.models.autoencoder import AutoencoderConfig
from darkroom.models.unet import UNetConfig
from darkroom.sampling.model_folder import DiffusionConfig

WIDTHS = (320, 640, 1280, 1280)
VAE = AutoencoderConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
UNETS = {  # family -> its U-Net, but for the side of its training pictures
    "1.x": UNetConfig(block_out_channels=WIDTHS, cross_attention_dim=768, attention_head_dim=(HEADS,) * 4),
    "2.x": UNetConfig(
        block_out_channels=WIDTHS,
        cross_attention_dim=1024,
        attention_head_dim=tuple(width // HEAD_WIDTH for width in WIDTHS),
        use_linear_projection=True,
    ),
}
# family -> width, heads, quick GELU, padding, and layers with the one that is read
TEXTS = {
    "1.x": (768, 12, True, "end", ((12, "last"),)),
    "2.x": (1024, 16, False, "zero", ((24, "penultimate"), (23, "last"))),
}
CONTEXT_LENGTH = 77


def obstacles(diffusion: DiffusionConfig, unet: UNetConfig, vae: AutoencoderConfig, text: dict[str, Any]) -> list[str]:
    """Sentences, one for each part that such tools would build or use in another way; [] if they draw what we draw."""
    family = "1.x" if text["model_cfg"]["quick_gelu"] else "2.x"
    return [
        *_text_obstacles(text, family),
        *_shape_obstacles(unet, UNETS[family], f"The U-Net has {{}} where that of Stable Diffusion {family} has {{}}."),
        *_shape_obstacles(vae, VAE, "The autoencoder has {} where Stable Diffusion's has {}."),
        *_diffusion_obstacles(diffusion, family),
    ]


def _text_obstacles(text: dict[str, Any], family: str) -> list[str]:
    config, use = text["model_cfg"]["text_cfg"], text["conditioning"]
    width, heads, _, pad, layers = TEXTS[family]
    wanted = {"width": width, "heads": heads, "context_length": CONTEXT_LENGTH, "mlp_ratio": 4.0}
    found = [
        f"The text tower has {name} {config[name]} where that of Stable Diffusion {family} has {value}."
        for name, value in wanted.items()
        if config[name] != value
    ]
    if (config["layers"], use["layer"]) not in layers:
        known = " or ".join(f"the {layer} of {number}" for number, layer in layers)
        found.append(f"The U-Net reads the {use['layer']} of {config['layers']} text layers; tools read {known}.")
    if use["pad_token"] != pad:
        found.append(f"Short prompts are padded with `{use['pad_token']}`; tools pad with `{pad}` for a file of this kind.")
    return found


def _shape_obstacles(config: UNetConfig | AutoencoderConfig, wanted: UNetConfig | AutoencoderConfig, sentence: str) -> list[str]:
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
            f"{schedule.beta_end}{ending}); tools take Stable Diffusion's (scaled_linear, 1000 steps, beta 0.00085 to 0.012)."
        )
    if diffusion.prediction not in ("epsilon", "v_prediction") or (diffusion.prediction, family) == ("v_prediction", "1.x"):
        found.append(
            f"The U-Net predicts `{diffusion.prediction}`, which tools do not expect of a file of the {family} kind; where a tool lets you "
            "choose (ComfyUI: the node ModelSamplingDiscrete), choose it."
        )
    return found
