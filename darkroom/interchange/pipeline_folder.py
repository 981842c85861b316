"""A Stable Diffusion pipeline in diffusers' folder layout: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/.

Read from a folder or from the Hugging Face hub, and written for `StableDiffusionPipeline.from_pretrained`.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from darkroom import __version__
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.hub import download
from darkroom.interchange.foreign_weights import read_foreign_weights
from darkroom.interchange.model_card import Card
from darkroom.interchange.scheduler import read_scheduler, scheduler_config
from darkroom.interchange.text_encoder import model_cfg_from_transformers, to_open_clip, transformers_text
from darkroom.interchange.tokenizer import check_vocabulary, read_pad_token, write_tokenizer
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, fold_scale
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import PadToken, TextConditioning
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import assemble, read_json, save_model
from darkroom.provenance import write_json
from darkroom.sampling.model_folder import ModelFolder

INDEX_FILE = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
SAME_PARTS = ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipelineLegacy")  # the same parts with another use
SCHEDULER_FILE = "scheduler/scheduler_config.json"
# stems of the weights files, and their endings in order of preference
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin")
OLD_STEMS = {"text_encoder": "pytorch_model"}  # of .bin
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
CONFIGS = ("model_index.json", "scheduler/*.json", "tokenizer/*", "text_encoder/config.json", "unet/config.json", "vae/config.json")


def weights_files(part: str) -> list[str]:
    """Possible file names of the weights of a part, in order of preference."""
    old = [f"{OLD_STEMS[part]}.bin"] if part in OLD_STEMS else []
    return [STEMS[part] + ending for ending in ENDINGS] + old


class PipelineFolder:
    """Reads one part at a time, so that the parts need not be in memory together."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: not a pipeline folder, or another architecture.
        """
        self.folder = folder
        if not (folder / INDEX_FILE).is_file():
            if (folder / "clip").is_dir() and (folder / "unet").is_dir():
                raise ValueError(f"{folder} is already a darkroom model: draw with `darkroom sample --model {folder}`, or train from it.")
            raise ValueError(f"{folder / INDEX_FILE} is missing: {folder} is not a pipeline folder of diffusers.")
        name = read_json(folder / INDEX_FILE).get("_class_name")
        if name not in (PIPELINE, *SAME_PARTS):
            raise ValueError(f"{folder / INDEX_FILE}: {name} is not supported; expected {PIPELINE}.")

    def unet(self) -> UNet2DConditionModel:
        config = UNetConfig.from_json(self._config("unet"), self._config_file("unet"))
        return assemble(UNet2DConditionModel, config, self._weights("unet"), where=self.folder / "unet")

    def vae(self) -> AutoencoderKL:
        config = AutoencoderKLConfig.from_json(self._config("vae"), self._config_file("vae"))
        return assemble(AutoencoderKL, config, self._weights("vae"), where=self.folder / "vae")

    def clip(self) -> ClipTowers:
        model_cfg = model_cfg_from_transformers(self._config("text_encoder"), self._config_file("text_encoder"))
        weights = to_open_clip(self._weights("text_encoder"))
        tokenizer = self.folder / "tokenizer"
        conditioning = TextConditioning(layer="last", pad_token=read_pad_token(tokenizer))
        clip = ClipTowers.text_only(model_cfg, weights, conditioning=conditioning, where=self.folder / "text_encoder")
        check_vocabulary(tokenizer, clip)
        return clip

    def diffusion(self) -> DiffusionConfig:
        return read_scheduler(read_json(self.folder / SCHEDULER_FILE), self.folder / SCHEDULER_FILE)

    def _config_file(self, part: str) -> Path:
        return self.folder / part / "config.json"

    def _config(self, part: str) -> dict[str, Any]:
        return read_json(self._config_file(part))

    def _weights(self, part: str) -> dict[str, Tensor]:
        folder = self.folder / part
        names = weights_files(part)
        for name in names:
            if (folder / name).is_file():
                return read_foreign_weights(folder / name)
        raise ValueError(f"{folder} has no weights; expected one of {', '.join(names)}.")


def fetch_pipeline(hub_id: str) -> Path:
    """The pipeline folder in huggingface_hub's cache, downloaded if it is not there yet.

    For each part only the preferred weights; half precision or pickles are downloaded only if there is nothing better.

    Raises:
        ValueError: as `download`.
    """
    folder = download(hub_id, [*CONFIGS, *(f"{part}/{weights_files(part)[0]}" for part in STEMS)])
    for rank in range(1, max(len(weights_files(part)) for part in STEMS)):
        missing = [part for part in STEMS if not any((folder / part / name).is_file() for name in weights_files(part))]
        if patterns := [f"{part}/{weights_files(part)[rank]}" for part in missing if rank < len(weights_files(part))]:
            folder = download(hub_id, patterns)
    return folder


def write_pipeline(model: ModelFolder, folder: Path) -> None:
    """Fill a new folder, one part after the other.

    Raises:
        ValueError: a pipeline cannot express the model.
    """
    diffusion = model.diffusion()
    scheduler = folder / SCHEDULER_FILE
    scheduler.parent.mkdir(parents=True)
    write_json(scheduler, scheduler_config(diffusion))
    write_json(folder / INDEX_FILE, {"_class_name": PIPELINE, "requires_safety_checker": False, **COMPONENTS})
    pad_token = _write_text_encoder(model, folder)
    vae = model.vae_for_export()
    if vae.config.shift_factor:  # pipelines apply the scale, but no shift
        vae = fold_scale(vae, vae.config.scaling_factor)
    save_model(vae, folder / "vae")
    stride = vae.config.stride
    del vae
    unet = model.unet()
    save_model(unet, folder / "unet")
    assert unet.config.sample_size is not None, "every model folder has it"
    card = Card(__version__, unet.config.sample_size * stride, diffusion, pad_token)
    (folder / "README.md").write_text(card.of_pipeline(), encoding="utf-8")


def _write_text_encoder(model: ModelFolder, folder: Path) -> PadToken:
    clip = model.clip()
    config, weights = transformers_text(clip)
    write_tokenizer(clip, folder / "tokenizer")
    (folder / "text_encoder").mkdir()
    write_json(folder / "text_encoder" / "config.json", config)
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    save_file(contiguous, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    return clip.conditioning.pad_token
