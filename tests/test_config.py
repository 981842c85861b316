import re
from pathlib import Path
from typing import Any

import pytest
from dvc.stage.cache import _get_cache_hash
from pydantic import ValidationError
from ruamel.yaml import YAML

from darkroom.config import SECTIONS, IngestParams, TrainUnetParams
from darkroom.params_file import checked, defaults, load_params, merged, read_preset, read_yaml

ROOT = Path(__file__).parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def content() -> dict[str, Any]:
    return read_yaml(ROOT / "params.yaml")


def write(folder: Path, content: Any) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML().dump(content, file)
    return path


def refused(folder: Path, content: Any) -> str:
    """What `load_params` says to this content."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what the callers look at
        load_params(write(folder, content))
    return str(caught.value)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    inner = {f"{prefix}{key}": value for key, value in values.items() if not isinstance(value, dict)}
    for key, value in values.items():
        if isinstance(value, dict):
            inner |= leaves(value, f"{prefix}{key}.")
    return inner


def test_the_parameters_of_the_project_are_accepted_and_complete() -> None:
    sections = load_params(ROOT / "params.yaml")
    assert {name: type(section) for name, section in sections.items()} == SECTIONS


def test_the_parameters_of_the_project_are_the_defaults(content: dict[str, Any]) -> None:
    assert content == defaults()
    assert checked(content, ROOT / "params.yaml") == {name: section() for name, section in SECTIONS.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_only_what_differs_from_the_defaults_and_is_accepted(preset: str) -> None:
    changes, before = leaves(read_preset(str(ROOT / "presets" / f"{preset}.yaml"))), leaves(defaults())
    assert changes
    assert [name for name, value in changes.items() if before[name] == value] == []


def test_the_presets_are_short() -> None:
    assert sum(len((ROOT / "presets" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()) for preset in PRESETS) <= 220


def test_a_preset_is_found_by_its_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_preset("toy-quick") == read_preset("presets/toy-quick.yaml") == read_preset(str(ROOT / "presets" / "toy-quick.yaml"))
    with pytest.raises(ValueError, match=r"Preset presets/toy-slow\.yaml not found; presets here: .*toy-quick"):
        read_preset("toy-slow")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"Preset presets/toy-quick\.yaml not found; presets here: none: .*presets is empty or missing"):
        read_preset("toy-quick")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ingest: {sid: 64}", "`ingest.sid` is not a parameter; did you mean `ingest.side`?"),
        ("ingest: {side: 1}", "`ingest.side` is 1: it must be greater than or equal to 16"),
        ("train_vae: {batch_size: 3, gradient_accumulation: 2}", "`train_vae`: batch_size (3) must be a multiple"),
    ],
)
def test_a_preset_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"mine.yaml: {message}")):
        read_preset(str(tmp_path / "mine.yaml"))


def test_a_preset_in_the_place_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is a preset and only says what differs .* `darkroom params .*toy-quick\.yaml > params\.yaml`"):
        load_params(ROOT / "presets" / "toy-quick.yaml")


def test_changes_reach_any_depth_and_leave_the_rest() -> None:
    values = {"a": {"b": {"c": 1, "d": 2}, "e": [1, 2]}}
    assert merged(values, {"a": {"b": {"c": 3}, "e": [4]}}) == {"a": {"b": {"c": 3, "d": 2}, "e": [4]}}
    assert values == {"a": {"b": {"c": 1, "d": 2}, "e": [1, 2]}}


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_a_number_is_read_as_dvc_reads_it(tmp_path: Path, number: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"lr: {number}\n")
    assert read_yaml(path) == {"lr": 1e-4}


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"]["learning_rates"] = content["train_unet"].pop("lr")
    content["train_unet"]["warmup_step"] = 3
    assert "`train_unet.learning_rates` is not a parameter" in refused(tmp_path, content)
    del content["train_unet"]["learning_rates"]
    assert "did you mean `train_unet.warmup_steps`?" in refused(tmp_path, content)


def test_a_misspelt_key_of_an_inner_section_is_refused_with_the_nearest_one(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"]["sampling"]["guidance"] = 3.0
    message = refused(tmp_path, content)
    assert "`train_unet.sampling.guidance` is not a parameter; did you mean `train_unet.sampling.guidance_scale`?" in message


def test_a_key_that_resembles_none_gets_the_list(tmp_path: Path, content: dict[str, Any]) -> None:
    content["cache_latents"]["zzz"] = 1
    assert "known here: gate, batch_size, flip, precision, samples_per_shard" in refused(tmp_path, content)


def test_a_misspelt_section_is_refused_with_the_nearest_one(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_uned"] = content.pop("train_unet")
    assert "`train_uned` is not a section; did you mean `train_unet`?" in refused(tmp_path, content)


def test_a_parameter_outside_its_section_is_told_where_it_belongs(tmp_path: Path, content: dict[str, Any]) -> None:
    content["side"] = 64
    assert "`side` is not a section; known here: ingest, " in refused(tmp_path, content)
    assert refused(tmp_path, content).endswith(" `side` is a parameter of ingest.")
    content["evaluate"]["caption_dropout"] = content.pop("side")
    assert "`evaluate.caption_dropout` is not a parameter; " in refused(tmp_path, content)
    assert refused(tmp_path, content).endswith(" `caption_dropout` is a parameter of train_unet.")


def test_a_missing_section_or_key_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["evaluate"]["seed"]
    message = refused(tmp_path, content)
    assert "`evaluate.seed` is missing" in message
    assert f"Run `darkroom params --update {tmp_path / 'params.yaml'}`." in message
    del content["evaluate"]
    assert "section `evaluate` is missing" in refused(tmp_path, content)


def test_a_missing_key_that_has_a_default_is_named_all_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    """Else a default that changes in a new version would change a run, and DVC would not see it."""
    del content["evaluate"]["features"]["side"]
    del content["train_vae"]["perceptual"]["arch"]
    assert "`train_vae.perceptual.arch`, `evaluate.features.side` are missing" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("ingest", "side", 0),
        ("ingest", "side", "32"),  # a text is not a number
        ("ingest", "side", 32.5),
        ("ingest", "side", True),
        ("ingest", "val_fraction", 0.0),
        ("ingest", "val_fraction", 1.0),
        ("ingest", "max_rejected_fraction", 1.1),
        ("ingest", "captions", ["texts"]),
        ("ingest", "caption_template", ""),
        ("ingest", "format", "gif"),
        ("ingest", "crop", "center"),
        ("ingest", "subject", [1.5]),
        ("ingest", "crops", 0),
        ("ingest", "jpeg_quality", 101),
        ("ingest", "num_workers", -1),
        ("train_vae", "steps", -1),
        ("train_vae", "batch_size", 0),
        ("train_vae", "lr", -1e-3),
        ("train_vae", "lr", float("inf")),
        ("train_vae", "lr_decay", "linear"),
        ("train_vae", "ema_decay", 1.0),
        ("train_vae", "precision", "fp8"),
        ("train_vae", "decoder_scale", 0.0),
        ("train_vae", "likelihood", "poisson"),
        ("train_unet", "caption_dropout", -0.1),
        ("train_unet", "prediction", "x0"),
        ("train_unet", "loss_weighting", "p3"),
        ("train_unet", "timesteps", "sobol"),
        ("train_unet", "augmentation_labels", 1),
        ("train_unet", "noise_offset", -0.1),
        ("train_unet", "input_perturbation", -0.1),
        ("train_unet", "lognormal_std", 0.0),
        ("train_unet", "p2_gamma", -1.0),
        ("evaluate", "num_samples", 1),
        ("register", "model_name", ""),
        ("register", "standard_errors", -1.0),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(tmp_path: Path, content: dict[str, Any], section: str, key: str, value: object) -> None:
    content[section][key] = value
    message = refused(tmp_path, content)
    assert f"`{section}.{key}" in message
    assert (repr(value[0]) if isinstance(value, list) else repr(value)) in message


def test_all_values_out_of_range_are_named_at_once(tmp_path: Path, content: dict[str, Any]) -> None:
    content["ingest"]["side"] = 0
    content["register"]["model_name"] = ""
    message = refused(tmp_path, content)
    assert "`ingest.side`" in message
    assert "`register.model_name`" in message


def names_in(schema: Any) -> set[str]:
    """Of all fields, at any depth of a JSON schema."""
    inner = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return set(own).union(*map(names_in, inner))


@pytest.mark.parametrize("section", SECTIONS)
def test_dvc_tells_two_runs_apart_by_any_parameter(section: str) -> None:
    """Its cache of runs leaves out the key `size` wherever it stands, and would restore what was made with another one."""
    names = names_in(SECTIONS[section].model_json_schema())
    assert names
    assert [name for name in names if _get_cache_hash({"params": {name: 1}}) == _get_cache_hash({"params": {name: 2}})] == []


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_vae"] |= {"batch_size": 32, "gradient_accumulation": 3, "num_processes": 2}
    message = refused(tmp_path, content)
    assert "`train_vae`: batch_size (32) must be a multiple of num_processes x gradient_accumulation (2 x 3 = 6)" in message


@pytest.mark.parametrize("mode", ["finetune", "pretrained"])
def test_a_clip_that_is_not_from_scratch_needs_a_source(tmp_path: Path, content: dict[str, Any], mode: str) -> None:
    content["train_clip"] |= {"mode": mode, "pretrained": ""}
    assert f"mode: {mode} needs `pretrained:`" in refused(tmp_path, content)


def test_a_caption_of_the_subject_without_a_crop_to_it_says_what_to_do(tmp_path: Path, content: dict[str, Any]) -> None:
    content["ingest"]["caption_template"] = "a {subject:cat}"
    assert "`ingest`: caption_template names {subject}, which only crop: subject finds; set crop: subject" in refused(tmp_path, content)
    content["ingest"]["crop"] = "subject"
    assert load_params(write(tmp_path, content))


@pytest.mark.parametrize(("template", "asks"), [("a {{subject}}", False), ("a {{{{subject:cat}}}}", False), ("a {{{subject:cat}}}", True)])
def test_a_brace_itself_before_the_word_subject_asks_for_no_crop(
    tmp_path: Path, content: dict[str, Any], template: str, asks: bool
) -> None:
    content["ingest"]["caption_template"] = template
    if asks:
        assert "caption_template names {subject}" in refused(tmp_path, content)
    else:
        assert load_params(write(tmp_path, content))


def test_a_subject_without_a_crop_to_it_says_what_to_do(tmp_path: Path, content: dict[str, Any]) -> None:
    content["ingest"]["subject"] = ["tabby", 285]
    assert "`ingest`: subject means nothing with crop: centre; set crop: subject, or leave subject: []" in refused(tmp_path, content)
    content["ingest"]["crop"] = "subject"
    ingest = load_params(write(tmp_path, content))["ingest"]
    assert isinstance(ingest, IngestParams)
    assert ingest.subject == ["tabby", 285]


def test_attention_is_given_for_each_resolution(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"]["model"] |= {"block_out_channels": [32, 64, 64], "attention": [True, False]}
    assert "model.attention has 2 entries, model.block_out_channels 3" in refused(tmp_path, content)


def test_noise_cannot_be_predicted_where_there_is_nothing_else(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"]["schedule"]["zero_terminal_snr"] = True
    load_params(write(tmp_path, content))  # v_prediction can
    content["train_unet"]["prediction"] = "epsilon"
    assert "`train_unet`: prediction: epsilon cannot have schedule.zero_terminal_snr: true" in refused(tmp_path, content)


def test_lora_needs_a_unet_to_adapt(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"]["lora"] = {"rank": 4, "alpha": 4, "conv": False}
    assert "lora.rank above 0 adapts a trained U-Net: name its folder in `init`" in refused(tmp_path, content)
    content["train_unet"]["init"] = "imported/unet"
    content["train_vae"]["init"] = "imported/vae"
    content["train_clip"] |= {"mode": "pretrained", "pretrained": "imported/clip"}
    assert load_params(write(tmp_path, content))


@pytest.mark.parametrize(("key", "value"), [("rank", -1), ("alpha", 0), ("conv", 1)])
def test_a_value_of_lora_out_of_range_is_named(tmp_path: Path, content: dict[str, Any], key: str, value: object) -> None:
    content["train_unet"]["lora"][key] = value
    assert f"`train_unet.lora.{key}` is {value!r}" in refused(tmp_path, content)


def test_a_micro_batch_is_the_share_of_one_process(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_unet"] |= {"batch_size": 24, "gradient_accumulation": 3, "num_processes": 2}
    params = load_params(write(tmp_path, content))["train_unet"]
    assert isinstance(params, TrainUnetParams)
    assert params.micro_batch == 4


def test_bernoulli_has_no_scale_to_learn(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_vae"] |= {"likelihood": "bernoulli", "learn_scale": True}
    assert "`train_vae`: likelihood: bernoulli has no scale to learn; set learn_scale: false" in refused(tmp_path, content)
    content["train_vae"]["learn_scale"] = False
    assert load_params(write(tmp_path, content))


def test_a_game_that_never_starts_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["train_vae"]["adversarial"] |= {"weight": 0.5, "start_step": 800}
    assert "`train_vae`: adversarial.start_step (800) is never reached in 800 steps" in refused(tmp_path, content)
    content["train_vae"]["adversarial"]["start_step"] = 799
    assert load_params(write(tmp_path, content))


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ({"arch": "squeezenet1_0"}, "perceptual.arch needs perceptual.layers"),
        ({"weights": "squeezenet.safetensors"}, "perceptual.weights needs perceptual.arch"),
        ({"scale": 255.0}, "perceptual.scale needs perceptual.arch"),
    ],
)
def test_a_perceptual_distance_names_its_classifier_whole(
    tmp_path: Path, content: dict[str, Any], look: dict[str, object], message: str
) -> None:
    content["train_vae"]["perceptual"] |= {"weight": 0.1}
    assert load_params(write(tmp_path, content))  # the weight alone takes the classifier of the package
    content["train_vae"]["perceptual"] |= look
    assert message in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("section", "group", "key", "value"),
    [
        ("train_vae", "perceptual", "weight", -0.1),
        ("train_vae", "perceptual", "channels", "grb"),
        ("train_vae", "adversarial", "weight", -0.1),
        ("train_vae", "adversarial", "start_step", -1),
        ("train_vae", "adversarial", "channels", 0),
        ("train_vae", "adversarial", "num_halvings", 0),
        ("cache_latents", "gate", "min_psnr", 0.0),
        ("cache_latents", "gate", "min_ssim", 1.1),
        ("cache_latents", "gate", "max_frechet", -1.0),
    ],
)
def test_a_value_of_the_vae_and_its_gate_out_of_range_is_named(
    tmp_path: Path, content: dict[str, Any], section: str, group: str, key: str, value: object
) -> None:
    content[section][group][key] = value
    assert f"`{section}.{group}.{key}` is {value!r}" in refused(tmp_path, content)


def test_features_of_a_classifier_need_its_name(tmp_path: Path, content: dict[str, Any]) -> None:
    content["evaluate"]["features"] |= {"kind": "torchvision"}
    assert "`evaluate.features`: features.kind: torchvision needs features.arch" in refused(tmp_path, content)


def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml is missing\. Make it: `darkroom params > .*params\.yaml`"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ValueError, match=r"params\.yaml is missing\."):
        read_yaml(tmp_path / "params.yaml")
    with pytest.raises(ValueError, match="must map stage names to their parameters; found list"):
        read_yaml(write(tmp_path, [1, 2]))


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2\n", "a: {b: 1}}"])
def test_what_is_no_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML: [^\n]*line \d"):
        read_yaml(path)


def test_a_section_that_is_no_mapping_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["ingest"] = 5
    assert "`ingest` is 5" in refused(tmp_path, content)


def test_a_section_made_without_a_file_refuses_unknown_keys_too(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SECTIONS["cache_latents"].model_validate(content["cache_latents"] | {"zzz": 1})


def test_sections_cannot_be_changed() -> None:
    section = load_params(ROOT / "params.yaml")["ingest"]
    with pytest.raises(ValidationError, match="frozen"):
        section.size = 64  # type: ignore[attr-defined]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"ingest: caf\xe9\n")
    with pytest.raises(ValueError, match=r"params\.yaml is not UTF-8 text \(byte 11\)"):
        read_yaml(tmp_path / "params.yaml")
