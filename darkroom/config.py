"""The parameters of a run as typed, frozen, strict sections: one class a stage, one field a number."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from darkroom import choices

Fraction = Field(ge=0, le=1)
PositiveInt = Field(gt=0)


class Section(BaseModel):
    """Frozen and strict: no unknown key, no text where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class IngestParams(Section):
    side: int = Field(ge=16, le=4096)  # side of the square pictures, px
    captions: list[choices.CaptionSource]  # where to look, first hit wins; the template is last
    caption_template: str = Field(min_length=1)  # {folder} and {stem} may be used; the caption of a photo without one
    max_caption_characters: int = PositiveInt  # a longer caption rejects its photo
    min_side: int = PositiveInt  # px; a photo with a shorter side is rejected
    max_megapixels: float = Field(gt=0)  # declared size above this is rejected before decoding
    max_rejected_fraction: float = Fraction  # above this the stage fails
    background: str  # what shows through transparent pixels: "white", "#808080"
    val_fraction: float = Field(gt=0, lt=1)  # held out, chosen by content hash
    samples_per_shard: int = PositiveInt  # aimed at; membership is a function of the content hash
    format: choices.ImageFormat  # of the pictures in the shards
    jpeg_quality: int = Field(ge=1, le=100)
    num_workers: int = Field(ge=0)  # processes; 0 = one a core


class TrainingParams(Section):
    """What every training stage has."""

    steps: int = Field(ge=0)  # optimizer steps
    batch_size: int = PositiveInt  # pictures per optimizer step over all processes
    gradient_accumulation: int = PositiveInt  # micro-steps an optimizer step is split into
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    lr_decay: choices.LrDecay
    weight_decay: float = Field(ge=0)
    grad_clip: float = Field(gt=0)  # largest gradient norm
    ema_decay: float = Field(ge=0, lt=1)  # 0 = no averaging
    precision: choices.Precision  # of the arithmetic; the weights are fp32
    log_every: int = PositiveInt  # steps
    val_every: int = PositiveInt  # steps
    checkpoint_every: int = PositiveInt  # steps
    num_processes: int = PositiveInt  # started by `accelerate launch`, one a device
    seed: int = Field(ge=0)

    @property
    def micro_batch(self) -> int:
        """Pictures that one process looks at at a time."""
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


class ClipModel(Section):
    """The small two-tower CLIP that `mode: scratch` trains."""

    embed_dim: int = PositiveInt  # of the shared space
    image_size: int = PositiveInt  # px; pictures are resized to it
    patch_size: int = PositiveInt  # px
    vision_width: int = PositiveInt
    vision_layers: int = PositiveInt
    text_width: int = PositiveInt  # width of the token embeddings that the U-Net attends to
    text_layers: int = PositiveInt
    context_length: int = Field(ge=8, le=77)  # tokens, start and end marks included


class TrainClipParams(TrainingParams):
    mode: choices.ClipMode
    pretrained: str  # `ARCH` and weights as `ARCH::TAG_OR_FILE`, `hf-hub:OWNER/NAME` or a local folder; "" in scratch
    text_layer: choices.TextLayerOrSource  # whose hidden states the U-Net attends to; source = as a folder says, else last
    pad_token: choices.PadTokenOrSource  # behind short captions; source = as a folder says, else zero
    model: ClipModel

    @model_validator(mode="after")
    def _source_named(self) -> "TrainClipParams":
        if self.mode != "scratch" and not self.pretrained:
            raise ValueError(f"mode: {self.mode} needs `pretrained:`, e.g. ViT-B-32::laion2b_s34b_b79k or a local folder")
        return self


class VaeModel(Section):
    latent_channels: int = PositiveInt
    block_out_channels: list[int] = Field(min_length=1)  # one a resolution; each level after the first halves the side
    layers_per_block: int = PositiveInt
    norm_num_groups: int = PositiveInt
    mid_block_add_attention: bool


class ClassifierPixels(Section):
    """The pixels that a classifier was trained on; the defaults are torchvision's."""

    channels: choices.ChannelOrder = "rgb"
    scale: float = Field(default=1.0, gt=0)  # pixels are 0..scale before mean and std
    mean: list[float] = Field(default=[0.485, 0.456, 0.406], min_length=3, max_length=3)
    std: list[float] = Field(default=[0.229, 0.224, 0.225], min_length=3, max_length=3)


class PerceptualParams(ClassifierPixels):
    """A distance in a classifier's features, beside the likelihood."""

    weight: float = Field(ge=0)  # 0 = off, and no network is looked for
    arch: str = ""  # a name in torchvision, e.g. squeezenet1_0
    weights: str = ""  # a local .safetensors file; "" = torchvision's own, downloaded
    layers: list[str] = []  # names of modules whose outputs are compared

    @model_validator(mode="after")
    def _network_named(self) -> "PerceptualParams":
        if self.weight and not (self.arch and self.layers):
            raise ValueError("perceptual.weight above 0 needs perceptual.arch and perceptual.layers (and weights, a local .safetensors)")
        return self


class AdversarialParams(Section):
    """A discriminator of patches, beside the likelihood."""

    weight: float = Field(ge=0)  # 0 = off; times the ratio of gradients that balances it with the likelihood
    start_step: int = Field(ge=0)  # the first step that is judged
    channels: int = PositiveInt  # of the discriminator's first layer
    num_halvings: int = PositiveInt  # of the side; 3 = patches of 70 px


