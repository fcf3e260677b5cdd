"""Results in a card: a section of tables, entries of its metadata, and both put into a card that is there already."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from ..atomic_files import write_text
from .results import BRANCHES, Measured, ScoreTable, result_tables

_DIRECTIONS = {"speech_to_image": "speech to image", "image_to_speech": "image to speech"}
_RECALLS = ("R@1", "R@5", "R@10")
_END = "<!-- /measured -->"


@dataclass(frozen=True)
class MeasuredResults(Measured):
    """What was measured on a split.

    Attributes:
        dataset: the data set's name, such as "spoken_scenes", or its repository on the Hub.
        split: the split that was measured.
        options: the options that the data set was loaded with.
        limit: how many recordings were measured, if not all of the split.
        how: what measured, such as "`speechclip-plus evaluate`".
        date: the day, as 2026-01-31; "" if unknown.
        description: sentences about the split.
    """

    dataset: str = ""
    split: str = "test"
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    how: str = ""
    date: str = ""
    description: str = ""

    @property
    def dataset_config(self) -> str | None:
        """The options in words, such as "languages=fr"; None without any."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.options.items())) or None

    @property
    def title(self) -> str:
        """What was measured, such as "test split of stamps (languages=fr; first 3 recordings)"."""
        first = f"first {self.limit} recordings" if self.limit else None
        notes = "; ".join(note for note in (self.dataset_config, first) if note)
        return f"{self.split} split of {self.dataset}" + (f" ({notes})" if notes else "")


def results_of_file(content: Mapping[str, Any]) -> MeasuredResults:
    """Return what a results.json of `speechclip-plus evaluate` holds."""
    data = content["data"]
    own = data["name"] == "folder" and data["data_dir"]
    return MeasuredResults(
        metrics=content["metrics"],
        intervals=content["intervals"],
        chance=content["chance"],
        published=content["published"] or {},
        retrieval_branch=content["model"]["retrieval_branch"],
        # Where it lies on this machine is nobody's business.
        dataset=data["name"] if re.fullmatch(r"[\w.-]+/[\w.-]+", data["name"]) else Path(own or data["name"]).name,
        split=data["split"],
        options=data["options"],
        limit=data["limit"],
        how="`speechclip-plus evaluate`",
        date=content["date"][:10],
    )


def render_results(results: MeasuredResults) -> str:
    """Return the section of a card, between marks by which it is found again."""
    measured = " ".join(
        [
            "Measured",
            *([f"on {results.date}"] if results.date else []),
            *([f"by {results.how}"] if results.how else []),
        ]
    )
    sentences = [f"{measured}." if measured != "Measured" else "", results.description]
    sentences.append("Ties count against the model.")
    if results.intervals:
        sentences.append("In brackets: 95 % bootstrap intervals.")
    tables = result_tables(results)
    if any("published" in (*table.columns, *(row.name for row in table.rows)) for table in tables):
        source = results.published.get("source", "the file name of the authors' weights")
        sentences.append(f"Published: figures that the authors reported ({source}), not measured again.")
    parts = [_begin(results), f"### {results.title[0].upper()}{results.title[1:]}", " ".join(filter(None, sentences))]
    for table in tables:
        parts += [f"{table.caption.replace('; 95 % intervals below', '')}:", markdown_table(table)]
    return "\n\n".join([*parts, _END])


