"""train_clip: the text encoder that conditions the U-Net, and the image encoder that evaluation uses.

Reads data/shards. Writes data/clip: open_clip_config.json and open_clip_model.safetensors (open_clip loads the folder by
`local-dir:data/clip`), metrics.json and curves/. Modes: `pretrained` uses a model as it is, `finetune` trains it further,
`scratch` trains a small one on your own photos and captions.
"""

from darkroom.config import TrainClipParams
from darkroom.data.shards import ImageShards
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.provenance import write_json
from darkroom.stage import Contract, Stage
from darkroom.training.clip_task import ClipTask
from darkroom.training.loop import Curves, train


def run(stage: Stage[TrainClipParams]) -> None:
    params = stage.params
    shards = stage.inputs["shards"]
    new = params.mode == "scratch"
    towers = ClipTowers.build(params.model.model_dump(), seed=params.seed) if new else ClipTowers.load(params.pretrained)
    init = "" if new else towers.fingerprint()
    towers.conditioning = conditioning(params, towers.conditioning)
    curves = Curves()
    if params.mode != "pretrained":
        task = ClipTask(towers, ImageShards(shards, "train"), ImageShards(shards, "val"), seed=params.seed)
        curves = train(task, params, name=stage.name, scratch=stage.scratch / init, tracker=stage.tracker)
    if stage.is_main:
        towers.save(stage.outs["clip"])
        curves.write(stage.outs["clip"])
        write_json(stage.outs["clip"] / "metrics.json", curves.last_validation())
        stage.content["clip"] = {
            "mode": params.mode,
            "init": init,
            "context_length": towers.context_length,
            "context_dim": towers.context_dim,
        }


def conditioning(params: TrainClipParams, stored: TextConditioning) -> TextConditioning:
    """The conditioning of the source, with the values that the parameters override."""
    return TextConditioning(
        layer=stored.layer if params.text_layer == "source" else params.text_layer,
        pad_token=stored.pad_token if params.pad_token == "source" else params.pad_token,
    )


STAGE = Contract("train_clip", run, reads=("shards",), writes=("clip",))

if __name__ == "__main__":
    STAGE.main()