class TrainVaeParams(TrainingParams):
    init: str  # a folder in diffusers' layout to start from; "" = new weights
    model: VaeModel  # of new weights; ignored with `init`
    likelihood: choices.Likelihood  # of a pixel given its latents
    decoder_scale: float = Field(gt=0)  # its standard deviation (gaussian) or scale (laplace), in units of [-1, 1]
    learn_scale: bool  # start from decoder_scale and train it
    kl_weight: float = Field(ge=0)  # 1 = the evidence lower bound
    perceptual: PerceptualParams
    adversarial: AdversarialParams
    num_pictures: int = PositiveInt  # held-out reconstructions that are drawn

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


class ReconstructionGate(Section):
    """What held-out reconstructions must reach before latents are cached; None = not asked."""

    min_psnr: float | None = Field(gt=0)  # dB
    min_ssim: float | None = Field(ge=-1, le=1)
    max_frechet: float | None = Field(ge=0)  # in the features of the run's own CLIP


class CacheLatentsParams(Section):
    gate: ReconstructionGate
    batch_size: int = PositiveInt
    flip: bool  # cache the mirrored picture too; training draws one of the two
    precision: choices.Precision
    samples_per_shard: int = PositiveInt


class UnetModel(Section):
    block_out_channels: list[int] = Field(min_length=1)  # one a resolution
    attention: list[bool] = Field(min_length=1)  # cross-attention at this resolution?
    layers_per_block: int = PositiveInt
    attention_head_dim: int = PositiveInt  # channels a head
    norm_num_groups: int = PositiveInt

    @model_validator(mode="after")
    def _levels_agree(self) -> "UnetModel":
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError(
                f"model.attention has {len(self.attention)} entries, model.block_out_channels "
                f"{len(self.block_out_channels)}: one each per resolution"
            )
        return self


class ScheduleParams(Section):
    kind: choices.ScheduleKind
    num_train_timesteps: int = Field(ge=2)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    zero_terminal_snr: bool  # stretched so that the last step is noise alone


class SamplerParams(Section):
    sampler: choices.SamplerName
    spacing: choices.SpacingName  # of the noise levels
    steps: int = PositiveInt
    guidance_scale: float = Field(ge=0)  # 1 = off


class LoraParams(Section):
    """Small matrices that are trained beside the weights of `init`, which stay as they are."""

    rank: int = Field(ge=0)  # of these matrices; 0 = off, all weights are trained
    alpha: int = PositiveInt  # their product counts alpha / rank times
    conv: bool  # beside convolutions too, not only beside attention's projections


class TrainUnetParams(TrainingParams):
    init: str  # a folder in diffusers' layout with diffusion.json to start from; "" = new weights
    model: UnetModel  # of new weights; ignored with `init`
    lora: LoraParams
    gradient_checkpointing: bool  # keep less in memory, compute a third more
    schedule: ScheduleParams
    prediction: choices.Prediction
    loss_weighting: choices.LossWeighting
    min_snr_gamma: float = Field(gt=0)  # of min_snr and soft_min_snr
    p2_gamma: float = Field(ge=0)
    timesteps: choices.TimestepDraw  # how training draws them
    lognormal_mean: float  # of log sigma
    lognormal_std: float = Field(gt=0)
    noise_offset: float = Field(ge=0)  # standard deviation of a noise that is one number a channel, added to the noise
    input_perturbation: float = Field(ge=0)  # standard deviation of noise that the network sees but is not asked for
    caption_dropout: float = Fraction  # share of captions replaced by the empty prompt, for guidance
    sample_every: int = PositiveInt  # steps between sample pictures
    num_samples: int = PositiveInt  # sample pictures, of held-out captions
    sampling: SamplerParams  # of these pictures, and the default of the trained model

    @model_validator(mode="after")
    def _something_is_adapted(self) -> "TrainUnetParams":
        if self.lora.rank and not self.init:
            raise ValueError("lora.rank above 0 adapts a trained U-Net: name its folder in `init`, or set lora.rank: 0")
        return self

    @model_validator(mode="after")
    def _noise_can_be_told(self) -> "TrainUnetParams":
        if self.prediction == "epsilon" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction: epsilon cannot have schedule.zero_terminal_snr: true, because noise alone tells nothing about the "
                "picture; take v_prediction, sample or flow"
            )
        return self


class FeatureParams(ClassifierPixels):
    """Whose features the distances are measured in."""

    kind: choices.FeatureKind  # clip = the run's own
    arch: str = ""  # torchvision: e.g. squeezenet1_0
    weights: str = ""  # torchvision: a local .safetensors file
    side: int = Field(default=224, gt=0)  # torchvision: px

    @model_validator(mode="after")
    def _classifier_named(self) -> "FeatureParams":
        if self.kind == "torchvision" and not (self.arch and self.weights):
            raise ValueError("features.kind: torchvision needs features.arch and features.weights (a local .safetensors)")
        return self


class EvaluateParams(Section):
    num_samples: int = Field(ge=2)  # pictures that are drawn
    batch_size: int = PositiveInt
    sampling: SamplerParams
    seed: int = Field(ge=0)  # picture i has seed + i
    features: FeatureParams
    num_neighbours: int = PositiveInt  # k of precision and recall
    num_grid: int = PositiveInt  # pictures in the grids


class RegisterParams(Section):
    model_name: str = Field(min_length=1)  # in the MLflow registry
    metric: str = Field(min_length=1)  # of metrics.json, lower is better
    standard_errors: float = Field(ge=0)  # champion only if better by this many standard errors
    max_copied_fraction: float = Fraction  # 0.5 = as far from training photos as fresh photos are, 1 = copies; above: refused


SECTIONS: dict[str, type[Section]] = {
    "ingest": IngestParams,
    "train_clip": TrainClipParams,
    "train_vae": TrainVaeParams,
    "cache_latents": CacheLatentsParams,
    "train_unet": TrainUnetParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
}
