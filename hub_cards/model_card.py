"""A model card from facts: every figure in it was measured, or is marked as somebody else's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..atomic_files import write_bytes, write_text
from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from .charts import Series, training_chart
from .known_sources import BACKBONES, DATASETS, Source
from .measured_results import MeasuredResults, eval_results, render_results
from .plain_card import (
    card_metadata,
    generated_card,
    is_generated_card,
    is_local_path,
    render_usage,
)
from .versions import versions

CARD = "README.md"
PICTURE = "training.png"
MOST_ROWS = 20  # of the table of the training

_TEMPLATES = resources.files(__package__) / "templates"


@dataclass(frozen=True)
class SplitSize:
    """What a split holds; what is None is not known.

    Attributes:
        rows: recordings.
        images: different pictures.
        speakers: different speakers.
        hours: of speech.
    """

    rows: int | None = None
    images: int | None = None
    speakers: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class KeywordExample:
    """What the model read out of a recording.

    Attributes:
        caption: what is said in it; "" if that is not written down.
        keywords: each with its text and its start and end in seconds, or None where the model does not say.
    """

    caption: str
    keywords: Sequence[tuple[str, float | None, float | None]]


@dataclass
class ModelCardFacts:
    """What a model card tells. What is empty or None does not appear.

    Attributes:
        name: the model's name: its repository, or its folder.
        config: its `SpeechClipPlusConfig`.
        parameters: how many are "trained" and "frozen".
        backbones: the speech encoder and CLIP; by default those that the configuration names.
        dataset: name of the data set it was trained on, or its repository on the Hub.
        dataset_text: sentences about it; by default what is known of it by its name.
        splits: sizes by split.
        languages: BCP 47 codes of the speech.
        hyperparameters: name to value, in the order to be shown.
        steps: optimiser steps that the saved weights have seen.
        best_step: the step that was evaluated as the best.
        best_metric: by which figure.
        progress: the evaluations during training: column to figure, with "step".
        curves: panels of the picture, by title: name to (steps, values).
        hardware: what it was trained on.
        seconds: how long the training took.
        energy_kwh: what it used, if that was measured.
        energy_source: how it was measured.
        results: what was measured, a section each.
        examples: keywords of a few recordings.
        examples_split: the split that they are of.
        limits: what the model is not for, beside what holds for all.
        license: the Hub's name for the weights' licence; None leaves it open.
        versions: of what it was made with.
    """

    name: str
    config: Any
    parameters: Mapping[str, int] = field(default_factory=dict)
    backbones: Mapping[str, Source] = field(default_factory=dict)
    dataset: str = ""
    dataset_text: str = ""
    splits: Mapping[str, SplitSize] = field(default_factory=dict)
    languages: Sequence[str] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    best_step: int | None = None
    best_metric: str = ""
    progress: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Mapping[str, Series]] = field(default_factory=dict)
    hardware: str = ""
    seconds: float | None = None
    energy_kwh: float | None = None
    energy_source: str = ""
    results: Sequence[MeasuredResults] = ()
    examples: Sequence[KeywordExample] = ()
    examples_split: str = ""
    limits: str = ""
    license: str | None = None
    versions: Mapping[str, str] = field(default_factory=versions)


def save_model_card(folder: str | Path, facts: ModelCardFacts) -> None:
    """Write the card, README.md, and its picture into a folder, which may hold the saved model already."""
    folder = Path(folder)
    if (folder / "config.json").is_file():  # it says how this very folder loads
        facts = replace(facts, config=SpeechClipPlusConfig.from_pretrained(folder))
    picture = training_chart(facts.curves, units={"Recall on the validation split": "%"})
    if picture is not None:
        write_bytes(folder / PICTURE, picture)
    write_text(folder / CARD, render_model_card(facts))


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card with metadata that the Hub accepts."""
    body = render_template(
        "model_card.md.jinja",
        facts=facts,
        config=facts.config,
        backbones=dict(facts.backbones) or config_backbones(facts.config),
        data=DATASETS.get(facts.dataset),
        results=[render_results(results) for results in facts.results],
        progress=_thinned(facts.progress, facts.best_step),
        picture=PICTURE if any(facts.curves.values()) else None,
        usage=render_usage(facts.config, facts.name),
        citation=citation(),
    )
    return f"---\n{model_card_metadata(facts).to_yaml()}\n---\n\n{body.strip()}\n"


def card_for_repository(card: str, repo_id: str) -> str:
    """Let a card's code load from a repository, where it loads the folder or run that the card is titled by."""
    block = REGEX_YAML_BLOCK.search(card)
    title = re.search(r"^# (.+)$", card[block.end() :] if block else card, re.MULTILINE)
    if title is None:
        return card
    named = card.replace(f'from_pretrained("{title[1].strip()}"', f'from_pretrained("{repo_id}"')
    if named == card or not is_generated_card(card):
        return named
    return generated_card(re.sub(r"<!-- generated card \w+ -->\s*\Z", "", named))


def citation() -> str:
    """Return the papers that introduced these models, as BibTeX."""
    return (_TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip()


def render_template(name: str, **values: Any) -> str:
    """Fill one of the templates beside this module; a value that it needs and is not given is an error."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_TEMPLATES / name).read_text(encoding="utf-8")).render(**values)


def model_card_metadata(facts: ModelCardFacts) -> ModelCardData:
    """Return the card's metadata: what the Hub finds the model by, and its results."""
    entries = [entry for results in facts.results for entry in eval_results(results)]
    return ModelCardData(
        license=facts.license,
        language=list(facts.languages) or None,
        datasets=[facts.dataset] if "/" in facts.dataset else None,
        model_name=facts.name if entries else None,
        eval_results=entries or None,
        **card_metadata(facts.config),
    )


def config_backbones(config: Any) -> dict[str, Source]:
    """What is known of the backbones that a configuration names. Folders keep their paths to themselves."""
    found = {}
    for title, source in (("speech encoder", config.speech_backbone), ("CLIP", config.clip_backbone)):
        name = source["repo_id"] if source else None
        if name and not is_local_path(name):
            found[title] = BACKBONES.get(name) or Source(name, "see there", f"https://huggingface.co/{name}")
        else:
            found[title] = Source("a model that is not on the Hub", "not known here")
    return found


def _thinned(rows: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Mapping[str, Any]]:
    """At most so many rows, evenly chosen, with the best and the last among them."""
    every = -(-len(rows) // MOST_ROWS) or 1
    last = len(rows) - 1
    return [row for place, row in enumerate(rows) if (last - place) % every == 0 or row["step"] == best_step]
