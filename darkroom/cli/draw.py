"""Commands that draw with a trained model: `sample`, `edit` and `interpolate`."""

import argparse
from pathlib import Path
from typing import Any

from darkroom.cli.command import Commands, add_command
from darkroom.cli.picture_files import add_out, check_in, check_out, parse_size, read_image, read_mask, write_pictures

SAMPLERS = (  # named here too, so that --help need not load torch
    "ddpm, ddpm_beta, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, unipc, euler_maruyama, predictor_corrector, ode_adaptive"
)
SPACINGS = "trailing, leading, karras, exponential or uniform_lambda"


def add_sample(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sample",
        summary="draw pictures of prompts with a trained model",
        description="Draws one picture for each pair of prompt and seed: a row for each prompt, a column for each seed.\n"
        "The same prompt, seed and settings draw the same picture. With --image it begins with a picture, with --mask\n"
        "it draws a part of it anew.",
        examples=[
            "darkroom sample --model data --prompt 'a sitting orange cat with green eyes, at night' --out cat.png",
            "darkroom sample --model data --prompt 'a black cat' --prompt 'a white cat' --seed 1 --seed 2 --seed 3 --out cats.png",
            "darkroom sample --model models:/darkroom@champion --prompt 'a cat on the beach' --guidance-scale 3 --steps 50 --out cat.png",
            "darkroom sample --prompt 'a cat in the snow' --image photo.jpg --strength 0.6 --out snow.png",
            "darkroom sample --prompt 'a cat with a red hat' --image photo.jpg --mask hat.png --out hat_on.png",
        ],
    )
    _add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, dest="prompts", metavar="TEXT", help="what to draw; may be given again")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to lead away from (default: nothing)")
    parser.add_argument("--seed", action="append", type=int, dest="seeds", metavar="N", help="may be given again (default: 0)")
    add_out(parser)
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="a picture to begin with; its middle is cut out and resized to the size that is drawn"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="a picture of the size of IMAGE: white is drawn anew, black stays")
    parser.add_argument("--strength", type=float, metavar="X", help="0 = keep IMAGE, 1 = nothing of it (default: 0.8; with a mask 1)")
    _add_size(parser)
    _add_method(parser)
    parser.add_argument("--sampler", metavar="NAME", help=f"{SAMPLERS} (default: the model's)")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="timesteps that are guided, 0 = the clean picture; at all others the prompt is alone (default: all)",
    )
    parser.add_argument(
        "--clip-guidance-scale",
        type=float,
        default=0.0,
        metavar="X",
        help="how much the model's own CLIP leads towards the prompt, e.g. 10; slow (default: not at all)",
    )
    parser.set_defaults(command=_sample)


def _sample(arguments: argparse.Namespace) -> None:
    check_out(arguments.out, force=arguments.force)
    check_in(arguments.image, "--image")
    check_in(arguments.mask, "--mask")

    from darkroom.sampling import TextToImage

    model = TextToImage.load(arguments.model)
    seeds = arguments.seeds or [0]
    pairs = [(prompt, seed) for prompt in arguments.prompts for seed in seeds]
    images = model.sample(
        [prompt for prompt, _ in pairs],
        seeds=[seed for _, seed in pairs],
        negative_prompts=None if arguments.negative_prompt is None else [arguments.negative_prompt] * len(pairs),
        **_canvas(arguments, arguments.size or model.size),
        **_method(arguments),
        sampler=arguments.sampler,
        guidance_interval=None if arguments.guidance_interval is None else tuple(arguments.guidance_interval),
        clip_guidance_scale=arguments.clip_guidance_scale,
    )
    write_pictures(arguments.out, images, columns=len(seeds))


