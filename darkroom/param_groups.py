"""Groups of parameters inside the sections of stages: networks, terms of the loss, noise schedule, sampling, features.

How a field is written: see `darkroom.config`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from darkroom import choices

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Frozen and strict: no unknown key, no text where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def group(kind: type[Section], description: str) -> Any:
    """A field of a section that is a section itself, with the defaults of its class."""
    return Field(default_factory=kind, description=description)


class ClipModel(Section):
    embed_dim: PositiveInt = Field(64, description="Width of the space that images and captions share")
    image_size: PositiveInt = Field(32, description="Side to which images are resized, px")
    patch_size: PositiveInt = Field(8, description="Side of a patch of the image encoder, px")
    vision_width: PositiveInt = Field(96, description="Channels of the image encoder")
    vision_layers: PositiveInt = Field(3, description="Transformer blocks of the image encoder")
    text_width: PositiveInt = Field(96, description="Channels of the text encoder: width of the token embeddings")
    text_layers: PositiveInt = Field(2, description="Transformer blocks of the text encoder")
    context_length: int = Field(32, ge=8, le=77, description="Longest caption, tokens including start and end token; 8 to 77")


class VaeModel(Section):
    latent_channels: PositiveInt = Field(4, description="Channels of the latents")
    block_out_channels: list[PositiveInt] = Field(
        [32, 64, 64], min_length=1, description="Channels per resolution; each one after the first halves the side"
    )
    layers_per_block: PositiveInt = Field(1, description="Residual blocks per resolution")
    norm_num_groups: PositiveInt = Field(16, description="Groups of GroupNorm; must divide all channel counts")
    mid_block_add_attention: bool = Field(False, description="Self-attention at the lowest resolution")


class LinearModel(Section):
    patch_size: PositiveInt = Field(8, description="Side of a patch, px; the side of the photos is divided by it")
    latent_channels: PositiveInt = Field(48, description="Principal components of a patch: channels of the latents")

    @model_validator(mode="after")
    def _patch_has_components(self) -> "LinearModel":
        if self.latent_channels > (most := 3 * self.patch_size**2):
            raise ValueError(
                f"linear.latent_channels is {self.latent_channels}, but a patch of {self.patch_size} px has {most} values: lower it, "
                "or raise linear.patch_size"
            )
        return self


class RecognisedParams(Section):
    classes: list[int | str] = Field(
        [], description="Classes of the subject: ImageNet's names or numbers, e.g. [tabby, 285]; [] = found from the training photos"
    )


class ReconstructionGate(Section):
    min_psnr: Positive | None = Field(22.0, description="Required PSNR, dB")
    min_ssim: float | None = Field(0.75, ge=-1, le=1, description="Required SSIM; 1 = equal images")
    max_frechet: NotNegative | None = Field(5.0, description="Largest Fréchet distance to the photos, in features of the run's own CLIP")


class ClassifierPixels(Section):
    channels: choices.ChannelOrder = Field("rgb", description="Channel order that the classifier of torchvision was trained on")
    scale: Positive = Field(1.0, description="Pixel values are 0 to scale before mean and std; 1 for torchvision's weights")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3, description="Subtracted from the pixels, per channel")
    std: list[float] = Field([0.229, 0.224, 0.225], min_length=3, max_length=3, description="Divides the pixels, per channel")

    def changed_pixels(self) -> list[str]:
        """Names of the parameters of this group that are not torchvision's."""
        return [name for name, field in ClassifierPixels.model_fields.items() if getattr(self, name) != field.default]


class PerceptualParams(ClassifierPixels):
    weight: NotNegative = Field(0.0, description="Weight in the loss, e.g. 0.1; 0 = off, no classifier is loaded")
    arch: str = Field("", description='Classifier: a name in torchvision; "" = the SqueezeNet that comes with Darkroom')
    weights: str = Field("", description='With arch: local .safetensors file with its weights; "" = torchvision\'s own, downloaded')
    layers: list[str] = Field([], description="Names of the modules whose outputs are compared; [] without arch = those of LPIPS")

    @model_validator(mode="after")
    def _network_named(self) -> "PerceptualParams":
        if self.weight and self.arch and not self.layers:
            raise ValueError("perceptual.arch needs perceptual.layers, e.g. [features.3]; leave arch empty for Darkroom's SqueezeNet")
        if not self.arch and (wrong := [*(["weights"] if self.weights else []), *self.changed_pixels()]):
            raise ValueError(f"perceptual.{wrong[0]} needs perceptual.arch; Darkroom's SqueezeNet has weights and pixels of its own")
        return self


