"""The objective of the autoencoder, term by term, and what its gradients must and must not reach."""

import pytest
import torch
from torch import Tensor

from darkroom.training.losses import hinge_loss, kl_divergence, negative_log_likelihood
from darkroom.training.vae_objective import DecoderLikelihood, VaeObjective
from tests.training.tiny_vae import IMAGES, NOISE, new_vae, objective, vae_params

PIXELS = 3 * 16 * 16


def gradients(net: VaeObjective, *, judged: bool) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    net(IMAGES, NOISE, judged=judged)["total"].backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def rebuilding_loss(net: VaeObjective) -> tuple[Tensor, Tensor]:
    """Reconstruction, and what it costs: the likelihood and the perceptual distance."""
    reconstruction, mean, logvar = net.bound.vae(IMAGES, NOISE)
    nll = negative_log_likelihood(IMAGES, reconstruction, likelihood="gaussian", scale=torch.exp(net.bound.likelihood.logvar / 2))
    rebuilt = nll.mean() / PIXELS + net.perceptual_weight * net.perceptual(IMAGES, reconstruction).mean()
    return reconstruction, rebuilt + 0 * (mean.sum() + logvar.sum())


def test_without_additions_the_total_is_the_negative_bound_per_pixel_and_channel():
    net = VaeObjective.build(new_vae(), vae_params(adversarial={"weight": 0.0, "start_step": 0, "channels": 8, "num_halvings": 1}), size=16)
    terms = net(IMAGES, NOISE)
    reconstruction, mean, logvar = net.bound.vae(IMAGES, NOISE)
    nll = negative_log_likelihood(IMAGES, reconstruction, likelihood="gaussian", scale=0.3)
    torch.testing.assert_close(terms["total"], (nll + kl_divergence(mean, logvar)).mean() / PIXELS)
    assert list(terms) == ["total", "loss", "nll", "kl", "scale"]
    assert [name for name, term in terms.items() if term.requires_grad] == ["total"]


def test_the_perceptual_term_gives_a_gradient_to_decoder_and_encoder():
    with_it, without = (gradients(objective(perceptual_weight=weight), judged=False) for weight in (0.7, 0.0))
    for part in ("bound.vae.decoder", "bound.vae.encoder"):
        names = [name for name in with_it if name.startswith(part)]
        assert any(not torch.allclose(with_it[name], without[name], rtol=1e-3, atol=0) for name in names)
    net = objective()
    reconstruction, _ = rebuilding_loss(net)
    last = net.bound.vae.decoder.conv_out.weight
    (alone,) = torch.autograd.grad(net.perceptual(IMAGES, reconstruction).mean(), last)
    assert alone.abs().max() > 0
    name = "bound.vae.decoder.conv_out.weight"
    torch.testing.assert_close(with_it[name] - without[name], 0.7 * alone, rtol=1e-3, atol=1e-6)


def test_the_discriminator_gets_the_gradient_of_its_own_loss_alone():
    net = objective()
    found = gradients(net, judged=True)
    with torch.no_grad():
        reconstruction, _, _ = net.bound.vae(IMAGES, NOISE)
    names, parameters = zip(*net.discriminator.named_parameters(), strict=True)
    expected = torch.autograd.grad(hinge_loss(net.discriminator(IMAGES), net.discriminator(reconstruction)), parameters)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[f"discriminator.{name}"], gradient, rtol=1e-3, atol=1e-6)


def test_the_autoencoder_gets_the_gradient_of_its_own_loss_alone():
    net = objective(adversarial_weight=0.5)
    found = gradients(net, judged=True)
    reconstruction, rebuilt = rebuilding_loss(net)
    fooled = -net.discriminator(reconstruction).mean()
    last = net.bound.vae.decoder.conv_out.weight
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rebuilt, fooled)]
    _, mean, logvar = net.bound.vae(IMAGES, NOISE)
    loss = rebuilt + net.kl_weight * kl_divergence(mean, logvar).mean() / PIXELS + 0.5 * lengths[0] / lengths[1] * fooled
    names, parameters = zip(*net.bound.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
        torch.testing.assert_close(found[f"bound.{name}"], gradient, rtol=1e-3, atol=1e-6)


def test_a_second_step_finds_nothing_of_the_first_in_either_players_gradients():
    net = objective()
    first = gradients(net, judged=True)
    again = gradients(net, judged=True)
    for name, gradient in first.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0)


