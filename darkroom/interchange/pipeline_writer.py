"""A model of ours as a folder that diffusers' `StableDiffusionPipeline.from_pretrained` reads."""

from pathlib import Path

from safetensors.torch import save_file

from darkroom import __version__
from darkroom.interchange.latent_scale import fold_scale
from darkroom.interchange.model_card import Card
from darkroom.interchange.pipeline_reader import INDEX_FILE, PIPELINE, SCHEDULER_FILE
from darkroom.interchange.scheduler import scheduler_config
from darkroom.interchange.source import Source
from darkroom.interchange.text_tower import transformers_text
from darkroom.interchange.tokenizer import write_tokenizer
from darkroom.models.text_conditioning import PadToken
from darkroom.models.weights import save_model
from darkroom.provenance import write_json

COMPONENTS = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


def write_pipeline(model: Source, folder: Path) -> None:
    """Fills a new folder, one part after the other.

    Raises:
        ValueError: the model has something that the pipeline cannot express.
    """
    diffusion = model.diffusion()
    scheduler = folder / SCHEDULER_FILE
    scheduler.parent.mkdir(parents=True)
    write_json(scheduler, scheduler_config(diffusion))
    write_json(folder / INDEX_FILE, {"_class_name": PIPELINE, "requires_safety_checker": False, **COMPONENTS})
    pad_token = _write_text_encoder(model, folder)
    vae = model.vae()
    if vae.config.shift_factor:  # the pipeline knows the scale, but no shift
        vae = fold_scale(vae, vae.config.scaling_factor)
    save_model(vae, folder / "vae")
    stride = vae.config.stride
    del vae
    unet = model.unet()
    save_model(unet, folder / "unet")
    assert unet.config.sample_size is not None, "every model folder has it"
    card = Card(__version__, unet.config.sample_size * stride, diffusion, pad_token)
    (folder / "README.md").write_text(card.of_pipeline(), encoding="utf-8")


def _write_text_encoder(model: Source, folder: Path) -> PadToken:
    clip = model.clip()
    config, weights = transformers_text(clip)
    write_tokenizer(clip, folder / "tokenizer")
    (folder / "text_encoder").mkdir()
    write_json(folder / "text_encoder" / "config.json", config)
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    save_file(contiguous, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    return clip.conditioning.pad_token
