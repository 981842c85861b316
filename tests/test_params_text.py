"""params.yaml, its schema and the tables of the docs: all written from the fields of the sections."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from darkroom import choices
from darkroom.cli.params import params
from darkroom.config import SECTIONS
from darkroom.params_file import defaults, load_params, merged, parse_yaml, read_preset
from darkroom.params_text import SCHEMA, as_text, entries, params_text, schema_text
from docs.write_parameters import generated, with_table

ROOT = Path(__file__).parents[1]
ALL = list(entries({}))


@pytest.mark.parametrize("path", generated(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run `python docs/write_parameters.py`"


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"docs/ingest\.md needs one <!-- parameters: ingest --> and <!-- end of parameters -->"):
        with_table("# ingest", "ingest")


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_every_parameter_is_explained_in_one_line(entry: Any) -> None:
    assert entry.explanation.strip()
    assert "\n" not in entry.explanation
    assert "|" not in entry.explanation  # it would split the cell of a table


def test_the_text_reads_as_the_values_that_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert parse_yaml(params_text({}, command=""), tmp_path) == defaults()
    (tmp_path / "params.yaml").write_text(params_text(read_preset("photos-64-cpu"), command=""))
    ingest = load_params(tmp_path / "params.yaml")["ingest"]
    assert ingest == SECTIONS["ingest"].model_validate(defaults()["ingest"] | read_preset("photos-64-cpu")["ingest"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (100, "100"),
        (22.0, "22.0"),
        (0.0, "0.0"),
        (1e-3, "1e-3"),
        (5e-4, "5e-4"),
        (1e-12, "1e-12"),
        (-2e-3, "-2e-3"),
        (0.00085, "0.00085"),
        (0.012, "0.012"),
        (0.1, "0.1"),
        ([32, 64, 64], "[32, 64, 64]"),
        ([True, None, "rgb"], "[true, null, rgb]"),
        ([], "[]"),
        ("a photo of a cat", "a photo of a cat"),
        ("ViT-B-32::laion2b_s34b_b79k", '"ViT-B-32::laion2b_s34b_b79k"'),
        ("models/sd15/clip", "models/sd15/clip"),
        ("", '""'),
        ("null", '"null"'),
        ("Yes", '"Yes"'),
        ("#808080", '"#808080"'),
        ("{folder}, a photo", '"{folder}, a photo"'),
        ("a: b", '"a: b"'),
        ("a: [b", '"a: [b"'),
        ("a #b", '"a #b"'),
        ("5", '"5"'),
        ("1e-3", '"1e-3"'),
        ("ends in a colon:", '"ends in a colon:"'),
        ("café", "café"),
        ('say "cheese"\n', '"say \\"cheese\\"\\n"'),
    ],
)
def test_a_value_is_written_as_people_write_it_and_read_back_the_same(value: object, text: str) -> None:
    assert as_text(value) == text
    for document in (f"key: {text}  # a comment", f"key: [{text}]", f"{{key: {text}, other: 1}}"):
        read = YAML(typ="safe").load(document)["key"]
        assert read == ([value] if document.endswith("]") else value)


def test_choices_come_from_their_one_list() -> None:
    by_name = {entry.name: entry.explanation for entry in ALL}
    assert by_name["ingest.format"].endswith("; one of: png, jpeg")
    assert by_name["ingest.captions"].endswith("; any of: text_file, metadata, folder")
    assert by_name["evaluate.sampling.sampler"].endswith(f"; one of: {', '.join(get_args(choices.SamplerName))}")


def test_the_first_line_names_the_schema_for_editors() -> None:
    first = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA}"
    assert (ROOT / SCHEMA).is_file()


def test_the_schema_knows_every_parameter_with_description_default_and_choices() -> None:
    schema = json.loads(schema_text())

    def properties(node: dict[str, Any]) -> dict[str, Any]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        assert node["additionalProperties"] is False
        assert set(node["required"]) == set(node["properties"])
        found: dict[str, Any] = node["properties"]
        return found

    for entry in ALL:
        node, parent = schema, {}
        for key in entry.keys:
            parent, node = node, properties(node)[key]
        if len(entry.keys) > 1:
            assert entry.explanation.startswith(node["description"])
        if not entry.is_group:
            assert node["default"] == entry.value, parent
    assert properties(properties(schema)["train_vae"])["likelihood"]["enum"] == list(get_args(choices.Likelihood))


def test_an_editor_with_the_schema_accepts_the_project_and_underlines_mistakes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert list(validator.iter_errors(defaults())) == []
    wrong = merged(defaults(), {"ingest": {"side": "32", "sid": 1}, "train_unet": {"schedule": {"kind": "cosin"}}})
    del wrong["evaluate"]["seed"]
    words = sorted(error.message for error in validator.iter_errors(wrong))
    assert len(words) == 4
    assert all(any(part in word for word in words) for part in ("'32'", "'sid'", "'cosin'", "'seed' is a required"))


def test_the_command_prints_defaults_a_preset_or_the_schema(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params()
    assert capsys.readouterr().out == (ROOT / "params.yaml").read_text(encoding="utf-8")
    params("toy-quick")
    assert capsys.readouterr().out == params_text(read_preset("toy-quick"), command="darkroom params toy-quick")
    params(schema=True)
    assert capsys.readouterr().out == schema_text()
