"""A drawing request: the options that `sample`, `invert`, `edit` and `interpolate` share, each typed, explained and checked here.

The command line, the served model and the table in docs/sampling.md are made of its fields. Nothing heavy is imported, so that
`darkroom sample --help` answers at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Annotated, Any, Literal, Self, TypedDict, get_args, get_origin, get_type_hints

from darkroom.choices import SamplerName, SpacingName

Act = Literal["sample", "invert", "edit", "interpolate"]
ONE_AT_A_TIME = ("ode_adaptive",)  # its work for a batch grows with the square of the batch


@dataclass(frozen=True)
class Option:
    """Help, default and limits of a field of `Request`."""

    help: str
    default: str = "the model's"  # in words
    limits: tuple[float, float] = (-inf, inf)
    not_for: tuple[Act, ...] = ()
    served: bool = False  # a parameter of the served model
    command: bool = True  # an option of the command line


class Options(TypedDict, total=False):
    """The fields of `Request` as keyword arguments; None = the default."""

    steps: int | None
    sampler: SamplerName | None
    spacing: SpacingName | None
    guidance_scale: float | None
    guidance_rescale: float | None
    negative_prompt: str | None
    guidance_interval: tuple[float, float] | None
    clip_guidance_scale: float | None
    strength: float | None
    size: tuple[int, int] | None
    batch_size: int | None
    show_progress: bool | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """All options of one drawing, complete and checked; fields without a default take that of the model."""

    steps: Annotated[int, Option("Sampling steps; more steps take longer and are more exact", limits=(1, inf), served=True)]
    sampler: Annotated[SamplerName, Option("Sampler", not_for=("invert", "edit"), served=True)]
    spacing: Annotated[SpacingName, Option("Spacing of the noise levels", served=True)]
    guidance_scale: Annotated[float, Option("How strongly to follow the prompt; 1 = no guidance, at half the cost", served=True)]
    guidance_rescale: Annotated[
        float,
        Option(
            "0 to 1: how much of the contrast from guidance to remove, against overexposed images", default="0", limits=(0, 1), served=True
        ),
    ] = 0.0
    negative_prompt: Annotated[str, Option("Prompt to lead away from", default="the empty prompt", not_for=("edit",), served=True)] = ""
    guidance_interval: Annotated[
        tuple[float, float] | None, Option("First and last timestep with guidance; 0 = the clean image", default="all timesteps")
    ] = None
    clip_guidance_scale: Annotated[
        float, Option("Scale of guidance by the model's own CLIP, e.g. 10; slow", default="0", not_for=("interpolate",))
    ] = 0.0
    strength: Annotated[
        float,
        Option("0 to 1: how much of the image to repaint", default="0.8; masked or edited: 1", limits=(0, 1), not_for=("interpolate",)),
    ] = 1.0
    size: Annotated[
        tuple[int, int] | None, Option("In pixels, e.g. 768x512; multiples of the VAE's stride", default="that of the training images")
    ] = None
    batch_size: Annotated[
        int, Option("Images per batch; changes memory use, not results", default="32", limits=(1, inf), command=False)
    ] = 32
    show_progress: Annotated[bool, Option("Show a progress bar", default="no", command=False)] = False

    @classmethod
    def make(cls, act: Act, defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> Self:
        """The request of the options `asked`. Missing ones and None are filled from `defaults`, then from the fields."""
        names = [name for name, option in OPTIONS.items() if act not in option.not_for]
        for name in asked:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"its options are {', '.join(names)}."
                raise ValueError(f"`{name}` is not an option of `{act}`; {hint}")
        return cls(**{**defaults, **{name: value for name, value in asked.items() if value is not None}})

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value, (low, high) = getattr(self, name), option.limits
            if choices(name) and value not in choices(name):
                raise ValueError(f"{name} is {value!r}; must be one of {', '.join(choices(name))}.")
            if option.limits != (-inf, inf) and not low <= value <= high:
                raise ValueError(f"{name} is {value}; must be at least {low:g}{f' and at most {high:g}' if high < inf else ''}.")
        if self.guidance_interval is not None and not self.guidance_interval[0] <= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval is {self.guidance_interval}; its first timestep must not exceed its last.")

    def batches(self, num: int) -> Sequence[slice]:
        size = 1 if self.sampler in ONE_AT_A_TIME else self.batch_size
        return [slice(start, start + size) for start in range(0, num, size)]


HINTS = {name: get_args(hint) for name, hint in get_type_hints(Request, include_extras=True).items()}
OPTIONS: dict[str, Option] = {name: option for name, (_, option) in HINTS.items()}


def choices(name: str) -> tuple[str, ...]:
    """The names to choose from; none for numbers and texts."""
    kind, _ = HINTS[name]
    return get_args(kind) if get_origin(kind) is Literal else ()
