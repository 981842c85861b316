"""Commands about photos before training: `demo-data` and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer


def demo_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder")],
    num_cats: Annotated[int, typer.Option(metavar="N", help="Number of images")] = 3000,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of the square images")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the cats")] = 0,
) -> None:
    """Draw captioned cartoon cats to train on.

    Fills a folder with cartoon cats and their captions.
    The same options give the same cats. A folder that contains other files is an error.

    Examples:
      darkroom demo-data data/raw
      darkroom demo-data /tmp/cats --num-cats 500 --size 64 --seed 7
    """
    from darkroom.demo.toy_cats import draw_toy_cats

    draw_toy_cats(folder, num_cats=num_cats, size=size, seed=seed)
    print(f"{num_cats} captioned cats of {size} px are in {folder}.")


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Photos, with captions or without, in any tree of folders")],
    params: Annotated[Path, typer.Option(metavar="FILE", help="Parameter file; only the section `ingest` is used")] = Path("params.yaml"),
) -> None:
    """Report which photos of a folder can be used, and why the others cannot.

    Reads every photo of a folder as the stage `ingest` would, and reports what it found. Nothing is changed.
    Exit status 1 means that `ingest` would fail on the folder.

    Examples:
      darkroom doctor data/raw
      darkroom doctor ~/Pictures/cats --params other-params.yaml
    """
    from darkroom.config import IngestParams
    from darkroom.data.doctor import check_usable, examine, summary
    from darkroom.params_file import load_params

    ingest = load_params(params)["ingest"]
    assert isinstance(ingest, IngestParams)
    findings = examine(folder, ingest)
    for photo in findings.rejected:
        print(f"{photo.source}: {photo.reason.replace('_', ' ')}: {photo.detail}")
    for double in findings.duplicates:
        print(f"{double.source}: the same {double.same} as {double.same_as}")
    print("\n".join(summary(findings, ingest)))
    if ingest.crop == "subject":
        print("the subject is not looked for here; `ingest` does it, and data/doctor/report.html then shows its crops")
    check_usable(findings, folder, max_rejected_fraction=ingest.max_rejected_fraction)
