"""Image-to-image and inpainting of an imported model, against diffusers' pipelines on the same weights, latents and noise."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from darkroom.pixels import to_float
from tests.interchange.conftest import Imported
from tests.interchange.drawing import NEGATIVES, PROMPTS, assert_same_pictures
from tests.interchange.pipelines import SIDE

PX = 8 * SIDE
STEPS, STRENGTH = 10, 0.6
SETTINGS = {"guidance_scale": 7.5, "num_inference_steps": STEPS, "strength": STRENGTH, "output_type": "np"}


def photos() -> np.ndarray:
    """uint8 (2, PX, PX, 3), coarse"""
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8).repeat(PX // 8, 1).repeat(PX // 8, 2)


def latents(imported: Imported) -> Tensor:
    """What `TextToImage` begins with: the means of the posteriors; diffusers would draw from them."""
    with torch.no_grad():
        vae = imported.model.vae
        return vae.normalise(vae.encode(to_float(photos()))[0])


def noise() -> Tensor:
    return torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def pipeline(imported: Imported, name: str) -> Any:
    diffusers = pytest.importorskip("diffusers")
    found = getattr(diffusers, name)(**imported.pipeline.components, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


def ours(imported: Imported, mask: np.ndarray | None = None) -> np.ndarray:
    settings: dict[str, Any] = {"steps": STEPS, "strength": STRENGTH, "guidance_scale": 7.5, "sampler": "ddim"}
    return imported.model.sample(PROMPTS, negative_prompts=NEGATIVES, noise=noise(), image=photos(), mask=mask, **settings)


def as_uint8(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)


def test_image_to_image_is_that_of_diffusers(imported: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pipeline(imported, "StableDiffusionImg2ImgPipeline")
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise())
    drawn = theirs(PROMPTS, negative_prompt=NEGATIVES, image=latents(imported), **SETTINGS).images
    assert_same_pictures(ours(imported), as_uint8(drawn))


def test_inpainting_draws_the_same_inside_of_the_mask(imported: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents are compared: diffusers decodes them without putting back the pixels that stay."""
    mask = np.zeros((PX, PX), bool)
    mask[PX // 4 :, : PX // 2] = True
    theirs = pipeline(imported, "StableDiffusionInpaintPipeline")
    vae, decoded = imported.model.vae, []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda raw: decoded.append(raw) or decode(raw))
    monkeypatch.setattr(theirs, "_encode_vae_image", lambda image, generator: latents(imported)[: len(image)])
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise())
    mask_image = torch.from_numpy(mask).float()[None, None].expand(2, -1, -1, -1)
    settings = SETTINGS | {"height": PX, "width": PX, "output_type": "latent"}
    drawn = theirs(PROMPTS, negative_prompt=NEGATIVES, image=to_float(photos()), mask_image=mask_image, **settings).images
    ours(imported, mask)
    torch.testing.assert_close(vae.normalise(decoded[-1]), drawn, rtol=1e-3, atol=1e-3)