class DenoisedPerceptualParams(PerceptualParams):
    max_sigma: Positive = Field(
        2.0, description="Highest noise level at which it counts, as standard deviation of the noise over that of the latents"
    )


class AdversarialParams(Section):
    weight: NotNegative = Field(0.0, description="Weight in the loss, times the ratio of gradients that balances it; 0 = off")
    start_step: Count = Field(0, description="First step with the discriminator: when reconstructions no longer improve")
    channels: PositiveInt = Field(32, description="Channels of the discriminator's first layer")
    num_halvings: PositiveInt = Field(2, description="Halvings of the side by the discriminator; 2 = patches of 34 px, 3 = 70 px")


class UnetModel(Section):
    block_out_channels: list[PositiveInt] = Field([64, 128], min_length=1, description="Channels per resolution of the latents")
    attention: list[bool] = Field([True, True], min_length=1, description="Cross-attention to the caption, per resolution")
    layers_per_block: PositiveInt = Field(1, description="Residual blocks per resolution")
    attention_head_dim: PositiveInt = Field(32, description="Channels per attention head")
    norm_num_groups: PositiveInt = Field(16, description="Groups of GroupNorm; must divide all channel counts")

    @model_validator(mode="after")
    def _levels_agree(self) -> "UnetModel":
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError(
                f"model.attention has {len(self.attention)} entries, model.block_out_channels "
                f"{len(self.block_out_channels)}: one each per resolution"
            )
        return self


class LoraParams(Section):
    rank: Count = Field(0, description="Rank of the matrices, e.g. 16; 0 = off, all weights are trained")
    alpha: PositiveInt = Field(16, description="The adapter is scaled by alpha / rank")
    conv: bool = Field(False, description="Adapt convolutions too, not only the projections of attention")


class ScheduleParams(Section):
    kind: choices.ScheduleKind = Field("cosine", description="Noise schedule; scaled_linear is Stable Diffusion's, flow rectified flow's")
    num_train_timesteps: int = Field(1000, ge=2, description="Timesteps of training")
    beta_start: float = Field(0.00085, gt=0, lt=1, description="First beta; ignored by cosine and flow")
    beta_end: float = Field(0.012, gt=0, lt=1, description="Last beta; ignored by cosine and flow")
    zero_terminal_snr: bool = Field(False, description="Stretch the schedule so that the last timestep is pure noise; not with epsilon")


class SamplerParams(Section):
    sampler: choices.SamplerName = Field("dpmpp_2m", description="Sampler")
    spacing: choices.SpacingName = Field("trailing", description="Spacing of the noise levels")
    steps: PositiveInt = Field(20, description="Sampling steps")
    guidance_scale: NotNegative = Field(2.0, description="Guidance scale; 1 = no guidance")

    @property
    def in_words(self) -> str:
        return f"{self.sampler}, {self.steps} {self.spacing} steps, guidance scale {self.guidance_scale:g}"


class FeatureParams(ClassifierPixels):
    kind: choices.FeatureKind = Field(
        "squeezenet", description="Feature extractor; squeezenet = the one that comes with Darkroom, clip = the run's own"
    )
    arch: str = Field(
        "",
        description="torchvision: e.g. resnet50; timm: e.g. vit_small_patch14_dinov2.lvd142m; open_clip: as in train_clip.pretrained",
    )
    weights: str = Field("", description='torchvision, timm, inception: local .safetensors file with its weights; "" = downloaded')
    side: Count = Field(0, description="torchvision, timm: side to which images are resized, px; 0 = 224, or as timm says")

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> "FeatureParams":
        takes = {
            "torchvision": ("arch", "weights", "side", *ClassifierPixels.model_fields),
            "timm": ("arch", "weights", "side"),
            "inception": ("weights",),
            "open_clip": ("arch",),
        }.get(self.kind, ())
        given = [name for name in ("arch", "weights", "side") if getattr(self, name)] + self.changed_pixels()
        if "arch" in takes and not self.arch:
            raise ValueError(f"features.kind: {self.kind} needs features.arch, the name of a network; see docs/evaluate.md")
        if wrong := [name for name in given if name not in takes]:
            raise ValueError(f"features.{wrong[0]} means nothing with features.kind: {self.kind}; leave it at its default")
        return self
