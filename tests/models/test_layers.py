"""The parts against diffusers and against their definitions."""

import math

import pytest
import torch

from darkroom.models.layers import Attention, Downsample, GatedLinear, PixelAttention, SpatialTransformer, attend, timestep_embedding


@pytest.mark.parametrize("flip_sin_to_cos", [False, True])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_timestep_embedding_is_that_of_diffusers(flip_sin_to_cos: bool, freq_shift: int) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timesteps = torch.tensor([0.0, 0.5, 999.0])
    expected = embeddings.get_timestep_embedding(timesteps, 32, flip_sin_to_cos, freq_shift)
    actual = timestep_embedding(timesteps, 32, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_timestep_embedding_with_shift_ends_at_a_ten_thousandth() -> None:
    waves = timestep_embedding(torch.tensor([100.0]), 8, flip_sin_to_cos=True, freq_shift=1)
    assert float(waves[0, 3]) == pytest.approx(math.cos(100 / 10_000))
    assert float(waves[0, 4]) == pytest.approx(math.sin(100))


def test_attention_is_the_softmax_average_of_the_values() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=2, context_dim=6)
    tokens, context = torch.randn(3, 5, 8), torch.randn(3, 4, 6)
    query, key, value = attention.to_q(tokens), attention.to_k(context), attention.to_v(context)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(query[..., head] @ key[..., head].mT / math.sqrt(4), dim=-1)
        heads.append(weights @ value[..., head])
    torch.testing.assert_close(attention(tokens, context), attention.to_out[0](torch.cat(heads, -1)))


@pytest.mark.parametrize("tokens", [5, 300])  # on either side of where the CPU's fused kernel takes over
def test_bfloat16_attention_on_a_cpu_stays_close_to_fp32(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, tokens, 16, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    whole = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = attend(*whole)
    with torch.autocast("cpu", torch.bfloat16):
        actual = attend(*inputs)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=0.02)
    actual.sum().backward()
    expected.sum().backward()
    for half, full in zip(inputs, whole, strict=True):
        torch.testing.assert_close(half.grad.float(), full.grad, atol=0.05, rtol=0.05)


def test_the_gate_is_the_exact_gelu() -> None:
    layer, x = GatedLinear(4, 6).double(), torch.randn(3, 4, dtype=torch.float64)
    value, gate = layer.proj(x).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), value * gate * (1 + torch.erf(gate / math.sqrt(2))) / 2)


@torch.no_grad()
@pytest.mark.parametrize("linear_projection", [False, True])
def test_the_transformer_of_a_faint_feature_map_is_that_of_diffusers(linear_projection: bool) -> None:
    transformers = pytest.importorskip("diffusers.models.transformers.transformer_2d")
    torch.manual_seed(0)
    theirs = transformers.Transformer2DModel(
        2, 4, in_channels=8, norm_num_groups=2, cross_attention_dim=6, use_linear_projection=linear_projection
    ).eval()
    ours = SpatialTransformer(8, 2, 6, groups=2, linear_projection=linear_projection)
    ours.load_state_dict(theirs.state_dict())
    x, context = 1e-3 * torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6)  # so faint that the norm's epsilon counts
    torch.testing.assert_close(ours(x, context), theirs(x, context).sample)


def test_pixel_attention_does_not_know_where_a_pixel_is() -> None:
    torch.manual_seed(0)
    attention = PixelAttention(8, groups=2, eps=1e-6)
    x = torch.randn(1, 8, 3, 5)
    order = torch.randperm(15)
    shuffled = attention(x.flatten(2)[:, :, order].unflatten(2, (3, 5)))
    torch.testing.assert_close(shuffled.flatten(2), attention(x).flatten(2)[:, :, order])


@pytest.mark.parametrize(("asymmetric", "first_pixel_sees"), [(True, 9), (False, 4)])
def test_the_two_downsamplings_pad_on_different_sides(asymmetric: bool, first_pixel_sees: int) -> None:
    layer = Downsample(1, asymmetric=asymmetric)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    output = layer(torch.ones(1, 1, 4, 4))
    assert output.shape == (1, 1, 2, 2)
    assert output[0, 0, 0, 0].item() == first_pixel_sees
