"""Models on disk in diffusers' layout: `config.json` and `diffusion_pytorch_model.safetensors`, strict in both directions."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.provenance import hash_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the configurations: a frozen dataclass with diffusers' names and defaults.

    The defaults are those of diffusers, because its files may leave them out. `IMPLIED` has the fields of diffusers that are not
    implemented here, with their allowed values; another value is another architecture.
    """

    CLASS_NAME: ClassVar[str]
    IMPLIED: ClassVar[dict[str, tuple[Any, ...]]]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON has no tuples
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        self.check()

    def check(self) -> None:
        """Raise ValueError if two fields contradict each other; fill in fields that follow from others."""

    def to_json(self) -> dict[str, Any]:
        return {"_class_name": self.CLASS_NAME, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: Path | str) -> Self:
        """Read a config.json of ours or of diffusers.

        Raises:
            ValueError: it describes another class or a variant of the architecture that is not implemented.
        """
        if (name := values.get("_class_name")) != cls.CLASS_NAME:
            raise ValueError(f"{where}: `_class_name` is {name!r}, expected {cls.CLASS_NAME!r}. Is this the right folder?")
        fields = {field.name for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if key in fields or key.startswith("_"):
                continue
            if key not in cls.IMPLIED:
                raise ValueError(f"{where}: `{key}` is unknown for {cls.CLASS_NAME}. Remove it if it does not come from diffusers.")
            if value not in cls.IMPLIED[key]:
                raise ValueError(f"{where}: `{key}: {json.dumps(value)}` is not supported; expected {json.dumps(cls.IMPLIED[key][0])}.")
        try:
            return cls(**{key: value for key, value in values.items() if key in fields})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


class StoredModel(nn.Module):
    """Base of the models that are stored in diffusers' layout; `Config` is the class of their configuration."""

    Config: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def fingerprint(self) -> str:
        """sha256 of the configuration and of the weights, whatever file they came from."""
        return hash_json([self.config.to_json(), hash_weights(self)])


Model = TypeVar("Model", bound=StoredModel)


def save_model(model: StoredModel, folder: Path) -> None:
    """Write the configuration and the fp32 weights; diffusers' `from_pretrained(folder)` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config.to_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {key: value.detach().float().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_model(cls: type[Model], folder: Path | str) -> Model:
    """A model of class `cls` with the weights in `folder`, fp32, on the CPU, in evaluation mode.

    Raises:
        ValueError: a file is missing or unreadable, the configuration is of another class, or a tensor is missing, unexpected
            or of another shape.
    """
    folder = Path(folder)
    config = cls.Config.from_json(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    return assemble(cls, config, read_weights(folder / WEIGHTS_FILE), where=folder / WEIGHTS_FILE)


def hash_weights(network: nn.Module) -> str:
    """sha256 of the names and the fp32 values of its weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def assemble(cls: type[Model], config: ModelConfig, weights: dict[str, Tensor], *, where: Path | str) -> Model:
    """A model of class `cls` with these weights, which may have any float type and be mapped from a file, in evaluation mode.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    model = empty(cls, config)
    load_weights(model, weights, where=where)
    return model.eval()


def empty(cls: type[Model], config: ModelConfig) -> Model:
    """A model without weights, on the meta device: it draws nothing from the global generator."""
    with torch.device("meta"):
        return cls(config)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {path.parent} is not a model folder in diffusers' layout.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(values).__name__}.")
    return values


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        ValueError: it is missing or not a safetensors file (pickles are never read).
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. Weights are read from safetensors only, never from a pickle (.bin, .ckpt, .pt).")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, where: Path | str) -> None:
    """Replace the weights of `model`, which may be on the meta device, by `weights`, cast to fp32.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    weights = _current_names(weights)
    own = model.state_dict()
    problems = [f"`{key}` is missing" for key in own if key not in weights]
    problems += [f"`{key}` is not a weight of this model" for key in weights if key not in own]
    problems += [
        f"`{key}` has shape {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{where} does not fit {type(model).__name__} as configured: {problems[0]}{more}.")
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)


def _current_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention weights of diffusers before 0.15, which the published autoencoders of Stable Diffusion 1.x still have."""
    names = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    renamed = {}
    for key, value in weights.items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed
