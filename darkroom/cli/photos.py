"""Commands about photos before training: `demo-data` and `doctor`."""

import argparse
from pathlib import Path

from darkroom.cli.command import Commands, add_command


def add_demo_data(commands: Commands) -> None:
    parser = add_command(
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


def add_doctor(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        summary="say which photos of a folder can be used, and why not the others",
        description="Reads every photo of a folder as the stage `ingest` would, and says what it found. Nothing is changed.\n"
        "Exit status 1 means that `ingest` would refuse the folder.",
        examples=["darkroom doctor data/raw", "darkroom doctor ~/Pictures/cats --params other-params.yaml"],
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="photos, with captions or without, in any tree of folders")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="its section `ingest` counts (default: %(default)s)"
    )
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    from darkroom.config import IngestParams
    from darkroom.data.scan import check_usable, examine, summary
    from darkroom.params_file import load_params

    params = load_params(arguments.params)["ingest"]
    assert isinstance(params, IngestParams)
    findings = examine(arguments.folder, params)
    for photo in findings.rejected:
        print(f"{photo.source}: {photo.reason.replace('_', ' ')}: {photo.detail}")
    for double in findings.duplicates:
        print(f"{double.source}: the same {double.same} as {double.same_as}")
    print("\n".join(summary(findings, params)))
    check_usable(findings, arguments.folder, max_rejected_fraction=params.max_rejected_fraction)
