"""Results of an evaluation: what was measured on a split, its tables, its JSON, and its place in a model card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from ..atomic_files import write_text

BRANCHES = ("parallel", "cascaded")
ITEMS = {"image": "images", "text": "texts"}
_RECALLS = ("R@1", "R@5", "R@10")
_RETRIEVAL_COLUMNS = (*_RECALLS, "mAP", "median_rank", "mean_rank")
_KEYWORD_UNITS = {
    "subword": "as tokens",
    "content_subword": "as tokens, without stop words",
    "word": "as words",
    "content_word": "as words, without stop words",
}
_USAGE = {
    "keywords_per_utterance": "keywords per utterance",
    "distinct_keywords": "different tokens in the split",
    "keyword_duplicates": "repeated keywords within an utterance, %",
    "vocabulary_coverage": "usable tokens that ever occur, %",
    "caption_coverage": "tokens of the captions that ever occur, %",
    "semantic_similarity": "cosine with the nearest token of the caption",
    "semantic_similarity_shuffled": "the same with other utterances' captions",
    "cif_length_error": "CIF's length against its target, keywords",
}
_THREE_DIGITS = ("semantic_similarity", "semantic_similarity_shuffled", "cif_length_error")
_END = "<!-- /measured -->"


@dataclass
class Results:
    """What was measured on a split, and what it is to be held against."""

    metrics: dict[str, float] = field(default_factory=dict)  # by name; docs/metrics.md tells what each is
    # 95 % bootstrap confidence intervals (low, high) of those metrics that have one
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    # what chance gives, by the names of the metrics without the branch
    chance: dict[str, float] = field(default_factory=dict)
    # figures that others reported of the same model on the same split, by the same names, with their `source` and
    # `preset`
    published: Mapping[str, Any] = field(default_factory=dict)
    # recall in percent at 1 to 100, by branch and direction: `parallel_speech_to_image`
    curves: dict[str, list[float]] = field(default_factory=dict)
    # rank of each query's right answer, from 1, by the same names; not saved
    ranks: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)  # sentences about what could not be measured, and why
    model: str = ""  # the model's folder or repository
    variant: str = ""  # its variant
    retrieval_branch: str | None = None  # the branch that published figures of retrieval are of
    presets: Sequence[str] = ()  # the published configurations that it agrees with
    dataset: str = ""  # the data set's name, such as "spoken_scenes", its repository on the Hub, or its folder
    data_dir: str | None = None  # where its files are
    split: str = "test"  # the split that was measured
    options: Mapping[str, Any] = field(default_factory=dict)  # the options that the data set was loaded with
    limit: int | None = None  # how many utterances were measured, if not all of the split
    captions: int | None = None  # how many utterances have a caption
    hours: float | None = None  # hours of speech
    bootstrap: Mapping[str, Any] = field(default_factory=dict)  # `resamples`, `confidence` and `seed` of the intervals
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that measured
    date: str = ""  # ISO 8601; "" if unknown
    seconds: float | None = None  # how long it took
    how: str = ""  # what measured, for the card: "`speechclip-plus evaluate`"

    @property
    def dataset_name(self) -> str:
        """The data set's name, without the folders above it, which are nobody's business."""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset):
            return self.dataset
        return Path(self.data_dir if self.dataset == "folder" and self.data_dir else self.dataset).name

    @property
    def dataset_config(self) -> str | None:
        """The options in words, such as "languages=fr"; None without any."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.options.items())) or None

    @property
    def title(self) -> str:
        """What was measured, such as "test split of spoken_scenes (languages=fr; first 3 utterances)"."""
        first = f"first {self.limit} utterances" if self.limit else None
        notes = "; ".join(note for note in (self.dataset_config, first) if note)
        return f"{self.split} split of {self.dataset_name}" + (f" ({notes})" if notes else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            "model": {
                "path": self.model,
                "variant": self.variant,
                "retrieval_branch": self.retrieval_branch,
                "presets": list(self.presets),
            },
            "data": {
                "name": self.dataset,
                "data_dir": self.data_dir,
                "split": self.split,
                "options": dict(self.options),
                "limit": self.limit,
                "utterances": self.metrics["utterances"],
                "images": self.metrics["images"],
                "captions": self.captions,
                "hours": self.hours,
            },
            "metrics": self.metrics,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "chance": self.chance,
            "published": dict(self.published) or None,
            "curves": self.curves,
            "notes": self.notes,
            "bootstrap": dict(self.bootstrap),
            "versions": dict(self.versions),
            "date": self.date,
            "seconds": self.seconds,
        }


