"""Data set cards: facts of spoken captions and images that were counted, and the README.md that tells them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetCardData

from ..configuration.publication import GENERATED
from .model_card import DATASETS, SplitSize, render_template, versions

COLUMNS = {
    "audio": "an utterance, as bytes of its file: any format that libsndfile reads, at any rate",
    "image": "an image, as bytes of its file",
    "image_id": "number of the image: equal for all utterances of it",
    "text": "what is said; empty if it is not written down",
    "caption_id": "name of the utterance",
    "speaker": "who speaks; empty if unknown",
}
TAGS = ("speechclip-plus", "speech-image-retrieval", "spoken-captions", "visually-grounded-speech")
_SIZES = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7))


@dataclass
class DatasetCardFacts:
    """What a data set card tells. What is empty or None does not appear."""

    name: str  # what to call it
    source: str = ""  # name of the corpus it was made of, or its repository
    repo_id: str = ""  # where it is to be loaded from; a folder's name if it is not on the Hub
    splits: Mapping[str, SplitSize] = field(default_factory=dict)  # sizes by split
    # how many utterances of each split have a written caption
    written: Mapping[str, int] = field(default_factory=dict)
    languages: Sequence[str] = ()  # BCP 47 codes of the speech
    made_by: str = ""  # the command that made it, without folders of this machine
    # by split, how many utterances were left out because a file is broken or missing
    left_out: Mapping[str, int] = field(default_factory=dict)
    # the Hub's name for the licence, such as "cc-by-4.0"; by default what is known of the source
    license: str | None = None
    description: str = ""  # sentences about it; by default what is known of the source
    # where each split's files are: a pattern from the repository's root
    data_files: Mapping[str, str] = field(default_factory=dict)
    dataset_info: Mapping[str, Any] | None = None  # features and sizes as `datasets` writes them into a card


def render_dataset_card(facts: DatasetCardFacts) -> str:
    """Return the card, README.md, by whose metadata the Hub's viewer and `load_dataset` find the splits."""
    known = DATASETS.get(facts.source)
    rows = sum(size.rows or 0 for size in facts.splits.values())
    languages = sorted({code.split("-")[0] for code in facts.languages})
    metadata = DatasetCardData(
        pretty_name=facts.name,
        language=languages or None,
        multilinguality=None if not languages else "multilingual" if len(languages) > 1 else "monolingual",
        license=facts.license or (known.licence_id if known else None),
        size_categories=next((name for name, most in _SIZES if rows < most), "10M<n<100M"),
        task_categories=["feature-extraction"],
        tags=list(TAGS),
        dataset_info=dict(facts.dataset_info) if facts.dataset_info else None,
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path} for split, path in facts.data_files.items()],
            }
        ]
        if facts.data_files
        else None,
    )
    body = render_template(
        "dataset_card.md.jinja",
        facts=facts,
        known=known,
        columns=COLUMNS,
        first=next(iter(facts.splits), "train"),
        versions={name: version for name, version in versions().items() if name in ("speechclip-plus", "datasets")},
    ).strip()
    return f"---\n{metadata.to_yaml()}\n---\n\n{GENERATED}\n\n{body}\n"