def test_before_the_start_step_the_discriminator_changes_nothing_but_has_gradients_of_zero():
    early, without = objective(), objective()
    without.discriminator = None
    found, expected = gradients(early, judged=False), gradients(without, judged=False)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
    judges = [gradient for name, gradient in found.items() if name.startswith("discriminator")]
    assert len(judges) == len(list(early.discriminator.parameters()))  # other processes wait for a gradient of each weight
    assert all(not gradient.any() for gradient in judges)


def test_the_terms_that_are_logged_are_the_same_at_every_step_and_the_loss_leaves_the_game_out():
    net = objective()
    early, late = net(IMAGES, NOISE, judged=False), net(IMAGES, NOISE, judged=True)
    assert list(early) == list(late)
    torch.testing.assert_close(early["loss"], late["loss"])
    game = late["adaptive_weight"] * late["adversarial"] + late["discriminator"]
    torch.testing.assert_close(late["total"].detach(), late["loss"] + game)
    assert (float(early["adversarial"]), float(early["adaptive_weight"]), float(early["discriminator"])) == (0, 0, 0)


def test_in_evaluation_nobody_judges():
    terms = objective().eval()(IMAGES, NOISE, judged=True)
    torch.testing.assert_close(terms["total"], terms["loss"])
    assert "discriminator" not in terms


def test_only_the_autoencoder_and_its_likelihood_are_stored_with_the_objective():
    owners = {name.split(".")[0] for name in objective().state_dict()}
    assert owners == {"bound", "discriminator"}  # the perceptual network is a measure


@pytest.mark.parametrize(
    ("likelihood", "best"),
    [("gaussian", lambda e: e.square().mean().sqrt()), ("laplace", lambda e: e.abs().mean())],
    ids=["gaussian", "laplace"],
)
def test_a_learned_scale_finds_the_error_of_the_reconstructions(likelihood, best):
    errors = 0.2 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    learned = DecoderLikelihood(likelihood, 0.5, learned=True)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (learned(errors, torch.zeros_like(errors)).mean() / PIXELS).backward()
        optimizer.step()
    assert learned.to_json() == {"likelihood": likelihood, "scale": pytest.approx(float(best(errors)), rel=1e-3)}


def test_a_scale_that_is_not_learned_stays_what_params_say():
    fixed = DecoderLikelihood("laplace", 0.05, learned=False)
    assert list(fixed.parameters()) == []
    assert fixed.to_json() == {"likelihood": "laplace", "scale": 0.05}
    assert DecoderLikelihood("bernoulli", None, learned=False).to_json() == {"likelihood": "bernoulli", "scale": None}


def test_the_objective_has_what_params_ask_for(tmp_path):
    off = {"weight": 0.0, "start_step": 0, "channels": 8, "num_halvings": 1}
    plain = VaeObjective.build(new_vae(), vae_params(adversarial=off, learn_scale=False, likelihood="bernoulli"), size=16)
    assert (plain.perceptual, plain.discriminator, plain.bound.likelihood.scale) == (None, None, None)
    look = {"weight": 1.0, "arch": "squeezenet1_1", "weights": str(tmp_path / "missing.safetensors"), "layers": ["features.1"]}
    with pytest.raises(ValueError, match=r"missing\.safetensors is missing"):
        VaeObjective.build(new_vae(), vae_params(perceptual=look), size=16)
    with pytest.raises(ValueError, match="photos of 16 px are too small"):
        VaeObjective.build(new_vae(), vae_params(adversarial=off | {"weight": 1.0, "num_halvings": 3}), size=16)
    untrained = vae_params(adversarial=off | {"weight": 1.0, "num_halvings": 3}, perceptual=look, steps=0)
    assert VaeObjective.build(new_vae(), untrained, size=16).discriminator is None  # nothing is trained, so nothing is needed


def test_the_shipped_classifier_gives_a_gradient_from_the_last_to_the_first_layer_of_the_decoder():
    net = VaeObjective.build(new_vae(), vae_params(perceptual={"weight": 0.1}), size=32)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reconstruction, _, _ = net.bound.vae(images, torch.zeros(2, 4, 16, 16))
    distance = net.perceptual(images, reconstruction).mean()
    assert 0.01 < float(distance.detach()) < 2
    ends = [net.bound.vae.decoder.conv_in.weight, net.bound.vae.decoder.conv_out.weight]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in torch.autograd.grad(distance, ends))
