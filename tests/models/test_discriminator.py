import pytest
import torch
from torch import nn

from darkroom.models.discriminator import PatchDiscriminator


def judge(**changes: int) -> PatchDiscriminator:
    discriminator = PatchDiscriminator(**({"channels": 8, "num_halvings": 3, "size": 256} | changes))
    discriminator.initialise(0)
    return discriminator


def patch_side(discriminator: PatchDiscriminator, size: int) -> int:
    """px that one score looks at. Norms look at the whole picture (at its mean and spread only) and are left out."""
    for index, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.GroupNorm):
            discriminator.layers[index] = nn.Identity()
    images = torch.randn(1, 3, size, size, requires_grad=True)
    scores = discriminator(images)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = images.grad[0].abs().sum(0).nonzero()
    return int(seen[:, 0].max() - seen[:, 0].min()) + 1


@pytest.mark.parametrize(("num_halvings", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_looks_at_a_patch_of_the_papers_size(num_halvings: int, side: int) -> None:
    assert patch_side(judge(num_halvings=num_halvings), 256) == side


def test_the_papers_discriminator_has_its_layers_and_a_map_of_30_by_30_scores() -> None:
    discriminator = judge(channels=64)
    widths = [layer.out_channels for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]
    with torch.no_grad():
        assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_channels_stop_growing_at_eight_times_the_first() -> None:
    widths = [layer.out_channels for layer in judge(num_halvings=5).layers if isinstance(layer, nn.Conv2d)]
    assert widths == [8, 16, 32, 64, 64, 64, 1]


@torch.no_grad()
def test_a_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    images, discriminator = torch.randn(4, 3, 32, 32), judge(num_halvings=2)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.testing.assert_close(judge().state_dict(), judge().state_dict(), rtol=0, atol=0)


def test_the_smallest_picture_that_is_accepted_gets_a_score() -> None:
    assert judge(num_halvings=2, size=12)(torch.zeros(1, 3, 12, 12)).shape == (1, 1, 1, 1)


def test_pictures_too_small_for_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adversarial\.num_halvings is 3, but photos of 16 px are too small for so many halvings"):
        judge(size=16)


def test_channels_that_the_norms_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adversarial\.channels is 12; it must be a multiple of 8"):
        judge(channels=12)
