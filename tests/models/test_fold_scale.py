"""Scale and shift folded into weights: the normalised latents and what they decode to stay what they were."""

import pytest
import torch

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, fold_scale
from tests.interchange.pipelines import shaken


def make_vae(*, convs: bool, scale: float, shift: float | None) -> AutoencoderKL:
    config = AutoencoderKLConfig(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        use_quant_conv=convs,
        use_post_quant_conv=convs,
        scaling_factor=scale,
        shift_factor=shift,
    )
    vae = AutoencoderKL(config)
    vae.initialise(0)
    return shaken(vae, 4)  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("convs", [True, False])
@pytest.mark.parametrize("shift", [None, 0.7, -1.3])
@pytest.mark.parametrize("target", [0.18215, 2.0])
def test_normalised_latents_and_pictures_are_the_same(convs: bool, shift: float | None, target: float) -> None:
    vae = make_vae(convs=convs, scale=0.9, shift=shift)
    folded = fold_scale(vae, target)
    assert (folded.config.scaling_factor, folded.config.shift_factor) == (target, None)
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = vae.encode(pictures)
    folded_mean, folded_std = folded.encode(pictures)
    torch.testing.assert_close(folded.normalise(folded_mean), vae.normalise(mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded_std * target, std * 0.9, rtol=1e-4, atol=1e-6)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    ours, theirs = folded.decode(folded.denormalise(latents)), vae.decode(vae.denormalise(latents))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_where_there_is_nothing_to_fold_every_bit_stays() -> None:
    vae = make_vae(convs=True, scale=0.18215, shift=None)
    torch.testing.assert_close(fold_scale(vae, 0.18215).state_dict(), vae.state_dict(), rtol=0, atol=0)


def test_the_original_is_left_as_it_was() -> None:
    vae = make_vae(convs=True, scale=0.5, shift=1.0)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    fold_scale(vae, 0.18215)
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)