# Tables


@dataclass(frozen=True)
class ScoreRow:
    """A line of the results."""

    name: str  # what was measured
    cells: Sequence[str]  # the figures, one per column
    chance: Sequence[str] = ()  # what is shown under each figure: its interval, or what chance gives; "" for nothing
    is_baseline: bool = False  # whether the line itself is something to compare with, and no figure of the model

    @property
    def texts(self) -> list[str]:
        """The figures, each with what is shown under it in brackets behind it."""
        below = self.chance or [""] * len(self.cells)
        return [f"{cell} [{under}]" if under else cell for cell, under in zip(self.cells, below, strict=True)]


@dataclass(frozen=True)
class ScoreTable:
    """A table of results."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[ScoreRow]


def markdown_table(table: ScoreTable) -> str:
    """Return a table as Markdown, baselines in italics."""
    lines = [f"| | {' | '.join(table.columns)} |", f"|---|{'---:|' * len(table.columns)}"]
    for row in table.rows:
        name = f"*{row.name}*" if row.is_baseline else row.name
        lines.append(f"| {name} | {' | '.join(row.texts)} |")
    return "\n".join(lines)


def result_tables(results: Results) -> list[ScoreTable]:
    """Return the tables of what was measured: retrieval of images and texts, keywords, boundaries."""
    tables = [table for item in ITEMS if (table := _retrieval_table(results, item)) is not None]
    return tables + _keyword_tables(results) + _boundary_tables(results)


def _retrieval_table(results: Results, item: str) -> ScoreTable | None:
    rows = [
        row
        for branch in BRANCHES
        if f"{branch}_speech_to_{item}_R@1" in results.metrics
        for row in _retrieval_rows(results, branch, item)
    ]
    if not rows:
        return None
    has_intervals = any(any(row.chance) for row in rows)
    notes = ["percent but for the ranks", *(["95 % confidence intervals"] if has_intervals else [])]
    if "utterances" in results.metrics:
        notes = [f"{int(results.metrics['utterances'])} utterances", *notes]
    caption = f"Speech and {ITEMS[item]} ({'; '.join(notes)})"
    return _without_empty_columns(ScoreTable(caption, [name.replace("_", " ") for name in _RETRIEVAL_COLUMNS], rows))


def _without_empty_columns(table: ScoreTable) -> ScoreTable:
    filled = [place for place in range(len(table.columns)) if any(row.cells[place] for row in table.rows)]
    rows = [
        replace(
            row,
            cells=[row.cells[place] for place in filled],
            chance=[row.chance[place] for place in filled] if row.chance else (),
        )
        for row in table.rows
    ]
    return ScoreTable(table.caption, [table.columns[place] for place in filled], rows)


def _retrieval_rows(results: Results, branch: str, item: str) -> list[ScoreRow]:
    rows = []
    published = results.published if branch == results.retrieval_branch else {}
    for direction, title in (
        (f"speech_to_{item}", f"speech to {ITEMS[item]}"),
        (f"{item}_to_speech", f"{ITEMS[item]} to speech"),
    ):
        names = [f"{direction}_{name}" for name in _RETRIEVAL_COLUMNS]
        rows.append(_row(results, f"{branch} branch, {title}", [f"{branch}_{name}" for name in names]))
        for source, values in (("published", published), ("chance", results.chance)):
            if any(name in values for name in names):
                rows.append(ScoreRow(source, [_figure(name, values) for name in names], is_baseline=True))
        if f"{branch}_{direction}_mteb_R@1" in results.metrics:
            shares = [f"{branch}_{direction}_mteb_{name}" for name in _RETRIEVAL_COLUMNS]
            rows.append(_row(results, f"{title}, share of all right utterances (MTEB's recall)", shares))
    return rows


def _keyword_tables(results: Results) -> list[ScoreTable]:
    metrics, tables = results.metrics, []
    rows = []
    for name in (name for name in metrics if name.startswith("keyword_hit_rate")):
        k = name.partition("@")[2]
        never = "count, as in the original code" if "original" in name else "never count"
        row = _row(results, f"k = {k}, start, end and padding {never}", [name])
        values = [_figure(name, source) for source in (metrics, results.published, results.chance)]
        rows.append(ScoreRow(row.name, values, [*row.chance, "", ""]))
        common = _figure(f"keyword_hit_rate_most_common@{k}", results.chance)
        if common and "original" not in name:
            rows.append(ScoreRow(f"k = {k}, always the commonest token", ["", "", common], is_baseline=True))
    if rows:
        columns = ["measured", "published", "chance"]
        tables.append(_without_empty_columns(ScoreTable("Keyword hit rate (percent)", columns, rows)))
    if "subword_f1" in metrics:
        rows = [
            _row(results, title, [f"{unit}_{name}" for name in ("precision", "recall", "f1")])
            for unit, title in _KEYWORD_UNITS.items()
            if f"{unit}_f1" in metrics
        ]
        tables.append(ScoreTable("Keywords against captions (percent)", ["precision", "recall", "F1"], rows))
    rows = [_row(results, title, [name]) for name, title in _USAGE.items() if name in metrics]
    if rows:
        tables.append(ScoreTable("Use of keywords", ["value"], rows))
    return tables


def _boundary_tables(results: Results) -> list[ScoreTable]:
    tolerances = [name.partition("@")[2] for name in results.metrics if name.startswith("boundary_f1@")]
    if not tolerances:
        return []
    rows = []
    for tolerance in tolerances:
        names = [f"boundary_{name}@{tolerance}" for name in ("precision", "recall", "f1", "r_value")]
        rows.append(_row(results, f"within {tolerance.removesuffix('ms')} ms", names))
        chance = [_figure(name, results.chance) for name in names]
        rows.append(ScoreRow("as many boundaries, evenly spaced", chance, is_baseline=True))
    count = int(results.metrics["aligned_utterances"])
    caption = f"Where CIF fires against word boundaries ({count} utterances; percent)"
    tables = [ScoreTable(caption, ["precision", "recall", "F1", "R-value"], rows)]
    if "keyword_localization" in results.metrics:
        rows = [_row(results, "where CIF puts them", ["keyword_localization"])]
        for name, title in (("", "evenly spaced"), ("_shuffled", "CIF's spans, shuffled between keywords")):
            value = _figure(f"keyword_localization{name}", results.chance)
            rows.append(ScoreRow(title, [value], is_baseline=True))
        correct = f"{results.metrics['keywords_correct']:,}"
        tables.append(ScoreTable(f"Localization of the {correct} correct keywords (percent)", ["in place"], rows))
    return tables


def _row(results: Results, title: str, names: Sequence[str]) -> ScoreRow:
    """The line of some metrics, each with its interval; empty where there is no such metric."""
    intervals = [
        " to ".join(_figure(name, {name: float(end)}) for end in results.intervals.get(name, ())) for name in names
    ]
    return ScoreRow(title, [_figure(name, results.metrics) for name in names], intervals)


def _figure(name: str, values: Mapping[str, Any]) -> str:
    value = values.get(name)
    if value is None:
        return ""
    if name.endswith("median_rank") or isinstance(value, int):
        return f"{value:g}"
    return f"{value:.{3 if name in _THREE_DIGITS else 1}f}"


# Model cards


def render_results(results: Results) -> str:
    """Return the results' section of a card, between marks by which `update_card` finds it again."""
    parts = [f"on {results.date[:10]}" if results.date else "", f"by {results.how}" if results.how else ""]
    origin = " ".join(filter(None, parts))
    sentences = [*([f"Measured {origin}."] if origin else []), "Ties count against the model."]
    if results.intervals:
        sentences.append("In brackets: 95 % bootstrap confidence intervals.")
    tables = result_tables(results)
    if any("published" in (*table.columns, *(row.name for row in table.rows)) for table in tables):
        source = results.published.get("source", "the file name of the authors' weights")
        sentences.append(f"Published: figures that the authors reported ({source}), not measured again.")
    parts = [_begin(results), f"### {results.title[0].upper()}{results.title[1:]}", " ".join(sentences)]
    for table in tables:
        parts += [f"{table.caption}:", markdown_table(table)]
    return "\n\n".join([*parts, _END])


