"""The parameters of a run as typed, frozen, strict sections: one class per stage, one field per parameter.

A field is the only definition of a parameter: type, range, default (the toy's) and explanation. `darkroom params` turns them into
params.yaml; `python docs/write_parameters.py` writes them into all files of the project that are made from them.
"""

from typing import Annotated

from pydantic import Field, model_validator

from darkroom import choices
from darkroom.param_groups import (
    AdversarialParams,
    ClipModel,
    Count,
    DenoisedPerceptualParams,
    FeatureParams,
    Fraction,
    LinearModel,
    LoraParams,
    NotNegative,
    PerceptualParams,
    Positive,
    PositiveInt,
    RecognisedParams,
    ReconstructionGate,
    SamplerParams,
    ScheduleParams,
    Section,
    UnetModel,
    VaeModel,
    group,
)

Precision = Annotated[
    choices.Precision, Field(description="Precision of the arithmetic; weights are fp32; auto = bf16 where the hardware supports it")
]

# Of several sections, with another default in each
Steps = Annotated[Count, Field(description="Optimizer steps")]
BatchSize = Annotated[PositiveInt, Field(description="Images per optimizer step, over all processes")]
LearningRate = Annotated[Positive, Field(description="Highest learning rate")]
WeightDecay = Annotated[NotNegative, Field(description="Weight decay, on matrices")]
EmaDecay = Annotated[float, Field(ge=0, lt=1, description="Decay of the EMA of the weights; 0 = no EMA")]
ValEvery = Annotated[PositiveInt, Field(description="Optimizer steps between validations")]


class IngestParams(Section):
    """Photos and captions to shards of square images, see docs/ingest.md"""

    side: int = Field(32, ge=16, le=4096, description="Side of the square images, px")
    captions: list[choices.CaptionSource] = Field(
        ["text_file", "metadata", "folder"], description="Sources of captions, in order; the first caption found is used, else the template"
    )
    caption_template: str = Field(
        "a picture of a cat",
        min_length=1,
        description="Caption of a photo without one; may use {folder}, {stem} (the file's name), {subject:cat} (what crop: subject finds)",
    )
    max_caption_characters: PositiveInt = Field(1000, description="Longest caption, characters; a photo with a longer one is rejected")
    min_side: PositiveInt = Field(16, description="Shortest side of a photo, px; smaller photos are rejected")
    max_megapixels: Positive = Field(100, description="Largest photo, megapixels; larger ones are rejected before they are decoded")
    max_rejected_fraction: Fraction = Field(0.2, description="Largest share of rejected photos; above it the stage fails")
    crop: choices.Crop = Field(
        "centre", description="Square that is cut out of a photo; subject = around what a classifier finds, else centre"
    )
    subject: list[int | str] = Field(
        [], description="With crop: subject, ImageNet's names or numbers of it, e.g. [tabby, 285]; [] = found from the photos"
    )
    crops: PositiveInt = Field(
        1, description="Crops of each training photo: the first as crop says, the others moved and scaled a little by chance"
    )
    background: str = Field("white", description="Colour behind transparent pixels, e.g. white or #808080")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of held-out photos, chosen by content hash")
    samples_per_shard: PositiveInt = Field(1000, description="Largest average number of photos per shard")
    format: choices.ImageFormat = Field("png", description="Format of the images in the shards")
    jpeg_quality: int = Field(95, ge=1, le=100, description="JPEG quality, 1 to 100; for format: jpeg")
    num_workers: Count = Field(0, description="Processes; 0 = one per core")

    @model_validator(mode="after")
    def _subject_is_cropped_to(self) -> "IngestParams":
        names_subject = "{subject" in self.caption_template.replace("{{", "")  # two braces are a brace itself
        if names_subject and self.crop == "centre":
            raise ValueError("caption_template names {subject}, which only crop: subject finds; set crop: subject, or another template")
        if self.subject and self.crop == "centre":
            raise ValueError("subject means nothing with crop: centre; set crop: subject, or leave subject: []")
        return self


class TrainingParams(Section):
    """Parameters of every training stage."""

    steps: Steps = 1000
    batch_size: BatchSize = 64
    gradient_accumulation: PositiveInt = Field(1, description="Micro-steps per optimizer step")
    optimizer: choices.OptimizerName = Field("adamw", description="Optimizer; muon = for matrices, with AdamW for the rest")
    lr: LearningRate = 1e-3
    warmup_steps: Count = Field(50, description="Optimizer steps of the warm-up, in which the learning rate rises from 0")
    lr_decay: choices.LrDecay = Field("cosine", description="Course of the learning rate after the warm-up")
    weight_decay: WeightDecay = 0.0
    grad_clip: Positive = Field(1.0, description="Gradient clipping: largest gradient norm")
    ema_decay: EmaDecay = 0.0
    precision: Precision = "auto"
    log_every: PositiveInt = Field(20, description="Optimizer steps between two points of the training curves")
    val_every: ValEvery = 200
    checkpoint_every: PositiveInt = Field(200, description="Optimizer steps between checkpoints; a killed run resumes from the last one")
    num_processes: PositiveInt = Field(1, description="Processes, one per device")
    seed: Count = Field(0, description="Seed of weights, data order and noise")

    @property
    def micro_batch(self) -> int:
        """Images per process and micro-step."""
        return self.batch_size // (self.num_processes * self.gradient_accumulation)

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainingParams":
        parts = self.num_processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of num_processes x gradient_accumulation "
                f"({self.num_processes} x {self.gradient_accumulation} = {parts})"
            )
        return self


