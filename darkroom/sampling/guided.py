"""D(x, sigma) of a U-Net, with all the guidance that was asked for."""

from torch import Tensor

from darkroom.diffusion.config import DiffusionConfig
from darkroom.diffusion.denoiser import Denoise, make_denoiser
from darkroom.diffusion.guidance import Similarity, classifier_free, clip_guidance
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.sampling.batch import Batch
from darkroom.sampling.settings import Settings


def guided_denoiser(
    batch: Batch, settings: Settings, config: DiffusionConfig, *, unet: UNet2DConditionModel, vae: AutoencoderKL, clip: ClipTowers
) -> Denoise:
    """
    Raises:
        ValueError: settings of guidance out of range, or CLIP guidance by a CLIP that sees no pictures.
    """
    net = classifier_free(
        unet, batch.context, batch.negative_context, settings.guidance_scale, settings.guidance_rescale, settings.guidance_interval
    )
    denoise = make_denoiser(net, config.schedule, config.prediction)
    if not settings.clip_guidance_scale:
        return denoise
    if not clip.has_image_tower:
        raise ValueError("clip_guidance_scale needs a CLIP with an image tower, and this model has the text tower alone: leave it at 0.")
    return clip_guidance(denoise, _similarity(batch, vae, clip), settings.clip_guidance_scale)


def _similarity(batch: Batch, vae: AutoencoderKL, clip: ClipTowers) -> Similarity:
    """The cosine of a decoded picture with its prompt, as the run's own CLIP sees both."""
    assert batch.tokens is not None, "there is one prompt a picture"
    tokens = batch.tokens

    def similarity(latents: Tensor) -> Tensor:
        image_features, text_features, _ = clip(vae.decode(vae.denormalise(latents)), tokens)
        return (image_features * text_features).sum(1)

    return similarity