def eval_results(results: Results) -> list[EvalResult]:
    """Return the results as entries of a card's metadata; none for a part of a split, which is no result of it."""
    if results.limit:
        return []

    def entry(name: str, task: str, metric: str, title: str) -> EvalResult:
        ends = results.intervals.get(name)
        return EvalResult(
            task_type=task,
            task_name=task.replace("-", " "),
            dataset_type=results.dataset_name,
            dataset_name=results.dataset_name,
            dataset_config=results.dataset_config,
            dataset_split=results.split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(results.metrics[name], 2),
            metric_args=None if ends is None else {"confidence": 0.95, "interval": [round(end, 2) for end in ends]},
        )

    entries = [
        entry(name, "speech-image-retrieval", "retrieval_recall", f"{branch} {direction.replace('_', ' ')} {recall}")
        for branch in BRANCHES
        for direction in ("speech_to_image", "image_to_speech")
        for recall in _RECALLS
        if (name := f"{branch}_{direction}_{recall}") in results.metrics
    ]
    if "keyword_hit_rate@1" in results.metrics:
        entries.append(
            entry("keyword_hit_rate@1", "speech-keyword-extraction", "keyword_hit_rate", "keyword hit rate, k=1")
        )
    return entries


def update_card(path: str | Path, results: Results) -> None:
    """Put results into a README.md that exists, in the place of earlier ones of the same data.

    Their section goes under the heading "Results", and their entries into the metadata's `model-index`. Metadata that
    cannot be read are a ValueError.
    """
    path = Path(path)
    try:
        card = ModelCard.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: the metadata (between the lines ---) cannot be read: {error}") from error
    if new := eval_results(results):
        replaced = {entry.unique_identifier for entry in new}
        kept = [entry for entry in card.data.eval_results or () if entry.unique_identifier not in replaced]
        title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
        card.data.model_name = card.data.model_name or (title[1].strip() if title else path.resolve().parent.name)
        card.data.eval_results = kept + new
    card.text = _with_section(card.text, results)
    write_text(path, str(card) if card.data.to_dict() else card.text)


def _begin(results: Results) -> str:
    return f"<!-- measured: {results.title.replace('--', '- -')} -->"


def _with_section(body: str, results: Results) -> str:
    section = render_results(results)
    # What is there of these data; else the place that was left for the first results.
    for begin in (_begin(results), "<!-- measured -->"):
        if earlier := re.search(f"{re.escape(begin)}.*?{re.escape(_END)}", body, re.DOTALL):
            return body[: earlier.start()] + section + body[earlier.end() :]
    if heading := re.search(r"^## Results[ \t]*$", body, re.MULTILINE):
        return f"{body[: heading.end()]}\n\n{section}\n{body[heading.end() :]}"
    return f"{body.rstrip()}\n\n## Results\n\n{section}\n"
