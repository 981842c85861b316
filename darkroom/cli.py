"""The command `darkroom`: everything beside the pipeline that a person types. The same as `python -m darkroom.cli`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A command imports what it needs inside its function, so that `darkroom --help` is there at once.

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; a `ValueError` becomes one paragraph on stderr and exit status 1."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except ValueError as error:
        sys.exit(f"darkroom {arguments.name}: {error}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom",
        description="Train your own text-to-image model on your own photos. The pipeline itself is `dvc repro`.",
        epilog="`darkroom COMMAND --help` explains a command and gives examples.",
    )
    commands = parser.add_subparsers(title="commands", dest="name", metavar="COMMAND", required=True)
    _add_demo_data(commands)
    _add_doctor(commands)
    _add_sample(commands)
    _add_promote(commands)
    _add_rollback(commands)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, *, summary: str, description: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_demo_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands,
        "demo-data",
        summary="draw captioned cartoon cats to train on",
        description="Fills a folder with cartoon cats and their captions.\n"
        "The same numbers draw the same cats; a folder that holds anything else is refused.",
        examples=["darkroom demo-data data/raw", "darkroom demo-data /tmp/cats --num-cats 500 --size 64 --seed 7"],
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--num-cats", type=int, default=3000, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, metavar="PX", help="side of the square pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other cats (default: %(default)s)")
    parser.set_defaults(command=_demo_data)


def _demo_data(arguments: argparse.Namespace) -> None:
    from darkroom.data.toy_cats import draw_toy_cats

    draw_toy_cats(arguments.folder, num_cats=arguments.num_cats, size=arguments.size, seed=arguments.seed)
    print(f"{arguments.num_cats} captioned cats of {arguments.size} px are in {arguments.folder}.")


def _add_sample(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
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


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands,
        "doctor",
        summary="say which photos of a folder can be used, and why not the others",
        description="Reads every photo of a folder as the stage `ingest` would, and says what it found. Nothing is changed.\n"
        "Exit status 1 means that `ingest` would refuse the folder.",
        examples=["darkroom doctor data/raw", "darkroom doctor ~/Pictures/cats --params presets/photos-64-cpu.yaml"],
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="photos, with captions or without, in any tree of folders")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="its section `ingest` counts (default: %(default)s)"
    )
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    from darkroom.config import IngestParams, load_params
    from darkroom.data.scan import check_usable, examine, summary

    params = load_params(arguments.params)["ingest"]
    assert isinstance(params, IngestParams)
    findings = examine(arguments.folder, params)
    for photo in findings.rejected:
        print(f"{photo.source}: {photo.reason.replace('_', ' ')}: {photo.detail}")
    for double in findings.duplicates:
        print(f"{double.source}: the same {double.same} as {double.same_as}")
    print("\n".join(summary(findings, params)))
    check_usable(findings, arguments.folder, max_rejected_fraction=params.max_rejected_fraction)


def _add_promote(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands,
        "promote",
        summary="make a registered version the champion, whatever the gate said",
        description="Points `champion` at a version of a registered model, and `previous` at the champion until now.",
        examples=["darkroom promote darkroom", "darkroom promote darkroom 3"],
    )
    parser.add_argument("model", metavar="NAME", help="register.model_name of params.yaml")
    parser.add_argument("version", nargs="?", type=int, metavar="VERSION", help="(default: the challenger)")
    parser.set_defaults(command=_promote)


def _promote(arguments: argparse.Namespace) -> None:
    from darkroom.tracking.registry import open_registry, promote

    _print_champion(promote(open_registry(), arguments.model, arguments.version))


def _add_rollback(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands,
        "rollback",
        summary="make the previous champion the champion again",
        description="Swaps `champion` and `previous` of a registered model; doing it twice changes nothing.",
        examples=["darkroom rollback darkroom"],
    )
    parser.add_argument("model", metavar="NAME", help="register.model_name of params.yaml")
    parser.set_defaults(command=_rollback)


def _rollback(arguments: argparse.Namespace) -> None:
    from darkroom.tracking.registry import open_registry, rollback

    _print_champion(rollback(open_registry(), arguments.model))


def _print_champion(change: dict[str, Any]) -> None:
    before, after = change["champion"]["before"], change["champion"]["after"]
    print(f"The champion of `{change['model_name']}` is version {after} now" + (f"; it was version {before}." if before else "."))


if __name__ == "__main__":
    main()
