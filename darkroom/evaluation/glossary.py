"""What each number of metrics.json says, in one plain sentence, in the order in which the report shows them."""

from collections.abc import Mapping

from darkroom.evaluation.report import Number

GLOSSARY: dict[str, tuple[str, str]] = {  # key in metrics.json -> name, meaning
    "prompt_adherence": (
        "Prompt adherence", "Share of the samples whose cat has the coat colour that the prompt asks for."),
    "prompt_adherence_photos": (
        "Prompt adherence of photos", "The same measure on held-out pictures with their own captions: what a perfect model would reach."),
    "kid": (
        "KID", "Distance of samples from held-out photos, unbiased whatever their number; 0 means no difference, smaller is better."),
    "kid_standard_error": (
        "Standard error of KID", "Two KIDs less than two or three of these apart do not differ; it shrinks with more samples and photos."),
    "frechet_distance": (
        "Fréchet distance", "FID's formula in the features named below; few pictures make it larger, so compare it only with its floor."),
    "frechet_distance_floor": (
        "Floor of the Fréchet distance", "The same between two sets of training photos of these sizes: what a perfect model reaches."),
    "precision": (
        "Precision", "Share of samples that lie among the held-out photos: are they plausible?"),
    "recall": (
        "Recall", "Share of held-out photos that lie among the samples: is everything drawn that there is?"),
    "density": (
        "Density", "How densely photos lie around the samples; near 1 for a perfect model, and less sensitive to outliers than precision."),
    "coverage": (
        "Coverage", "Share of held-out photos that have a sample in their neighbourhood; near 1 for a perfect model."),
    "copied_fraction": (
        "Copied fraction", "Share of samples closer to a training photo than half of the held-out photos are: 0.5 if fresh, 1 if copied."),
    "clip_score": (
        "CLIP score", "How well samples fit their prompts (100 times the cosine), as seen by this run's own CLIP."),
    "clip_score_photos": (
        "CLIP score of photos", "The same for held-out photos and their own captions: what to aim at."),
    "clip_score_chance": (
        "CLIP score by chance", "The same for samples and prompts that are not theirs: a model that does not listen gets this."),
    "retrieval_accuracy": (
        "Retrieval accuracy", "Share of samples whose own prompt fits them best among all prompts."),
    "retrieval_accuracy_photos": (
        "Retrieval accuracy of photos", "The same for held-out photos and their captions."),
    "reconstruction_psnr": (
        "Reconstruction PSNR", "How exactly the VAE gives held-out photos back, in dB; no sample can be sharper than that."),
    "reconstruction_ssim": (
        "Reconstruction SSIM", "How much of their structure is kept; 1 is all."),
    "photo_bits_per_dim": (
        "Bits per pixel value of photos", "What a held-out photo costs at most a colour value, by VAE and U-Net; knowing nothing costs 8."),
    "photo_bits_per_dim_standard_error": (
        "Standard error of these bits", "How well so few photos speak for others; two models on the same photos compare more exactly."),
    "vae_bits_per_dim": (
        "Bits by the VAE alone", "The same with plain normal latents instead of the U-Net's: what the U-Net saves is the difference."),
    "vae_elbo_nats": (
        "Evidence lower bound of the VAE", "At least this log-likelihood (in nats) has a held-out photo by the VAE; larger is better."),
    "latent_bits_total": (
        "Bits per latent", "What a normalised latent costs at most, by the U-Net; plain normal noise costs 2.05, less is better."),
    "latent_bits_prior": (
        "Bits of the last step", "The part L_T of them: what is still seen of a photo at the highest noise level; should be near 0."),
    "latent_bits_chain": (
        "Bits of the chain", "The part of all steps from noise to nearly clean: what the U-Net does not guess."),
    "latent_bits_decoder": (
        "Bits of the first step", "The part L_0: a density of the latent given the nearly clean one, so it is below 0."),
}  # fmt: skip


def explain(numbers: Mapping[str, float]) -> list[Number]:
    """The numbers with their names and meanings, those that are there."""
    assert set(numbers) <= set(GLOSSARY)
    return [Number(name, numbers[key], meaning) for key, (name, meaning) in GLOSSARY.items() if key in numbers]