class TrainClipParams(TrainingParams):
    """Text encoder and image encoder (CLIP), see docs/train_clip.md"""

    steps: Steps = 250
    batch_size: BatchSize = 128
    weight_decay: WeightDecay = 0.1
    val_every: ValEvery = 100
    mode: choices.ClipMode = Field(
        "scratch", description="scratch = new weights; finetune = train those of `pretrained`; pretrained = use them as they are"
    )
    pretrained: str = Field(
        "",
        description='ARCH::TAG, e.g. ViT-B-32::laion2b_s34b_b79k, ARCH::FILE, hf-hub:OWNER/NAME, a folder or models:/NAME@ALIAS; "" = new',
    )
    text_layer: choices.TextLayerOrSource = Field(
        "source", description="Hidden states that the U-Net attends to; source = as in the folder `pretrained`, else last"
    )
    pad_token: choices.PadTokenOrSource = Field(
        "source", description="Padding of short captions; end = the end token; source = as in the folder `pretrained`, else zero"
    )
    model: ClipModel = group(ClipModel, "Network of mode: scratch; ignored otherwise")

    @model_validator(mode="after")
    def _source_named(self) -> "TrainClipParams":
        if self.mode != "scratch" and not self.pretrained:
            raise ValueError(f"mode: {self.mode} needs `pretrained:`, e.g. ViT-B-32::laion2b_s34b_b79k or a local folder")
        return self


class TrainVaeParams(TrainingParams):
    """Autoencoder (VAE), see docs/train_vae.md"""

    steps: Steps = 800
    batch_size: BatchSize = 32
    lr: LearningRate = 2e-3
    kind: choices.AutoencoderKind = Field(
        "kl", description="Autoencoder; kl = a network, trained; linear = computed from the photos; pretrained = that of init, as it is"
    )
    init: str = Field(
        "",
        description="VAE to start from: a diffusers folder, hf-hub:OWNER/NAME/FOLDER or models:/NAME@ALIAS, used as it is with steps: 0; "
        "empty = new weights",
    )
    init_sha256: str = Field("", description="Hash that the VAE of init must have: content.init in data/vae/index.json; empty = any")
    model: VaeModel = group(VaeModel, "Network of kind: kl with new weights; ignored with init")
    linear: LinearModel = group(LinearModel, "Principal components of patches, for kind: linear; ignored otherwise")
    likelihood: choices.Likelihood = Field("gaussian", description="Likelihood of a pixel given its latents")
    decoder_scale: Positive = Field(
        0.1, description="Standard deviation (gaussian) or scale (laplace) of the likelihood; pixels lie in [-1, 1]"
    )
    learn_scale: bool = Field(False, description="Train decoder_scale with the weights, starting from its value here")
    kl_weight: NotNegative = Field(1.0, description="Weight of the KL term; 1 = the evidence lower bound")
    perceptual: PerceptualParams = group(PerceptualParams, "Loss on the features of a classifier")
    adversarial: AdversarialParams = group(AdversarialParams, "Loss of a patch discriminator")
    num_pictures: PositiveInt = Field(16, description="Held-out reconstructions in the preview")

    @model_validator(mode="after")
    def _terms_agree(self) -> "TrainVaeParams":
        if self.learn_scale and self.likelihood == "bernoulli":
            raise ValueError("likelihood: bernoulli has no scale to learn; set learn_scale: false, or take gaussian or laplace")
        if self.adversarial.weight and self.steps and self.adversarial.start_step >= self.steps:
            raise ValueError(
                f"adversarial.start_step ({self.adversarial.start_step}) is never reached in {self.steps} steps; lower it, "
                "or set adversarial.weight: 0.0"
            )
        return self


class CacheLatentsParams(Section):
    """Posterior moments of all photos and token embeddings of all captions, see docs/cache_latents.md"""

    gate: ReconstructionGate = group(
        ReconstructionGate, "Required of held-out reconstructions before latents are cached; null = not required"
    )
    batch_size: PositiveInt = Field(64, description="Images per batch")
    flip: bool = Field(True, description="Cache each crop mirrored, too; training draws one of all views of a photo")
    precision: Precision = "auto"
    samples_per_shard: PositiveInt = Field(1000, description="Largest average number of photos, or of captions, per shard")