def _canvas(arguments: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    if arguments.mask is not None and arguments.image is None:
        raise ValueError("--mask says what of a picture is drawn anew: give --image too.")
    return {
        "size": size,
        "image": None if arguments.image is None else read_image(arguments.image, size),
        "mask": None if arguments.mask is None else read_mask(arguments.mask, size, arguments.image),
        "strength": arguments.strength,
    }


def add_edit(commands: Commands) -> None:
    parser = add_command(
        commands,
        "edit",
        summary="draw a photo again under another prompt",
        description="Finds the noise that the model draws the photo from under its own prompt (DDIM inversion), and draws the same\n"
        "noise under another prompt: what the prompts have in common tends to stay.",
        examples=[
            "darkroom edit --image photo.png --prompt 'a sitting black cat, at night' --to 'a sitting white cat, at night' --out white.png",
            "darkroom edit --image photo.png --prompt 'a cat' --to 'a cat with a hat' --to 'a dog' --strength 0.7 --out edits.png",
        ],
    )
    _add_model(parser)
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the photo; its middle is cut out and resized")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the photo shows, in words as the model knows them")
    parser.add_argument("--to", action="append", required=True, dest="edits", metavar="TEXT", help="what to show; may be given again")
    add_out(parser)
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="how much noise is looked for; less keeps more (default: %(default)s)"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=3,
        metavar="N",
        help="evaluations a step on the way to the noise; more is more exact (default: %(default)s)",
    )
    _add_size(parser)
    _add_method(parser)
    parser.set_defaults(command=_edit)


def _edit(arguments: argparse.Namespace) -> None:
    check_out(arguments.out, force=arguments.force)
    check_in(arguments.image, "--image")

    from darkroom.sampling import TextToImage

    model = TextToImage.load(arguments.model)
    image = read_image(arguments.image, arguments.size or model.size)
    num = len(arguments.edits)
    noise = model.invert(
        image,
        [arguments.prompt],
        strength=arguments.strength,
        steps=arguments.steps,
        spacing=arguments.spacing,
        iterations=arguments.iterations,
        show_progress=True,
    )
    images = model.sample(
        arguments.edits,
        noise=noise.expand(num, -1, -1, -1),
        image=image,
        strength=arguments.strength,
        sampler="ddim",
        negative_prompts=[arguments.prompt] * num,  # guidance leads from what is there to what should be
        **_method(arguments),
    )
    write_pictures(arguments.out, images, columns=num)


def add_interpolate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "interpolate",
        summary="draw the pictures between two seeds or two prompts",
        description="Draws a strip of pictures on the way from one prompt and seed to the next: contexts are mixed evenly, noises\n"
        "turned from one to the other. Give two or more prompts, or seeds, or both (then as many of each).",
        examples=[
            "darkroom interpolate --prompt 'a sitting black cat, at night' --seed 1 --seed 2 --out seeds.png",
            "darkroom interpolate --prompt 'a black cat' --prompt 'a white cat' --seed 7 --num 9 --out coats.png",
        ],
    )
    _add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, dest="prompts", metavar="TEXT", help="a stop; may be given again")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to lead away from (default: nothing)")
    parser.add_argument("--seed", action="append", type=int, dest="seeds", metavar="N", help="a stop; may be given again (default: 0)")
    parser.add_argument("--num", type=int, default=7, metavar="N", help="pictures, with the first and the last stop (default: %(default)s)")
    add_out(parser)
    _add_size(parser)
    _add_method(parser)
    parser.add_argument("--sampler", metavar="NAME", help="one that draws no fresh noise: ddim, euler, heun, dpmpp_2m, unipc, ode_adaptive")
    parser.set_defaults(command=_interpolate)


def _interpolate(arguments: argparse.Namespace) -> None:
    check_out(arguments.out, force=arguments.force)

    from darkroom.sampling import TextToImage

    images = TextToImage.load(arguments.model).interpolate(
        arguments.prompts,
        seeds=arguments.seeds or [0],
        num=arguments.num,
        negative_prompt=arguments.negative_prompt,
        size=arguments.size,
        sampler=arguments.sampler,
        **_method(arguments),
    )
    write_pictures(arguments.out, images, columns=arguments.num)


# ---- what the three have in common


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="data",
        metavar="DIR_OR_URI",
        help="a folder with clip/, vae/ and unet/, or models:/NAME@ALIAS from the MLflow registry (default: %(default)s)",
    )


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="px, e.g. 768x512 (default: that of the training pictures)")


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; more is slower and finer (default: the model's)")
    parser.add_argument("--spacing", metavar="NAME", help=f"of the noise levels: {SPACINGS} (default: the model's)")
    parser.add_argument(
        "--guidance-scale", type=float, metavar="X", help="how closely to follow the prompt; 1 = no guidance (default: the model's)"
    )
    parser.add_argument(
        "--guidance-rescale", type=float, default=0.0, metavar="X", help="0 to 1, against overexposed pictures (default: %(default)s)"
    )


def _method(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "spacing", "guidance_scale", "guidance_rescale")
    return {name: getattr(arguments, name) for name in names} | {"show_progress": True}
