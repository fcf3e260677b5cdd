"""Cards of models and data sets: facts, filled in by whoever measured them, and the README.md that tells them."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCardData, ModelCardData

from ..atomic_files import write_bytes, write_text
from ..configuration.presets import published_results
from ..configuration.publication import CARD, GENERATED, card_metadata, is_local_path, render_usage
from .report import Series, training_chart
from .results import Results, eval_results, render_results

CHART = "training.png"
MOST_ROWS = 20  # of the table of the training

_TEMPLATES = resources.files(__package__) / "templates"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("speechclip-plus", "torch", "transformers", "datasets", "safetensors")
    return {"Python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


@dataclass(frozen=True)
class Source:
    """A backbone or a data set."""

    name: str  # what to call it
    licence: str  # its terms in words; they are repeated here, not granted
    url: str = ""  # where to read them
    languages: tuple[str, ...] = ()  # BCP 47 codes of its speech
    description: str = ""  # sentences about it
    licence_id: str | None = None  # the Hub's name of the licence, where it has one for all parts


_HUBERT = "https://github.com/facebookresearch/fairseq/tree/main/examples/hubert"

BACKBONES = {
    "facebook/hubert-base-ls960": Source("HuBERT base", "Apache 2.0", _HUBERT),
    "facebook/hubert-large-ll60k": Source("HuBERT large", "Apache 2.0", _HUBERT),
    "openai/clip-vit-base-patch32": Source("OpenAI's CLIP ViT-B/32", "MIT", "https://github.com/openai/CLIP"),
    "openai/clip-vit-large-patch14": Source("OpenAI's CLIP ViT-L/14", "MIT", "https://github.com/openai/CLIP"),
    "tiny_backbones/hubert": Source("the tiny HuBERT that ships with speechclip-plus", "MIT"),
    "tiny_backbones/clip": Source("the tiny CLIP that ships with speechclip-plus", "MIT"),
}
DATASETS = {
    "flickr8k": Source(
        "Flickr 8k Audio Caption Corpus",
        "audio CC BY-SA; for images and captions see Flickr8k's own terms",
        "https://groups.csail.mit.edu/sls/downloads/flickraudio/",
        languages=("en",),
        description="Photographs, each with five captions read aloud by crowd workers.",
    ),
    "spokencoco": Source(
        "SpokenCOCO",
        "see there, and COCO's terms of use for captions and images",
        "https://data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz",
        languages=("en",),
        description="Photographs of COCO 2014, each with five captions read aloud by crowd workers.",
    ),
    "spoken_scenes": Source(
        "spoken_scenes, made by speechclip-plus",
        "MIT",
        languages=("en",),
        description=(
            "Drawn scenes of two coloured shapes, with captions spoken by espeak-ng; scenes and voices of a split are "
            "in no other."
        ),
        licence_id="mit",
    ),
}


@dataclass(frozen=True)
class SplitSize:
    """What a split holds; what is None is not known."""

    rows: int | None = None  # utterances
    images: int | None = None  # different images
    speakers: int | None = None  # different speakers
    hours: float | None = None  # of speech


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """The checkpoint of the original code that a model was converted from."""

    file_name: str  # its name
    sha256: str  # its hash
    presets: Sequence[str] = ()  # published configurations that it agrees with
    notes: Sequence[str] = ()  # what was concluded in converting

    @property
    def reported(self) -> str | None:
        """The validation figure that the original code puts into a checkpoint's name, as a phrase."""
        match = re.search(r"val_recall_mean_(\d+)[=_](\d+(?:\.\d+)?)", self.file_name)
        return None if match is None else f"mean R@{match[1]} of {float(match[2]):.2f} on the validation split"


