"""README.md of an exported model: what it is, how to load it, what does not carry over."""

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.sampling.model_folder import DiffusionConfig

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image]
---

# A text-to-image model

A latent diffusion model with the architecture of Stable Diffusion, exported by darkroom {version}. Its licence is that of the
pictures, and of the model if there was one, that it was trained from.

| | |
|---|---|
| pictures | {size} x {size} px in training |
| the U-Net predicts | {prediction} |
| noise schedule | {schedule} |
| drawn with, by default | {drawing} |
"""
PIPELINE = """
## Use

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
picture = pipeline("a prompt", height={size}, width={size}, num_inference_steps={steps}, guidance_scale={guidance_scale:g}).images[0]
```

The scheduler is DDIM; others can be made from its configuration. There is no safety checker.
"""
EXCLAMATION = """
The tokenizer pads with "!", which has number 0, as Stable Diffusion 2.x does; transformers therefore reads a "!" in a prompt as
padding, and darkroom as an exclamation mark.
"""
SINGLE_FILE = """
## Use

For programs that read a whole Stable Diffusion from one file, such as ComfyUI, A1111 and diffusers' `from_single_file`. The
autoencoder has Stable Diffusion's scale of latents (0.18215), which these programs take for granted.
"""
NO_OBSTACLES = "Its architecture, text tower and noise schedule are those of Stable Diffusion, so that they draw what darkroom draws.\n"
OBSTACLES = """## What such programs cannot know

They take for granted that a file is Stable Diffusion 1.x or 2.x in every number that it does not say. This one differs: without
settings of your own they will refuse it or draw something else. The diffusers folder (`darkroom export --format diffusers`)
says all of it.

"""


@dataclass(frozen=True)
class Card:
    version: str  # of darkroom
    size: int  # px, side of the training pictures
    diffusion: DiffusionConfig
    pad_token: str  # zero or end

    def of_pipeline(self) -> str:
        config = self.diffusion
        use = PIPELINE.format(size=self.size, steps=config.steps, guidance_scale=config.guidance_scale)
        return self._head() + use + (EXCLAMATION if self.pad_token == "zero" else "")

    def of_single_file(self, obstacles: Sequence[str]) -> str:
        differences = OBSTACLES + "".join(f"- {sentence}\n" for sentence in obstacles)
        return self._head() + SINGLE_FILE + "\n" + (differences if obstacles else NO_OBSTACLES)

    def _head(self) -> str:
        schedule = self.diffusion.schedule
        ending = ", rescaled to zero terminal SNR" if schedule.zero_terminal_snr else ""
        return HEAD.format(
            version=self.version,
            size=self.size,
            prediction=self.diffusion.prediction,
            schedule=f"{schedule.kind}, {schedule.num_train_timesteps} steps{ending}",
            drawing=f"{self.diffusion.sampler}, {self.diffusion.steps} steps, guidance scale {self.diffusion.guidance_scale:g}",
        )
