"""The names of every choice that a user makes: parameters, options of commands and registries take them from here."""

from typing import Literal

# Sampling
SamplerName = Literal[
    "ddpm", "ddpm_beta", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler_maruyama",
    "predictor_corrector", "ode_adaptive"
]  # fmt: skip
SpacingName = Literal["trailing", "leading", "karras", "exponential", "uniform_lambda"]

# Diffusion
ScheduleKind = Literal["linear", "quadratic", "sigmoid", "scaled_linear", "cosine", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow", "preconditioned"]  # the words of diffusers, and ours; "sample" is x_0
VarianceKind = Literal["beta_tilde", "beta"]  # of p(x_(t-1) | x_t)

# Training
LossWeighting = Literal["simple", "min_snr", "soft_min_snr", "p2", "variational"]
TimestepDraw = Literal["uniform", "quasi_random", "lognormal"]
AutoencoderKind = Literal["kl", "linear", "pretrained"]
Likelihood = Literal["gaussian", "laplace", "bernoulli"]
OptimizerName = Literal["adamw", "muon"]
LrDecay = Literal["constant", "cosine"]
Precision = Literal["auto", "fp32", "bf16"]

# CLIP
ClipMode = Literal["scratch", "finetune", "pretrained"]
TextLayer = Literal["last", "penultimate"]
TextLayerOrSource = Literal["source", TextLayer]
PadToken = Literal["zero", "end"]
PadTokenOrSource = Literal["source", PadToken]

# Photos, classifiers, files
Crop = Literal["centre", "subject"]  # the square that is cut out of a photo
CaptionSource = Literal["text_file", "metadata", "folder"]
ImageFormat = Literal["png", "jpeg"]
ChannelOrder = Literal["rgb", "bgr"]
FeatureKind = Literal["squeezenet", "torchvision", "timm", "inception", "open_clip", "clip"]
ExportFormat = Literal["diffusers", "single-file"]