class TrainUnetParams(TrainingParams):
    """Denoiser: a U-Net on cached latents, see docs/train_unet.md"""

    weight_decay: WeightDecay = 0.01
    ema_decay: EmaDecay = 0.995
    init: str = Field(
        "", description="U-Net to start from: MODEL/unet or models:/NAME@ALIAS, used as it is with steps: 0; empty = new weights"
    )
    lora: LoraParams = group(LoraParams, "LoRA adapter that is trained instead of the weights of init")
    gradient_checkpointing: bool = Field(False, description="Keep less for the backward pass: less memory, a third more arithmetic")
    model: UnetModel = group(UnetModel, "Network of new weights; ignored with init")
    schedule: ScheduleParams = group(ScheduleParams, "Noise level of each timestep")
    prediction: choices.Prediction = Field(
        "v_prediction",
        description="What the U-Net predicts; sample = the clean latents, flow = noise - sample, preconditioned = for linear autoencoders",
    )
    loss_weighting: choices.LossWeighting = Field("min_snr", description="Weight of each timestep in the loss")
    min_snr_gamma: Positive = Field(5.0, description="For min_snr and soft_min_snr: weights fall above this signal-to-noise ratio")
    p2_gamma: NotNegative = Field(1.0, description="For p2: the larger, the less nearly clean timesteps count")
    perceptual: DenoisedPerceptualParams = group(
        DenoisedPerceptualParams, "Loss on the features of a classifier, of decoded denoised latents"
    )
    timesteps: choices.TimestepDraw = Field("uniform", description="How training draws timesteps; quasi_random = more evenly per batch")
    lognormal_mean: float = Field(0.0, description="For lognormal: mean of log sigma")
    lognormal_std: Positive = Field(1.0, description="For lognormal: standard deviation of log sigma")
    noise_offset: NotNegative = Field(
        0.0, description="Standard deviation of noise that is constant per channel, added to the noise; 0 = none, else about 0.1"
    )
    input_perturbation: NotNegative = Field(
        0.0, description="Standard deviation of noise that the U-Net sees but must not predict; 0 = none, else about 0.1"
    )
    caption_dropout: Fraction = Field(0.1, description="Share of captions replaced by the empty prompt, for classifier-free guidance")
    augmentation_labels: bool = Field(
        False, description="Tell the U-Net how the view of a photo is moved, scaled and mirrored, so that samples are none of it"
    )
    sample_every: PositiveInt = Field(400, description="Optimizer steps between previews")
    num_samples: PositiveInt = Field(16, description="Samples per preview, of held-out captions")
    sampling: SamplerParams = group(SamplerParams, "Sampling of previews, and the default of the trained model")

    @model_validator(mode="after")
    def _something_is_adapted(self) -> "TrainUnetParams":
        if self.lora.rank and not self.init:
            raise ValueError("lora.rank above 0 adapts a trained U-Net: name its folder in `init`, or set lora.rank: 0")
        return self

    @model_validator(mode="after")
    def _noise_can_be_told(self) -> "TrainUnetParams":
        if self.prediction == "epsilon" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction: epsilon cannot have schedule.zero_terminal_snr: true, because pure noise says nothing about the "
                "image; take v_prediction, sample or flow"
            )
        return self


class EvaluateParams(Section):
    """Samples of held-out captions, and metrics of them, see docs/evaluate.md"""

    num_samples: int = Field(256, ge=2, description="Samples, drawn from the captions of held-out photos")
    batch_size: PositiveInt = Field(64, description="Samples per batch")
    sampling: SamplerParams = group(SamplerParams, "How samples are drawn")
    seed: Count = Field(0, description="Sample i is drawn with seed + i")
    features: FeatureParams = group(FeatureParams, "Features in which distances are measured")
    recognised: RecognisedParams = group(RecognisedParams, "The subject that a classifier looks for in photos and samples")
    num_neighbours: PositiveInt = Field(3, description="Nearest neighbours (k) of precision and recall")
    num_grid: PositiveInt = Field(32, description="Images per grid of the report")
    champion: str = Field("", description="Model that draws the same beside this one: a folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    num_processes: PositiveInt = Field(1, description="Processes that draw samples, one per device; they change no number")


class RegisterParams(Section):
    """A version in the MLflow registry, and the gate, see docs/register.md"""

    model_name: str = Field("darkroom", min_length=1, description="Name in the MLflow registry")
    metric: str = Field("kid", min_length=1, description="Metric of metrics.json that decides; lower is better")
    standard_errors: NotNegative = Field(2.0, description="Standard errors by which a champion must be better than the one before it")
    max_copied_fraction: Fraction = Field(
        0.01, description="Largest copied_fraction_low of a champion: the share of samples that are surely copies"
    )
    min_progress: Fraction = Field(
        0.5, description="Part of the way from chance to photos that the metric of a champion has gone; 0 = no better than chance is enough"
    )


SECTIONS: dict[str, type[Section]] = {
    "ingest": IngestParams,
    "train_clip": TrainClipParams,
    "train_vae": TrainVaeParams,
    "cache_latents": CacheLatentsParams,
    "train_unet": TrainUnetParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
}