def markdown_table(table: ScoreTable) -> str:
    """Return a table as markdown, intervals in brackets behind their figures."""
    lines = [f"| | {' | '.join(table.columns)} |", f"|---|{'---:|' * len(table.columns)}"]
    for row in table.rows:
        below = row.chance or [""] * len(row.cells)
        cells = [f"{cell} [{ends}]" if ends else cell for cell, ends in zip(row.cells, below, strict=True)]
        name = f"*{row.name}*" if row.is_baseline else row.name
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def eval_results(results: MeasuredResults) -> list[EvalResult]:
    """Return the results as entries of a card's metadata; none for a part of a split, which is no result of it."""
    if results.limit:
        return []

    def entry(name: str, task: str, metric: str, title: str) -> EvalResult:
        ends = results.intervals.get(name)
        return EvalResult(
            task_type=task,
            task_name=task.replace("-", " "),
            dataset_type=results.dataset,
            dataset_name=results.dataset,
            dataset_config=results.dataset_config,
            dataset_split=results.split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(results.metrics[name], 2),
            metric_args=None if ends is None else {"confidence": 0.95, "interval": [round(end, 2) for end in ends]},
        )

    entries = [
        entry(name, "speech-image-retrieval", "retrieval_recall", f"{branch} {title} {recall}")
        for branch in BRANCHES
        for direction, title in _DIRECTIONS.items()
        for recall in _RECALLS
        if (name := f"{branch}_{direction}_{recall}") in results.metrics
    ]
    if "keyword_hit_rate@1" in results.metrics:
        entries.append(
            entry("keyword_hit_rate@1", "speech-keyword-extraction", "keyword_hit_rate", "keyword hit rate, k=1")
        )
    return entries


def update_card(card: Path, results: MeasuredResults) -> None:
    """Put results into a card, in the place of earlier ones of the same data; the rest stays as it is.

    Their section goes under the heading "Results", and their entries into the metadata's `model-index`.

    Args:
        card: the README.md.
        results: what was measured.

    Raises:
        ValueError: if the card's metadata cannot be read.
    """
    text = card.read_text(encoding="utf-8")
    block = REGEX_YAML_BLOCK.search(text)
    head, body = (block[2], text[block.end() :]) if block else ("", text)
    if new := eval_results(results):
        title = re.search(r"^# (.+)$", body, re.MULTILINE)
        name = title[1].strip() if title else card.resolve().parent.name
        head = _with_entries(head, new, name, card)
    body = _with_section(body, results)
    write_text(card, f"---\n{head.strip()}\n---\n{body}" if head else body)


def _begin(results: MeasuredResults) -> str:
    return f"<!-- measured: {results.title.replace('--', '- -')} -->"


def _with_section(body: str, results: MeasuredResults) -> str:
    section = render_results(results)
    # What is there of these data; else the place that was left for the first results.
    for begin in (_begin(results), "<!-- measured -->"):
        found = re.search(f"{re.escape(begin)}.*?{re.escape(_END)}", body, re.DOTALL)
        if found:
            return body[: found.start()] + section + body[found.end() :]
    if heading := re.search(r"^## Results[ \t]*$", body, re.MULTILINE):
        return f"{body[: heading.end()]}\n\n{section}\n{body[heading.end() :]}"
    return f"{body.rstrip()}\n\n## Results\n\n{section}\n"


def _with_entries(head: str, new: Sequence[EvalResult], model_name: str, card: Path) -> str:
    """Replace `model-index` in the text of the metadata and leave every other byte alone."""
    try:
        root = yaml.compose(head, yaml.SafeLoader)
        index = (yaml.safe_load(head) or {}).get("model-index") or []
        if index:
            model_name, kept = model_index_to_eval_results(index)
        else:
            kept = []
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The metadata of {card} (between the lines ---) cannot be read, so no results are put there: {error!r}. "
            "Mend it, or leave --update-card out."
        ) from error
    replaced = {entry.unique_identifier for entry in new}
    entries = [entry for entry in kept if entry.unique_identifier not in replaced] + list(new)
    made = yaml.safe_dump(
        {"model-index": eval_results_to_model_index(model_name, entries)}, sort_keys=False, allow_unicode=True
    ).rstrip()
    for key, value in root.value if root is not None else ():
        if key.value == "model-index":
            return head[: key.start_mark.index] + made + head[_end(value) :]
    return f"{head.rstrip()}\n{made}".lstrip()


def _end(node: yaml.Node) -> int:
    """Where a node's text ends; a block's own mark is where the next one begins, behind any comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
