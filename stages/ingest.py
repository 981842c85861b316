"""ingest: photos and captions to square images in WebDataset shards, with a report of rejected photos.

Reads data/raw, a tree of images that is never changed; captions come from text files, metadata tables or folder names.
Writes data/shards: {train,val}-*.tar, with the byte offset of every member in index.json. Writes data/doctor:
report.html and one line per photo in accepted.jsonl, rejected.jsonl, duplicates.jsonl, ignored.jsonl.
"""

import logging
from pathlib import Path
from typing import Any

from darkroom.config import IngestParams
from darkroom.data.crops import further_members
from darkroom.data.doctor import Accepted, Findings, check_usable, examine, facts, remarks, some_photos
from darkroom.data.doctor_page import shown, write_findings
from darkroom.data.picture import Find, Picture, read_whole
from darkroom.data.shards import FULL_SIDE, IMAGE_MEMBERS, MAX_FULL, Sample, Spool, split_by_hash, write_spooled
from darkroom.provenance import canonical_json, hash_json
from darkroom.stage import Contract, Stage

logger = logging.getLogger(__name__)


def run(stage: Stage[IngestParams]) -> None:
    params, raw, shards = stage.params, stage.inputs["raw"], stage.outs["shards"]
    member = IMAGE_MEMBERS[params.format]
    classes, find = subject_finder(raw, params) if params.crop == "subject" else ((), None)
    with Spool(shards) as spool:
        findings = examine(raw, params, keep=lambda photo, picture: spool.add(to_sample(photo, picture, member)), find=find)
        for line in facts(findings):
            logger.info(line)
        for line in remarks(findings, params):
            logger.warning(line)
        check_usable(findings, raw, max_rejected_fraction=params.max_rejected_fraction)
        splits = split_by_hash(spool.keys, params.val_fraction)
        leave_out = {"train": set(), "val": further_members(params.crops, member)}  # held-out photos judge, so they stay as they are
        tables = {
            split: write_spooled(shards, split, spool, keys, samples_per_shard=params.samples_per_shard, without=leave_out[split])
            for split, keys in splits.items()
        }
        pictures = {photo.sha256: spool.member(photo.sha256, member) for photo in shown(findings)}
    wholes = {photo.sha256: read_whole(raw / photo.source, params.max_megapixels) for photo in shown(findings)} if find else {}
    write_findings(stage.outs["doctor"], findings, params, splits=splits, pictures=pictures, wholes=wholes)
    stage.content["shards"] = describe(findings, params, tables)
    if find:
        stage.content["shards"]["subject"] = {"classes": list(classes), **findings.subject_counts()}
    _track(stage, findings, stage.outs["doctor"])


def subject_finder(raw: Path, params: IngestParams) -> tuple[tuple[int, ...], Find | None]:
    """Classes of the subject, and what finds it; neither if the classifier has no words for it. Torch is imported for it alone."""
    from darkroom.evaluation.features import ArrayImages
    from darkroom.evaluation.recognised import called, known_subject
    from darkroom.models.classifier import Classifier, class_numbers
    from darkroom.models.subject import SubjectFinder

    if not (classes := class_numbers(params.subject, parameter="ingest.subject")):
        classes = known_subject(Classifier.shipped(), ArrayImages(some_photos(raw, params, num=MAX_FULL, side=FULL_SIDE)))
    if not classes:
        logger.warning(
            "crop: subject: the classifier has no words for what the photos show, so they are cropped at the centre. If ImageNet has "
            "classes of your subject, name them in ingest.subject."
        )
        return (), None
    logger.info("crop: subject: %s", called(classes))
    return classes, SubjectFinder(classes)


def to_sample(photo: Accepted, picture: Picture, member: str) -> Sample:
    fields = {
        "caption": photo.caption.text,
        "caption_source": photo.caption.source,
        "attributes": photo.caption.attributes,
        "source": photo.source,
        "width": photo.width,
        "height": photo.height,
    }
    if picture.crop:
        fields |= {"crop": picture.crop, "certainty": picture.certainty, "subject": picture.subject}
    return {"__key__": photo.sha256, "json": canonical_json(fields).encode(), **picture.members(member)}


def describe(findings: Findings, params: IngestParams, tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The `content` of the shards' index.json."""
    return {
        "size": params.side,
        "format": params.format,
        "splits": tables,
        **({"crops": {"train": params.crops, "val": 1}} if params.crops > 1 else {}),
        "num_images": {split: sum(len(shard["samples"]) for shard in table) for split, table in tables.items()},
        "captions": findings.caption_sources(),
        "rejected": findings.reasons(),
        "num_duplicates": len(findings.duplicates),
        "num_ignored": len(findings.ignored),
        "num_upscaled": len(findings.upscaled(params.side)),
        "photos": hash_json(sorted((photo.sha256, photo.caption.text) for photo in findings.accepted)),
    }


def _track(stage: Stage[IngestParams], findings: Findings, doctor: Path) -> None:
    numbers = {f"num_{split}": number for split, number in stage.content["shards"]["num_images"].items()}
    numbers |= {"num_rejected": len(findings.rejected), "num_duplicates": len(findings.duplicates)}
    stage.tracker.log_metrics({name: float(number) for name, number in numbers.items()}, step=0)
    stage.tracker.log_artifact(doctor / "report.html")


STAGE = Contract("ingest", run, reads=("raw",), writes=("shards", "doctor"))

if __name__ == "__main__":
    STAGE.main()
