"""Results as tables: the same on a terminal, on a report's page and in a card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

BRANCHES = ("parallel", "cascaded")
ITEMS = {"image": "pictures", "text": "texts"}
_RETRIEVAL_COLUMNS = {
    "R@1": "R@1",
    "R@5": "R@5",
    "R@10": "R@10",
    "mAP": "mAP",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}
_KEYWORD_UNITS = {
    "subword": "as subwords",
    "content_subword": "as subwords, without stop words",
    "word": "as words",
    "content_word": "as words, without stop words",
}
_USAGE = {
    "keywords_per_utterance": "keywords per recording",
    "distinct_keywords": "different subwords in the split",
    "keyword_duplicates": "repeated keywords within a recording, %",
    "vocabulary_coverage": "usable subwords that ever occur, %",
    "caption_coverage": "subwords of the captions that ever occur, %",
    "semantic_similarity": "cosine with the nearest subword of the caption",
    "semantic_similarity_shuffled": "the same with other recordings' captions",
    "cif_length_error": "CIF's length against its target, keywords",
}


@dataclass(frozen=True)
class ScoreRow:
    """A line of the results.

    Attributes:
        name: what was measured.
        cells: the figures, one per column.
        chance: what is shown under each figure: its interval, or what guessing gives; "" for nothing.
        is_baseline: whether the line itself is something to compare with, and no figure of the model.
    """

    name: str
    cells: Sequence[str]
    chance: Sequence[str] = ()
    is_baseline: bool = False


@dataclass(frozen=True)
class ScoreTable:
    """A table of results."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[ScoreRow]


@dataclass(frozen=True)
class Measured:
    """Figures by name, with what they are to be held against.

    Attributes:
        metrics: by name; docs/metrics.md tells what each is.
        intervals: 95 % bootstrap intervals (low, high) of those that have one.
        chance: what guessing gives, by the names of the metrics without the branch.
        published: figures that others reported of the same model on the same split, by the names of
            `configuration.presets`.
        retrieval_branch: the branch that published figures of retrieval are of.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    retrieval_branch: str | None = None

    def row(self, title: str, names: Sequence[str], digits: int = 1) -> ScoreRow:
        """Return the line of some metrics, each with its interval; empty where there is no such metric."""
        return ScoreRow(
            title,
            [_figure(name, self.metrics, digits) for name in names],
            [_interval(name, self.intervals, digits) for name in names],
        )


def result_tables(measured: Measured) -> list[ScoreTable]:
    """Return the tables: retrieval of images and texts, keywords, boundaries. What was not measured is in none."""
    tables = [table for item in ITEMS if (table := _retrieval_table(measured, item)) is not None]
    return tables + _keyword_tables(measured) + _boundary_tables(measured)


def _retrieval_table(measured: Measured, item: str) -> ScoreTable | None:
    rows = [
        row
        for branch in BRANCHES
        if f"{branch}_speech_to_{item}_R@1" in measured.metrics
        for row in _retrieval_rows(measured, branch, item)
    ]
    if not rows:
        return None
    has_intervals = any(any(row.chance) for row in rows)
    notes = ["percent but for the ranks", *(["95 % intervals below"] if has_intervals else [])]
    if "utterances" in measured.metrics:
        notes = [f"{int(measured.metrics['utterances'])} recordings", *notes]
    caption = f"Speech and {ITEMS[item]} ({'; '.join(notes)})"
    return _without_empty_columns(ScoreTable(caption, list(_RETRIEVAL_COLUMNS.values()), rows))


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


def _retrieval_rows(measured: Measured, branch: str, item: str) -> list[ScoreRow]:
    rows = []
    published = measured.published if branch == measured.retrieval_branch else {}
    for direction, title in (
        (f"speech_to_{item}", f"speech to {ITEMS[item]}"),
        (f"{item}_to_speech", f"{ITEMS[item]} to speech"),
    ):
        names = [f"{direction}_{name}" for name in _RETRIEVAL_COLUMNS]
        rows.append(measured.row(f"{branch} branch, {title}", [f"{branch}_{name}" for name in names]))
        if f"{branch}_{direction}_mteb_R@1" in measured.metrics:
            shares = [f"{branch}_{direction}_mteb_{name}" for name in _RETRIEVAL_COLUMNS]
            rows.append(measured.row("the same, share of all right recordings (MTEB's recall)", shares))
        for source, values in (("published", published), ("guessing", measured.chance)):
            if any(name in values for name in names):
                rows.append(ScoreRow(source, [_figure(name, values) for name in names], is_baseline=True))
    return rows


def _keyword_tables(measured: Measured) -> list[ScoreTable]:
    metrics, tables = measured.metrics, []
    rates = [name for name in metrics if name.startswith("keyword_hit_rate")]
    if rates:
        rows = []
        for name in rates:
            k = name.partition("@")[2]
            kind = (
                "start, end and padding count, as in the original code"
                if "original" in name
                else "start, end and padding never count"
            )
            values = [_figure(name, source) for source in (metrics, measured.published, measured.chance)]
            row = measured.row(f"k = {k}, {kind}", [name])
            rows.append(ScoreRow(row.name, values, [*row.chance, "", ""]))
        if "keyword_hit_rate_most_common@1" in measured.chance:
            common = _figure("keyword_hit_rate_most_common@1", measured.chance)
            rows.append(ScoreRow("always the commonest subword", ["", "", common], is_baseline=True))
        columns = ["measured", "published", "guessing"]
        tables.append(_without_empty_columns(ScoreTable("Keyword hit rate (percent)", columns, rows)))
    if "subword_f1" in metrics:
        rows = [
            measured.row(title, [f"{unit}_{name}" for name in ("precision", "recall", "f1")])
            for unit, title in _KEYWORD_UNITS.items()
            if f"{unit}_f1" in metrics
        ]
        tables.append(ScoreTable("Keywords against captions (percent)", ["precision", "recall", "F1"], rows))
    rows = [
        measured.row(title, [name], digits=1 if title.endswith("%") else 3)
        for name, title in _USAGE.items()
        if name in metrics
    ]
    if rows:
        tables.append(ScoreTable("Use of keywords", ["value"], rows))
    return tables


def _boundary_tables(measured: Measured) -> list[ScoreTable]:
    tolerances = [name.partition("@")[2] for name in measured.metrics if name.startswith("boundary_f1@")]
    if not tolerances:
        return []
    rows = []
    for tolerance in tolerances:
        names = [f"boundary_{name}@{tolerance}" for name in ("precision", "recall", "f1", "r_value")]
        rows.append(measured.row(f"within {tolerance.removesuffix('ms')} ms", names))
        guess = [_figure(name, measured.chance) for name in names]
        rows.append(ScoreRow("as many boundaries, evenly spaced", guess, is_baseline=True))
    count = int(measured.metrics["aligned_utterances"])
    caption = f"Where CIF fires against word boundaries ({count} recordings; percent)"
    return [ScoreTable(caption, ["precision", "recall", "F1", "R-value"], rows)]


def _figure(name: str, values: Mapping[str, Any], digits: int = 1) -> str:
    value = values.get(name)
    if value is None:
        return ""
    return f"{value:g}" if name.endswith("median_rank") or isinstance(value, int) else f"{value:.{digits}f}"


def _interval(name: str, intervals: Mapping[str, Sequence[float]], digits: int) -> str:
    if name not in intervals:
        return ""
    low, high = (_figure(name, {name: float(end)}, digits) for end in intervals[name])
    return f"{low} to {high}"
