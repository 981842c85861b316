"""train_clip: the text encoder that conditions the U-Net, and the image encoder that evaluation uses.

Reads data/shards. Writes data/clip: open_clip_config.json and open_clip_model.safetensors (open_clip loads the folder by
`local-dir:data/clip`), metrics.json and curves/. Modes: `pretrained` uses a model as it is, `finetune` trains it further,
`scratch` trains a small one on your own photos and captions. If all captions are alike, nothing can be learned from them and no weight is
changed: `scratch` then writes the initial weights, and `random_weights` in index.json says so.
"""

import logging

from darkroom.config import TrainClipParams
from darkroom.data.shards import ImageShards
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.open_model import initial_part
from darkroom.provenance import write_json
from darkroom.stage import Contract, Stage
from darkroom.training.clip_task import ClipTask
from darkroom.training.loop import Curves, train

logger = logging.getLogger(__name__)


def run(stage: Stage[TrainClipParams]) -> None:
    params = stage.params
    photos, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    new = params.mode == "scratch"
    source, version = initial_part(params.pretrained, "clip")
    towers = ClipTowers.build(params.model.model_dump(), seed=params.seed) if new else ClipTowers.load(source)
    init = "" if new else towers.fingerprint()
    towers.conditioning = conditioning(params, towers.conditioning)
    curves = Curves()
    learns = params.mode != "pretrained" and captions_differ(towers, photos)
    if learns:
        task = ClipTask(towers, photos, held_out, seed=params.seed)
        curves = train(task, params, name=stage.name, scratch=stage.scratch / init, tracker=stage.tracker)
    if stage.is_main:
        towers.save(stage.outs["clip"])
        curves.write(stage.outs["clip"])
        write_json(stage.outs["clip"] / "metrics.json", curves.last_validation())
        stage.content["clip"] = {
            "mode": params.mode,
            "init": init,
            "version": "" if new else version,
            "weights": towers.fingerprint(),
            "random_weights": new and not learns,
            "context_length": towers.context_length,
            "context_dim": towers.context_dim,
        }


def captions_differ(towers: ClipTowers, photos: ImageShards) -> bool:
    """False, with a warning, if the text encoder reads the same in all captions: the contrastive loss is then constant, and training by
    it makes the features of all photos alike."""
    if len(towers.tokenize(sorted(set(photos.captions))).unique(dim=0)) > 1:
        return True
    logger.warning(
        "All %d training photos have the caption %r, so CLIP has nothing to tell apart and is not trained. Prompts will steer nothing in a "
        "U-Net that is trained from new weights on these photos; give the photos captions if prompts should",
        len(photos),
        photos.captions[0],
    )
    return False


def conditioning(params: TrainClipParams, stored: TextConditioning) -> TextConditioning:
    """The conditioning of the source, with the values that the parameters override."""
    return TextConditioning(
        layer=stored.layer if params.text_layer == "source" else params.text_layer,
        pad_token=stored.pad_token if params.pad_token == "source" else params.pad_token,
    )


STAGE = Contract("train_clip", run, reads=("shards",), writes=("clip",))

if __name__ == "__main__":
    STAGE.main()
