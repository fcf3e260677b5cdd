"""Check of a data set: sizes, durations, missing and broken files, and the tokens of its captions."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ...hub_cards.cards import SplitSize
from ...modeling_speechclip_plus.audio_utils import MIN_SAMPLES, SAMPLING_RATE
from .load import read_dataset
from .schema import SPLITS, Findings, NoSuchSplitError, audio_seconds, readable_rows


@dataclass
class SplitReport:
    """Contents of a split.

    Attributes:
        data: The split.
        size: Rows, different images and speakers, and hours of all recordings that can be opened.
        durations: Seconds of the shortest recording, on average, and of the longest.
        findings: What is missing or broken.
    """

    data: datasets.Dataset
    size: SplitSize
    durations: tuple[float, float, float]
    findings: Findings


@dataclass
class DatasetReport:
    """Contents of a data set.

    Attributes:
        splits: Reports by split.
        absent: Why a split is not there, by split.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> dict[str, int]:
        """How many files are broken or missing, by split."""
        return {split: len(report.findings.broken) for split, report in self.splits.items()}

    def findings(self, shown: int = 20) -> list[str]:
        """Return what was found, one line per kind, after the splits for which it holds."""
        lines: dict[str, list[str]] = {}  # what holds for the corpus as a whole is said once
        for split, report in self.splits.items():
            for line in report.findings.lines(shown):
                lines.setdefault(line, []).append(split)
        return [f"{', '.join(splits)}: {line}" for line, splits in lines.items()]


def check_dataset(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    splits: Sequence[str] | None = None,
    on_error: str = "raise",
    **options: Any,
) -> DatasetReport:
    """Load the splits of a data set and open every file of them, without decoding.

    Args:
        name_or_path: As for `load_speech_image_dataset`, like `data_dir` and `options`.
        data_dir: Where the files are.
        splits: Splits to check; by default those of `SPLITS` that there are.
        on_error: "skip": decode every file, and leave the rows out of which one is broken.
        **options: Options of the data set.

    Raises:
        ValueError: If a split of `splits` is not there, or none at all; and as `load_speech_image_dataset`.
    """
    report = DatasetReport()
    for split in splits or SPLITS:
        findings = Findings(raises=False)
        try:
            data = read_dataset(name_or_path, split, data_dir, findings, read_all=on_error == "skip", **options)
        except NoSuchSplitError as error:
            if splits:
                raise
            report.absent[split] = str(error)
        else:
            report.splits[split] = check_files(data, findings)
    if not report.splits:
        raise ValueError(f"{name_or_path} has none of the splits {', '.join(SPLITS)}: name its own with --split.")
    return report


def check_files(data: datasets.Dataset, findings: Findings) -> SplitReport:
    """Open every recording and image of a split, without decoding; what cannot be opened is added to `findings`."""
    durations: list[float] = []

    def open_audio(item: dict[str, Any], name: str) -> None:
        seconds = audio_seconds(item, name)
        if seconds * SAMPLING_RATE < MIN_SAMPLES:
            raise ValueError(f"{name} ({item.get('path')}): too short, {1000 * seconds:.1f} ms")
        durations.append(seconds)

    readable_rows(data, open_audio, _open_image, findings)
    lengths = np.array(durations or [0.0])
    speakers = set(data["speaker"]) - {""}
    return SplitReport(
        data=data,
        size=SplitSize(len(data), len(set(data["image_id"])), len(speakers) or None, float(lengths.sum()) / 3600),
        durations=(float(lengths.min()), float(lengths.mean()), float(lengths.max())),
        findings=findings,
    )


def _open_image(image: dict[str, Any], name: str) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]):
            pass
    except Exception as error:  # on damaged files PIL raises anything from OSError to struct.error
        raise ValueError(f"{name} ({image.get('path')}): cannot be read as an image ({error})") from error


def count_tokens(captions: Iterable[str], tokenizer: Any) -> tuple[np.ndarray, int]:
    """Count CLIP's tokens in captions, as the original did to choose its vocabulary.

    Each caption, without its final full stop, fills CLIP's 77 positions: start, tokens, end and padding (id 0).

    Returns:
        counts: int64, (V, 2): token ids that occur and how often, most frequent first, of equal ones the smaller id.
        truncated: Captions that are longer.
    """
    positions = tokenizer.model_max_length
    counts: Counter[int] = Counter()
    truncated = 0
    texts = Counter(caption.strip().removesuffix(".").strip() for caption in captions)
    for text, times in texts.items():
        ids = tokenizer(text, verbose=False)["input_ids"]
        truncated += times * (len(ids) > positions)
        ids = ids if len(ids) <= positions else [*ids[: positions - 1], ids[-1]]
        for token in ids:
            counts[token] += times
        counts[0] += times * (positions - len(ids))
    ordered = sorted(((i, n) for i, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))
    return np.array(ordered, dtype=np.int64).reshape(-1, 2), truncated