@dataclass
class ModelCardFacts:
    """What a model card tells. What is empty or None does not appear."""

    name: str  # the model's name: its repository, or its folder
    config: Any  # its `SpeechClipPlusConfig`
    parameters: Mapping[str, int] = field(default_factory=dict)  # how many are "trained" and "frozen"
    dataset: str = ""  # name of the data set it was trained on, or its repository on the Hub
    dataset_text: str = ""  # sentences about it; by default what is known of it by its name
    splits: Mapping[str, SplitSize] = field(default_factory=dict)  # sizes by split
    languages: Sequence[str] = ()  # BCP 47 codes of the speech
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)  # name to value, in the order to be shown
    steps: int | None = None  # optimiser steps that the saved weights have seen
    best_step: int | None = None  # the step that was evaluated as the best
    best_metric: str = ""  # by which figure
    progress: Sequence[Mapping[str, Any]] = ()  # the evaluations during training: column to figure, with "step"
    # panels of the chart, by title: name to (steps, values)
    curves: Mapping[str, Mapping[str, Series]] = field(default_factory=dict)
    hardware: str = ""  # what it was trained on
    seconds: float | None = None  # how long the training took
    results: Sequence[Results] = ()  # what was measured, a section each
    # keywords of a few utterances: what is said ("" if that is not written down), and the text, start and end of each
    # keyword, in seconds or None
    examples: Sequence[tuple[str, Sequence[tuple[str, float | None, float | None]]]] = ()
    examples_split: str = ""  # the split that they are of
    limits: str = ""  # what the model is not for, beside what holds for all
    license: str | None = None  # the Hub's name for the weights' licence; None leaves it open
    tags: Sequence[str] = ()  # tags to add to the metadata
    checkpoint: ConvertedCheckpoint | None = None  # what the model was converted from, if it was
    versions: Mapping[str, str] = field(default_factory=versions)  # of what it was made with


def save_model_card(folder: str | Path, facts: ModelCardFacts) -> None:
    """Write the card, README.md, and its chart into a folder, which is made or holds the saved model already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chart = training_chart(facts.curves)
    if chart is not None:
        write_bytes(folder / CHART, chart)
    write_text(folder / CARD, render_model_card(facts))


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card with metadata that the Hub accepts."""
    body = render_template(
        "model_card.md.jinja",
        facts=facts,
        config=facts.config,
        backbones=config_backbones(facts.config),
        data=DATASETS.get(facts.dataset),
        results=[render_results(results) for results in facts.results],
        progress=_thinned(facts.progress, facts.best_step),
        chart=CHART if any(facts.curves.values()) else None,
        published={} if facts.checkpoint is None else {p: published_results(p) for p in facts.checkpoint.presets},
        usage=render_usage(facts.config, facts.name),
        citation=(_TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip(),
    )
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{GENERATED}\n\n{body.strip()}\n"


def render_template(name: str, **values: Any) -> str:
    """Fill one of the templates beside this module; a value that it needs and is not given is an error."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_TEMPLATES / name).read_text(encoding="utf-8")).render(**values)


def _metadata(facts: ModelCardFacts) -> ModelCardData:
    """What the Hub finds the model by, and its results."""
    entries = [entry for results in facts.results for entry in eval_results(results)]
    is_converted = facts.checkpoint is not None
    return ModelCardData(
        license="other" if is_converted else facts.license,
        license_name="as-published-by-the-authors" if is_converted else None,
        language=list(facts.languages) or None,
        datasets=[facts.dataset] if "/" in facts.dataset else None,
        model_name=facts.name if entries else None,
        eval_results=entries or None,
        **card_metadata(facts.config, facts.tags),
    )


def config_backbones(config: Any) -> dict[str, Source]:
    """What is known of the backbones that a configuration names; paths of folders are not told."""
    found = {}
    for title, source in (("speech encoder", config.speech_backbone), ("CLIP", config.clip_backbone)):
        name = source["repo_id"] if source else ""
        if known := BACKBONES.get("/".join(Path(name).parts[-2:])):
            found[title] = known
        elif name and not is_local_path(name):
            found[title] = Source(name, "see there", f"https://huggingface.co/{name}")
        else:
            found[title] = Source("a model that is not on the Hub", "not known here")
    return found


def _thinned(rows: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Mapping[str, Any]]:
    """At most so many rows, evenly chosen, with the best and the last among them."""
    every = -(-len(rows) // MOST_ROWS) or 1
    last = len(rows) - 1
    return [row for place, row in enumerate(rows) if (last - place) % every == 0 or row["step"] == best_step]


# Data sets

_COLUMNS = {
    "audio": "an utterance, as bytes of its file: any format that libsndfile reads, at any rate",
    "image": "an image, as bytes of its file",
    "image_id": "number of the image: equal for all utterances of it",
    "text": "what is said; empty if it is not written down",
    "caption_id": "name of the utterance",
    "speaker": "who speaks; empty if unknown",
}
_DATASET_TAGS = ("speechclip-plus", "speech-image-retrieval", "spoken-captions", "visually-grounded-speech")
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
        tags=list(_DATASET_TAGS),
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
        columns=_COLUMNS,
        first=next(iter(facts.splits), "train"),
        versions={name: version for name, version in versions().items() if name in ("speechclip-plus", "datasets")},
    ).strip()
    return f"---\n{metadata.to_yaml()}\n---\n\n{GENERATED}\n\n{body}\n"
