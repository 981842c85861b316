"""Commands that draw with a trained model: `sample`."""

import argparse
from pathlib import Path

from darkroom.cli.command import Commands, add_command

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def add_sample(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sample",
        summary="draw pictures of prompts with a trained model",
        description="Draws one picture for each pair of prompt and seed: a row for each prompt, a column for each seed.\n"
        "The same prompt, seed and settings draw the same picture.",
        examples=[
            "darkroom sample --model data --prompt 'a sitting orange cat with green eyes, at night' --out cat.png",
            "darkroom sample --model data --prompt 'a black cat' --prompt 'a white cat' --seed 1 --seed 2 --seed 3 --out cats.png",
            "darkroom sample --model models:/darkroom@champion --prompt 'a cat on the beach' --guidance-scale 3 --steps 50 --out cat.png",
        ],
    )
    parser.add_argument(
        "--model",
        default="data",
        metavar="DIR_OR_URI",
        help="a folder with clip/, vae/ and unet/, or models:/NAME@ALIAS from the MLflow registry (default: %(default)s)",
    )
    parser.add_argument("--prompt", action="append", required=True, dest="prompts", metavar="TEXT", help="what to draw; may be given again")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to lead away from (default: nothing)")
    parser.add_argument("--seed", action="append", type=int, dest="seeds", metavar="N", help="may be given again (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"a new picture file: {', '.join(PICTURE_SUFFIXES)}")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; more is slower and finer (default: the model's)")
    parser.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, euler, heun or dpmpp_2m (default: the model's)")
    parser.add_argument(
        "--guidance-scale", type=float, metavar="X", help="how closely to follow the prompt; 1 = no guidance (default: the model's)"
    )
    parser.set_defaults(command=_sample)


def _sample(arguments: argparse.Namespace) -> None:
    _check_picture_file(arguments.out, force=arguments.force)

    from PIL import Image

    from darkroom.evaluation.grid import picture_grid
    from darkroom.provenance import replacing
    from darkroom.sampling import TextToImage

    seeds = arguments.seeds or [0]
    pairs = [(prompt, seed) for prompt in arguments.prompts for seed in seeds]
    images = TextToImage.load(arguments.model).sample(
        [prompt for prompt, _ in pairs],
        seeds=[seed for _, seed in pairs],
        steps=arguments.steps,
        sampler=arguments.sampler,
        guidance_scale=arguments.guidance_scale,
        negative_prompts=None if arguments.negative_prompt is None else [arguments.negative_prompt] * len(pairs),
        show_progress=True,
    )
    grid = images[0] if len(images) == 1 else picture_grid(images, columns=len(seeds))
    with replacing(arguments.out) as file:
        Image.fromarray(grid).save(file, format=Image.registered_extensions()[arguments.out.suffix.lower()])
    print(f"{arguments.out}: {len(images)} picture(s) of {images.shape[2]} x {images.shape[1]} px.")


def _check_picture_file(path: Path, *, force: bool) -> None:
    """Before the model is loaded, which takes longer than reading a message."""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--out {path} should end in one of {', '.join(PICTURE_SUFFIXES)}.")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; name a file.")
    if path.exists() and not force:
        raise ValueError(f"{path} is already there. Name another file, or give --force to replace it.")
