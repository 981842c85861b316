"""A model folder, as the stages, an import and the registry write it."""

from pathlib import Path

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder import Autoencoder, load_autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model
from darkroom.provenance import INDEX, check_lineage, read_index
from darkroom.sampling import PARTS


class ModelFolder:
    """A folder with clip/, vae/ and unet/. Each part is read when it is used, so that not all of them need to be in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if a part is missing or damaged, or the parts come from different runs."""
        if missing := [name for name in PARTS if not (folder / name).is_dir()]:
            raise ValueError(f"{folder / missing[0]}/ not found: a model is a folder with clip/, vae/ and unet/ (data/ after `dvc repro`).")
        check_lineage({name: read_index(folder / name) for name in PARTS if (folder / name / INDEX).is_file()})
        self.folder = folder

    def clip(self) -> ClipTowers:
        return ClipTowers.load(self.folder / "clip")

    def vae(self) -> Autoencoder:
        return load_autoencoder(self.folder / "vae")

    def vae_for_export(self) -> AutoencoderKL:
        """The autoencoder, if other programs can know it.

        Raises:
            ValueError: it is of another kind than theirs.
        """
        vae = self.vae()
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(
                f"The autoencoder of {self.folder} is a {vae.config.CLASS_NAME}, which other programs do not know, so the model cannot be "
                "exported: share the folder itself, or train with train_vae.kind: kl."
            )
        return vae

    def unet(self) -> UNet2DConditionModel:
        return load_model(UNet2DConditionModel, self.folder / "unet")

    def diffusion(self) -> DiffusionConfig:
        return DiffusionConfig.load(self.folder / "unet")
