"""The model that MLflow serves: prompts in, PNG images out. MLflow stores this file instead of a pickle (models from code).

MLflow runs it when a model is saved and when it is loaded. Nothing else imports it.
"""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image


class TextToImageModel(PythonModel):
    """`predict` takes a table with a column `prompt`, and the parameters of the signature. Row i uses `seed` + i.

    The answer has the columns `prompt`, `seed` and `png` (base64 text, because answers are JSON):
    `Image.open(io.BytesIO(base64.b64decode(answer["png"][0])))`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from darkroom.sampling.text_to_image import TextToImage  # here, so that saving a model does not load torch

        self.model = TextToImage.load(Path(context.artifacts["bundle"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        options = dict(params or {})
        first_seed = int(options.pop("seed", 0))
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        seeds = [first_seed + row for row in range(len(prompts))]
        images = self.model.sample(prompts, seeds=seeds, **options)  # uint8 (B, H, W, 3)
        return pd.DataFrame({"prompt": prompts, "seed": seeds, "png": [_png(image) for image in images]})


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


set_model(TextToImageModel())
