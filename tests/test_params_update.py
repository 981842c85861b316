"""`darkroom params --update`: what changes, what stays, what is refused."""

from pathlib import Path

import pytest

from darkroom.cli.params import params
from darkroom.config import SECTIONS
from darkroom.params_file import defaults, load_params, merged, read_preset, read_yaml
from darkroom.params_text import entries, params_text, update_file

ROOT = Path(__file__).parents[1]
BEFORE = [(entry.name, entry.value) for entry in entries({})]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The defaults, as `darkroom params` writes them."""
    path = tmp_path / "params.yaml"
    path.write_text(params_text({}, command="darkroom params"), encoding="utf-8")
    return path


def edit(path: Path, *replacements: tuple[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return text


def cut(path: Path, begin: str, end: str) -> None:
    """Take the lines from the one that contains `begin` to before the one that contains `end` out of the file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if begin in line)
    last = next(index for index, line in enumerate(lines) if end in line and index > first)
    path.write_text("".join(lines[:first] + lines[last:]), encoding="utf-8")


def test_what_is_up_to_date_is_not_touched(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.stat()
    params(update=file)
    assert capsys.readouterr().out == f"{file} is up to date.\n"
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("preset", PRESETS)
def test_defaults_updated_by_a_preset_are_what_the_preset_prints(file: Path, preset: str) -> None:
    update_file(file, preset)
    assert file.read_text(encoding="utf-8") == params_text(read_preset(preset), command=f"darkroom params {preset}")


def test_one_preset_after_another_leaves_nothing_of_the_first(file: Path) -> None:
    for preset in [*PRESETS, *reversed(PRESETS)]:
        update_file(file, preset)
        assert file.read_text(encoding="utf-8") == params_text(read_preset(preset), command=f"darkroom params {preset}")


def test_every_change_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params("photos-64-cpu", update=file)
    lines = capsys.readouterr().out.splitlines()
    assert "train_vae.steps: 800 -> 0" in lines
    assert "cache_latents.gate.max_frechet: 5.0 -> null" in lines
    assert "train_unet.model.block_out_channels: [64, 128] -> [128, 256]" in lines
    assert len(lines) == len([entry for entry in entries(read_preset("photos-64-cpu")) if (entry.name, entry.value) not in BEFORE])


def test_values_and_comments_of_the_user_survive(file: Path) -> None:
    mine = edit(
        file,
        ("  lr: 2e-3                      # Highest learning rate", "  lr:   3.0E-4  # mine!"),
        ("train_vae:", "# look here\n\n\ntrain_vae:"),
        ("  background: white             #", "  background: 'black'  #"),
        ("  side: 32                      # Side", "  side: 32  # my cats are small; Side"),
    )
    report = update_file(file, "toy-quick")
    text = file.read_text(encoding="utf-8")
    for kept in ("  lr:   3.0E-4  # mine!\n", "# look here\n\n\ntrain_vae:", "  background: 'black'  #", "# my cats are small"):
        assert kept in mine
        assert kept in text
    assert "train_vae.lr: 3e-4 kept; the preset has 2e-3" in report
    assert "ingest.background: black kept; the preset has white" in report
    changes = merged(read_preset("toy-quick"), {"train_vae": {"lr": 3e-4}, "ingest": {"background": "black"}})
    assert read_yaml(file) == merged(defaults(), changes)


def test_a_value_that_the_user_changed_after_a_preset_survives_the_next_one(file: Path) -> None:
    update_file(file, "sd15-lora")
    edit(file, ("    rank: 16 ", "    rank: 4  "))
    report = update_file(file, "sd15-finetune")
    assert "train_unet.lora.rank: 4 kept; the preset has 0" in report
    assert read_yaml(file) == merged(merged(defaults(), read_preset("sd15-finetune")), {"train_unet": {"lora": {"rank": 4}}})


def test_a_preset_that_is_gone_leaves_its_values(file: Path) -> None:
    mine = file.parent / "mine.yaml"
    mine.write_text("train_vae: {lr: 7e-3}\n")
    update_file(file, str(mine))
    mine.unlink()
    assert "train_vae.lr: 7e-3 kept; the preset has 2e-3" in update_file(file, "toy-quick")


@pytest.mark.parametrize(
    ("begin", "end", "added"),
    [
        ("  num_workers:", "train_clip:", ["ingest.num_workers: added, 0"]),  # the last of a section
        ("  side: 32", "captions:", ["ingest.side: added, 32"]),  # the first
        ("    arch:", "    layers:", ['train_vae.perceptual.arch: added, ""', 'train_vae.perceptual.weights: added, ""']),
        (
            "  lora:",
            "  gradient_checkpointing:",
            ["train_unet.lora.rank: added, 0", "train_unet.lora.alpha: added, 16", "train_unet.lora.conv: added, false"],
        ),
        ("register:", "  model_name:", []),
    ],
)
def test_keys_that_are_new_are_added_with_default_and_comment(file: Path, begin: str, end: str, added: list[str]) -> None:
    complete = file.read_text(encoding="utf-8")
    if not added:  # a whole section
        added = [f"register.{key}: added, {value}" for key, value in defaults()["register"].items()]
        file.write_text(complete[: complete.index("\nregister:")], encoding="utf-8")
    else:
        cut(file, begin, end)
        if begin == "  num_workers:":  # the empty line before the next section went too
            edit(file, ("train_clip:", "\ntrain_clip:"))
    assert update_file(file) == added
    assert file.read_text(encoding="utf-8") == complete


def test_a_section_in_the_middle_is_added_where_it_belongs(file: Path) -> None:
    complete = file.read_text(encoding="utf-8")
    cut(file, "evaluate:  #", "register:  #")
    update_file(file)
    assert list(read_yaml(file)) == list(SECTIONS)
    assert file.read_text(encoding="utf-8") == complete


def test_a_file_in_another_style_is_updated_in_its_own(file: Path) -> None:
    edit(
        file,
        ("  captions: [text_file, metadata, folder]", "  captions:\n    - text_file\n    - folder  # no tables\n  #"),
        (
            "    block_out_channels: [64, 128]",
            "    block_out_channels:\n      - 64\n      - 128\n      #",
        ),
        ("    max_frechet: 5.0            #", "    max_frechet:  #"),
    )
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    report = update_file(file, "photos-64-cpu")
    assert "train_unet.model.block_out_channels: [64, 128] -> [128, 256]" in report
    assert "cache_latents.gate.max_frechet" not in " ".join(report)  # empty is null
    assert "# no tables" in file.read_text(encoding="utf-8")
    assert load_params(file)["ingest"].captions == ["text_file", "folder"]  # type: ignore[attr-defined]
    edit(file, ("    max_frechet:  #", "    max_frechet:  # still "), ("Made by `darkroom params photos-64-cpu`", "Made by hand"))
    mine = file.parent / "mine.yaml"
    mine.write_text("cache_latents: {gate: {max_frechet: 3.0}}\n")
    assert "cache_latents.gate.max_frechet: null -> 3.0" in update_file(file, str(mine))
    assert read_yaml(file)["cache_latents"]["gate"]["max_frechet"] == 3.0


def test_a_file_with_another_indent_gets_new_keys_in_it(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(" " * (len(line) - len(line.lstrip(" "))) + line for line in lines), encoding="utf-8")
    wide = file.read_text(encoding="utf-8")
    cut(file, "        rank:", "        alpha:")
    assert update_file(file) == ["train_unet.lora.rank: added, 0"]
    assert "\n        rank: 0 " in file.read_text(encoding="utf-8")
    assert load_params(file)
    assert wide.count("\n") == file.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  side: 32 ", "  sde: 32 ", "`ingest.sde` is not a parameter; did you mean `ingest.side`?"),
        ("  side: 32 ", "  side: 1 ", "`ingest.side` is 1"),
        ("    rank: 0 ", "    rank: 8 ", "lora.rank above 0 adapts a trained U-Net"),
        ("ingest:  # Photos", "ingest: 5\nregister:  #", "is not valid YAML"),
        ("    conv: false ", "    conv: [false ", "is not valid YAML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_left_as_it_is(file: Path, old: str, new: str, message: str) -> None:
    wrong = edit(file, (old, new))
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        update_file(file, "toy-quick")
    assert message in str(caught.value)
    assert file.read_text(encoding="utf-8") == wrong
    assert [path.name for path in file.parent.iterdir()] == ["params.yaml"]


def test_what_must_be_a_mapping_of_lines_and_is_not_is_refused(file: Path) -> None:
    cut(file, "  lora:", "  gradient_checkpointing:")
    short = file.read_text(encoding="utf-8")
    for value, message in [
        ("5", "`train_unet.lora` must map parameters to their values; found 5"),
        ("{rank: 0}", r"`train_unet\.lora\.alpha` is missing, and cannot be added to a mapping in \{ \}\. Write `train_unet\.lora` as"),
    ]:
        file.write_text(short.replace("  gradient_checkpointing:", f"  lora: {value}\n  gradient_checkpointing:"), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            update_file(file)
    file.write_text(
        short.replace("  gradient_checkpointing:", "  lora: {rank: 0, alpha: 16, conv: false}\n  gradient_checkpointing:"), encoding="utf-8"
    )
    assert update_file(file, "sd15-lora")
    assert read_yaml(file)["train_unet"]["lora"] == {"rank": 16, "alpha": 16, "conv": False}


def test_a_file_that_is_missing_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml is missing\. Make it: `darkroom params > "):
        update_file(tmp_path / "params.yaml")
