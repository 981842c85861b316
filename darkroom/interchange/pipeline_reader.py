"""A Stable Diffusion pipeline in diffusers' folder layout: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/."""

from pathlib import Path
from typing import Any

from torch import Tensor

from darkroom.interchange.foreign_weights import read_foreign_weights
from darkroom.interchange.scheduler import read_scheduler
from darkroom.interchange.tokenizer import check_vocabulary, read_pad_token
from darkroom.models.autoencoder import AutoencoderConfig, AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.text_keys import model_cfg_from_transformers, to_open_clip
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import assemble, read_json
from darkroom.sampling.model_folder import DiffusionConfig

INDEX_FILE = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
SAME_PARTS = ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipelineLegacy")  # the same parts, used in another way
SCHEDULER_FILE = "scheduler/scheduler_config.json"
# names of weights files without their ending, and the endings, most wanted first
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin")
OLD_STEMS = {"text_encoder": "pytorch_model"}  # of .bin


def weights_files(part: str) -> list[str]:
    """What the weights of a part may be called, most wanted first."""
    old = [f"{OLD_STEMS[part]}.bin"] if part in OLD_STEMS else []
    return [STEMS[part] + ending for ending in ENDINGS] + old


class PipelineFolder:
    """Reads one part at a time, so that the parts need not be in memory together."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: it is no folder of a pipeline, or of another architecture.
        """
        self.folder = folder
        if not (folder / INDEX_FILE).is_file():
            if (folder / "clip").is_dir() and (folder / "unet").is_dir():
                raise ValueError(f"{folder} is a model of ours already: draw with `darkroom sample --model {folder}`, or train from it.")
            raise ValueError(f"{folder} has no {INDEX_FILE}: it is not the folder of a diffusers pipeline.")
        name = read_json(folder / INDEX_FILE).get("_class_name")
        if name not in (PIPELINE, *SAME_PARTS):
            raise ValueError(
                f"{folder / INDEX_FILE}: a {name} is another architecture; only {PIPELINE} (Stable Diffusion 1.x and 2.x) is read."
            )

    def unet(self) -> UNet2DConditionModel:
        config = UNetConfig.from_json(self._config("unet"), self._config_file("unet"))
        return assemble(UNet2DConditionModel, config, self._weights("unet"), where=self.folder / "unet")

    def vae(self) -> AutoencoderKL:
        config = AutoencoderConfig.from_json(self._config("vae"), self._config_file("vae"))
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
        raise ValueError(f"{folder} has no weights: one of {', '.join(names)} should be there.")
