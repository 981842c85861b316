"""The training task of CLIP."""

import torch
from torch import Tensor, nn

from darkroom.data.shards import ImageShards
from darkroom.models.clip import ClipTowers
from darkroom.pixels import to_float
from darkroom.training.draws import shuffled, uniform
from darkroom.training.losses import contrastive_loss, gather_with_gradient
from darkroom.training.task import VAL_SAMPLES, Batch, chunks, mirrored


class ClipTask:
    """Contrastive training of an image encoder and a text encoder on pairs of photo and caption (Radford et al. 2021)."""

    def __init__(self, net: ClipTowers, train: ImageShards, val: ImageShards, *, seed: int) -> None:
        self.net = self.averaged = net
        self.train = train
        self.val = val
        self.seed = seed
        self.num_samples = len(train)

    def batch(self, positions: range) -> Batch:
        indices = shuffled(positions, num_samples=self.num_samples, seed=self.seed)
        flips = uniform(seed=self.seed, stream="flip", positions=positions) < 0.5
        return {
            "images": mirrored(to_float(self.train.images(indices)), flips),
            "tokens": self.net.tokenize([self.train.captions[index] for index in indices]),
        }

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image_features, text_features, logit_scale = net(batch["images"], batch["tokens"])
        tokens = gather_with_gradient(batch["tokens"])
        same = (tokens[:, None] == tokens[None]).all(-1)
        loss = contrastive_loss(gather_with_gradient(image_features), gather_with_gradient(text_features), logit_scale, same)
        return loss, {"logit_scale": logit_scale}

    def validate(self, device: torch.device) -> dict[str, float]:
        """Loss over the held-out pairs, and the share of photos whose nearest caption is their own."""
        num = min(len(self.val), VAL_SAMPLES)
        tokens = self.net.tokenize(self.val.captions[:num]).to(device)
        parts = [self.net(to_float(self.val.images(chunk)).to(device), tokens[chunk.start : chunk.stop]) for chunk in chunks(num)]
        image_features = torch.cat([part[0] for part in parts]).float()
        text_features = torch.cat([part[1] for part in parts]).float()
        same = (tokens[:, None] == tokens[None]).all(-1)
        nearest = (image_features @ text_features.T).argmax(1)
        return {
            "loss": float(contrastive_loss(image_features, text_features, parts[0][2].float(), same)),
            "retrieval_accuracy": float(same[torch.arange(num, device=device), nearest].float().mean()),
        }
