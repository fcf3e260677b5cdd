"""Schema of all data sets: columns, split names, and findings, the account of what did not become a row."""

import hashlib
import io
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import soundfile

from ...modeling_speechclip_plus.audio_utils import load_audio
from ...modeling_speechclip_plus.image_utils import load_image

SPLITS = ("train", "validation", "test")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AUDIO = datasets.Audio(sampling_rate=16_000, decode=False)
IMAGE = datasets.Image(decode=False)
FEATURES = datasets.Features(
    {
        "audio": AUDIO,
        "image": IMAGE,
        "image_id": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "caption_id": datasets.Value("string"),
        "speaker": datasets.Value("string"),
    }
)
WORDS = datasets.List(
    {"word": datasets.Value("string"), "start": datasets.Value("float32"), "end": datasets.Value("float32")}
)
"""Type of the column `words`, which a data set may have: each utterance's words with their times in seconds."""


class NoSuchSplitError(ValueError):
    """The data set is there, but not this split of it; `divisible` if `validation_share` can make one."""

    divisible = False


@dataclass
class Findings:
    """What was found in a corpus and did not become a row as it should."""

    raises: bool = True  # whether a missing file is an error; otherwise it is recorded in `broken`
    noted: dict[str, list[str]] = field(default_factory=dict)  # what a corpus is known for, names by kind
    broken: list[str] = field(default_factory=list)  # files that should be there and whole, and what is wrong

    def note(self, kind: str, name: str) -> None:
        """Record something that the corpus is known for."""
        self.noted.setdefault(kind, []).append(name)

    def missing(self, message: str) -> None:
        """Raise FileNotFoundError, or record the file as left out."""
        if self.raises:
            raise FileNotFoundError(message)
        self.broken.append(message)

    def lines(self, shown: int = 20) -> list[str]:
        """One line per kind: how many, and the first `shown` of them by name."""
        lines = [f"{kind}: {len(names)} ({some(names, ', ', shown)})" for kind, names in self.noted.items()]
        if self.broken:
            lines.append(f"broken or missing: {len(self.broken)} ({some(self.broken, ' | ', shown)})")
        return lines


def some(names: list[str], between: str, shown: int) -> str:
    """The first names, and how many more there are."""
    more = f"{between}and {len(names) - shown} more" if len(names) > shown else ""
    return between.join(names[:shown]) + more


def check_split(split: str) -> None:
    """Raise a ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")


def check_columns(columns: Any, known: Collection[str]) -> None:
    """Check the names that a source has for columns: an error unless they are a mapping from `known` ones."""
    if not isinstance(columns, Mapping):
        raise TypeError(f'columns={columns!r}: expected a mapping such as {{"audio": "sound"}}.')
    if unknown := sorted(set(columns).difference(known)):
        raise ValueError(
            f"columns names {', '.join(unknown)}, which this data set does not have here: give its own name for any "
            f'of {", ".join(known)}, as in columns={{"audio": "sound"}}.'
        )
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"columns={dict(columns)} gives one column for two: each has one meaning only.")


def as_string(value: Any, column: str, row: str) -> str:
    """Return the value of a text column; "" for null, and the digits of a speaker or caption that is a number."""
    if value is None or isinstance(value, str):
        return value or ""
    if column != "text" and isinstance(value, (int, float)):
        return str(value)
    raise ValueError(f"{row}: {column} is {type(value).__name__} ({str(value)[:40]}), expected a string.")


def make_dataset(rows: Iterable[Mapping[str, Any]], split: str) -> datasets.Dataset:
    """Make a data set of rows whose `audio` and `image` are paths."""
    import pyarrow

    schema = FEATURES.arrow_schema.remove_metadata()
    for name in ("audio", "image"):
        schema = schema.set(schema.get_field_index(name), pyarrow.field(name, pyarrow.string()))
    remaining = iter(rows)
    # Batch by batch: a list of half a million dictionaries takes gigabytes.
    parts = iter(lambda: list(islice(remaining, 20_000)), [])
    batches = [pyarrow.RecordBatch.from_pylist(part, schema) for part in parts]
    table = pyarrow.Table.from_batches(batches or [pyarrow.RecordBatch.from_pylist([], schema)], schema)
    data = datasets.Dataset(table, split=datasets.NamedSplit(split))
    return data.cast_column("audio", AUDIO).cast_column("image", IMAGE)


def readable_rows(
    data: datasets.Dataset, findings: Findings, read_audio: Any = load_audio, read_image: Any = load_image
) -> list[int]:
    """Return the rows whose recording and image can be read; `findings` gets what cannot, each image once."""

    def is_readable(read: Any, row: Mapping[str, Any], column: str) -> bool:
        try:
            read(row[column], name=f"{column} of {row['caption_id']}")
        except (ValueError, TypeError, OSError) as error:
            findings.broken.append(str(error))
            return False
        return True

    images: dict[int, bool] = {}
    kept = []
    for index, row in enumerate(data):
        if row["image_id"] not in images:
            images[row["image_id"]] = is_readable(read_image, row, "image")
        # The recording is read even if its image is broken: the summary names all broken files.
        if is_readable(read_audio, row, "audio") and images[row["image_id"]]:
            kept.append(index)
    return kept


def audio_seconds(item: Any, name: str) -> float:
    """Length of a recording, in any form that `load_audio` reads, by its header; a ValueError if it is broken."""
    if not isinstance(item, Mapping):
        item = {"bytes": item} if isinstance(item, bytes) else {"path": str(item)}
    if item.get("array") is not None:
        return len(item["array"]) / item["sampling_rate"]
    try:
        header = soundfile.info(io.BytesIO(item["bytes"]) if item.get("bytes") is not None else item["path"])
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} ({item.get('path')}): cannot be read as audio ({error})") from error
    return header.frames / header.samplerate


def stable_id(content: str | bytes) -> int:
    """A number of 63 bits that follows from the content alone."""
    content = content.encode("utf-8") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def files_in(folder: str | Path) -> frozenset[str]:
    """Names of the files of a folder; none if there is no such folder."""
    if not os.path.isdir(folder):
        return frozenset()
    return frozenset(entry.name for entry in os.scandir(folder) if not entry.is_dir())


def given_folder(name: str, data_dir: str | Path | None, wanted: str) -> Path:
    """Return `data_dir` as an absolute path; the error if there is none says what is `wanted`."""
    if data_dir is None:
        raise ValueError(f"The data set {name!r} needs data_dir: {wanted}")
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}. The data set {name!r} needs {wanted}")
    return root
