"""An index while it is built: at any moment, what was written so far can be gone on from.

It lies in a hidden folder beside the place where it will appear (`.NAME.building`). Every step appends to the files of
`embedding_index` and then replaces `index.json`, which says how much of each counts: what a killed process wrote after
its last step is cut off by the next one.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic_files import move_in_place, write_json
from ...modeling_speechclip_plus.embedding_index import (
    EMBEDDINGS,
    FACTS,
    FILES,
    FORMAT,
    ITEMS,
    PLACES,
    VERSION,
    EmbeddingIndex,
)

_APPENDED = (EMBEDDINGS, ITEMS, FILES)


class IndexWriter:
    """Write an index step by step.

    Attributes:
        done: items of the gallery that are dealt with: they are in the index, or were skipped.
        rows: items in the index.
        skipped: what was left out, each with the reason.

    Args:
        work: the hidden folder.
        plan: what is built, as plain values: what was begun with another plan is not gone on with.
        width: P, of the embeddings.
        restart: throw away what was begun with another plan, or is damaged.

    Raises:
        ValueError: if something else was begun there, or what was begun is damaged, and `restart` is not given.
    """

    def __init__(self, work: Path, plan: Mapping[str, Any], width: int, restart: bool = False) -> None:
        self.work, self.plan, self.width = work, dict(plan), width
        self.done, self.rows, self.skipped = 0, 0, list[str]()
        self._sizes = {EMBEDDINGS: len(_npy_header(0, width)), ITEMS: 0, FILES: 0}
        if (work / FACTS).is_file():
            try:
                self._go_on()
                return
            except ValueError:
                if not restart:
                    raise
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for name in _APPENDED:
            (work / name).write_bytes(_npy_header(0, width) if name == EMBEDDINGS else b"")
        self._commit()

    def _go_on(self) -> None:
        way_out = f"Begin anew with force=True (--force), or remove {self.work}."
        try:
            begun = json.loads((self.work / FACTS).read_text(encoding="utf-8"))
            present = {name: (self.work / name).stat().st_size for name in _APPENDED}
            other = [name for name in self.plan if _compared(name, begun[name]) != _compared(name, self.plan[name])]
            if begun["complete"]:  # all that is missing is its name
                done, rows, sizes = begun["gallery"]["items"], begun["count"], present
            else:
                done, rows, sizes = begun["done"], begun["rows"], begun["sizes"]
            short = [name for name in _APPENDED if present[name] < sizes[name]]
            skipped = begun["skipped"]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"The unfinished index in {self.work} is damaged ({error}). {way_out}") from error
        if other:
            raise ValueError(
                f"An index was begun in {self.work} with another {' and another '.join(other)}: give the command that "
                f"began it, and it goes on. {way_out}"
            )
        if short:
            raise ValueError(f"The unfinished index in {self.work} is damaged: {short[0]} is cut off. {way_out}")
        for name in _APPENDED:
            os.truncate(self.work / name, sizes[name])
        self.done, self.rows, self.skipped, self._sizes = done, rows, skipped, sizes

    def append(
        self,
        embeds: np.ndarray,
        items: Sequence[Mapping[str, Any]],
        contents: Sequence[bytes | None],
        done: int,
        skipped: Sequence[str] = (),
    ) -> None:
        """Add rows; when this returns they are there for whoever goes on, even if this process is killed.

        Args:
            embeds: (B, P).
            items: what they are of.
            contents: of those that have no file of their own the bytes, to be kept.
            done: number of items of the gallery that are dealt with now.
            skipped: what was left out meanwhile.
        """
        lines = []
        place = self._sizes[FILES]
        for item, content in zip(items, contents, strict=True):
            where = {} if content is None else {"bytes": [place, len(content)]}
            place += len(content or b"")
            lines.append(json.dumps({**item, **where}).encode() + b"\n")
        parts = (np.ascontiguousarray(embeds, "<f4").tobytes(), b"".join(lines), b"".join(filter(None, contents)))
        for name, part in zip(_APPENDED, parts, strict=True):
            if part:
                with (self.work / name).open("ab") as stream:
                    stream.write(part)
                self._sizes[name] += len(part)
        self.done, self.rows = done, self.rows + len(items)
        self.skipped += skipped
        self._commit()

    def _commit(self) -> None:
        state = {"done": self.done, "rows": self.rows, "sizes": self._sizes, "skipped": self.skipped}
        write_json(self.work / FACTS, {**_head(False), **self.plan, **state})

    def finish(self, folder: Path) -> EmbeddingIndex:
        """Give the index its name, in the place of what has it now, and open it."""
        # Nothing here is lost if it is cut short: it is done again.
        with (self.work / EMBEDDINGS).open("r+b") as stream:
            stream.write(_npy_header(self.rows, self.width))
        with (self.work / ITEMS).open("rb") as lines:
            places = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        np.save(self.work / PLACES, places)
        sizes = {"count": self.rows, "width": self.width, "bytes": self._sizes[FILES]}
        write_json(self.work / FACTS, {**_head(True), **self.plan, **sizes, "skipped": self.skipped})
        move_in_place(self.work, folder)
        if not self._sizes[FILES]:
            (folder / FILES).unlink()
        return EmbeddingIndex.load(folder)


def _head(complete: bool) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "complete": complete}


def _compared(name: str, value: Any) -> Any:
    return value["weights"] if name == "model" else value  # not by which name it was loaded


def _npy_header(rows: int, width: int) -> bytes:
    """The beginning of a `.npy` file of (rows, width) float32. numpy leaves room: its length is that of any number."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return header.getvalue()


@contextmanager
def only_builder(work: Path) -> Iterator[None]:
    """Keep other processes from building the same index; a process that is killed keeps nobody out.

    Raises:
        ValueError: if another one is building it.
    """
    from filelock import FileLock, Timeout  # comes with huggingface_hub

    file = work.with_name(f"{work.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps a file that is open
                    file.unlink()
    except Timeout:
        raise ValueError(f"Another process is building this index now (it holds {file}).") from None
