"""Commands that draw with a trained model: `sample`, `edit` and `interpolate`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.cli.image_files import IMAGE_SUFFIXES, check_in, check_out, parse_size, read_image, read_mask, write_images
from darkroom.sampling.request import HINTS, OPTIONS, Act, choices

SIZE = tuple[int, int] | None
METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", tuple[float, float] | None: "FROM TO", SIZE: "WxH"}

Model = Annotated[
    str, typer.Option(metavar="DIR_OR_URI", help="A folder with clip/, vae/ and unet/, or models:/NAME@ALIAS from the MLflow registry")
]
Out = Annotated[Path, typer.Option(metavar="FILE", help=f"A new image file: {', '.join(IMAGE_SUFFIXES)}")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists")]


def drawing_options(act: Act) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's `**options` by the options of `Request`, with their help."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        names = [name for name, option in OPTIONS.items() if option.command and act not in option.not_for]
        command.__signature__ = signature.replace(parameters=[*own, *map(_parameter, names)])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    """None, the default, means the default of the model or of the request."""
    kind, option = HINTS[name]
    names = f": {', '.join(choices(name))}" if choices(name) else ""
    notes = typer.Option(
        metavar=METAVARS.get(kind, "NAME"),
        help=f"{option.help}{names}  [default: {option.default}]",
        show_default=False,
        parser=parse_size if kind == SIZE else None,
    )
    typed: Any = str if kind == SIZE else kind
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[typed, notes])


@drawing_options("sample")
def sample(
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="Prompt; may be given again")],
    out: Out,
    model: Model = "data",
    seed: Annotated[list[int], typer.Option(metavar="N", help="Seed; may be given again")] = [0],  # noqa: B006
    force: Force = False,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Image to start from; its middle is cut out and resized"),
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Image of the size of --image: white is repainted, black stays")] = None,
    **options: Any,
) -> None:
    """Draw images from prompts with a trained model.

    Draws one image for each pair of prompt and seed: a row for each prompt, a column for each seed.
    The same prompt, seed and options give the same image. --image starts from an image; --mask repaints a part
    of it.

    Examples:
      darkroom sample --model data --prompt 'a sitting orange cat with green eyes, at night' --out cat.png
      darkroom sample --model data --prompt 'a black cat' --prompt 'a white cat' --seed 1 --seed 2 --seed 3 --out cats.png
      darkroom sample --model models:/darkroom@champion --prompt 'a cat on the beach' --guidance-scale 3 --steps 50 --out cat.png
      darkroom sample --prompt 'a cat in the snow' --image photo.jpg --strength 0.6 --out snow.png
      darkroom sample --prompt 'a cat with a red hat' --image photo.jpg --mask hat.png --out hat_on.png
    """
    check_out(out, force=force)
    check_in(image, "--image")
    check_in(mask, "--mask")
    if mask is not None and image is None:
        raise ValueError("--mask needs an image to repaint: give --image too.")

    from darkroom.open_model import open_model

    opened = open_model(model)
    size = options.pop("size") or opened.size
    pairs = [(text, number) for text in prompt for number in seed]
    images = opened.sample(
        [text for text, _ in pairs],
        seeds=[number for _, number in pairs],
        image=None if image is None else read_image(image, size),
        mask=None if mask is None or image is None else read_mask(mask, size, image),
        size=size,
        show_progress=True,
        **options,
    )
    write_images(out, images, columns=len(seed))


@drawing_options("edit")
def edit(
    image: Annotated[Path, typer.Option(metavar="FILE", help="Photo; its middle is cut out and resized")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Prompt that describes the photo, in words that the model knows")],
    to: Annotated[list[str], typer.Option(metavar="TEXT", help="New prompt; may be given again")],
    out: Out,
    model: Model = "data",
    force: Force = False,
    iterations: Annotated[int, typer.Option(metavar="N", help="Network evaluations per step of the inversion; more is more exact")] = 3,
    **options: Any,
) -> None:
    """Redraw a photo under another prompt.

    Finds the noise from which the model draws the photo under the photo's prompt (DDIM inversion). Then draws from
    this noise under another prompt: content that both prompts share tends to stay.

    Examples:
      darkroom edit --image photo.png --prompt 'a sitting black cat, at night' --to 'a sitting white cat, at night' --out white.png
      darkroom edit --image photo.png --prompt 'a cat' --to 'a cat with a hat' --to 'a dog' --strength 0.7 --out edits.png
    """
    check_out(out, force=force)
    check_in(image, "--image")

    from darkroom.open_model import open_model

    opened = open_model(model)
    photo = read_image(image, options.pop("size") or opened.size)
    images = opened.edit(photo, prompt, to, iterations=iterations, show_progress=True, **options)
    write_images(out, images, columns=len(to))


@drawing_options("interpolate")
def interpolate(
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="Prompt of a stop; may be given again")],
    out: Out,
    model: Model = "data",
    seed: Annotated[list[int], typer.Option(metavar="N", help="Seed of a stop; may be given again")] = [0],  # noqa: B006
    num: Annotated[int, typer.Option(metavar="N", help="Number of images, including those of the first and the last stop")] = 7,
    force: Force = False,
    **options: Any,
) -> None:
    """Draw images between two seeds or two prompts.

    Draws a strip of images from the first prompt or seed (stop) to the last. Give two or more prompts, or two or more
    seeds, or the same number of both. The sampler must be one without fresh noise, e.g. ddim, heun or dpmpp_2m.

    Examples:
      darkroom interpolate --prompt 'a sitting black cat, at night' --seed 1 --seed 2 --out seeds.png
      darkroom interpolate --prompt 'a black cat' --prompt 'a white cat' --seed 7 --num 9 --out coats.png
    """
    check_out(out, force=force)

    from darkroom.open_model import open_model

    images = open_model(model).interpolate(prompt, seeds=seed, num=num, show_progress=True, **options)
    write_images(out, images, columns=num)
