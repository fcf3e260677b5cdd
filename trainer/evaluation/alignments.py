"""Word alignments: Praat's TextGrid (long and short) and NIST's CTM."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

WORD_TIERS = ("words", "word")
# What aligners write where nobody speaks.
SILENCES = frozenset({"", "sil", "sp", "silence", "<sil>", "<eps>", "<p>", "[sil]"})
SUFFIXES = (".textgrid", ".ctm")

# TextGrid's rule for both forms: only strings in quotes, numbers that stand alone and <flags> mean something.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<!\S)<[^<>\s]+>(?!\S)|(?<!\S)[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\S)')
# Seconds between words that are rounding (CTM often has two decimals, of the start and of the duration) and no pause.
_ROUNDING = 0.02


@dataclass(frozen=True)
class AlignedWord:
    """A word with its beginning and end in seconds."""

    text: str
    start: float
    end: float


def read_textgrid(path: str | Path) -> list[AlignedWord]:
    """Read the words of a TextGrid, in either form, as UTF-8 or UTF-16.

    They are on the interval tier called "words" or "word" (in whatever case, also behind a speaker's name as in
    "Ann - words"), or on the only interval tier. Silences are left out.

    Raises:
        ValueError: if the file is no TextGrid, is cut short, holds times that run backwards, or does not tell which
            tier has the words; the message names the file.
        OSError: if it cannot be read.
    """
    path = Path(path)
    tiers = _interval_tiers(_Tokens(_decoded(path), path))
    named = [name for name in tiers if name.strip().lower().rpartition(" - ")[2] in WORD_TIERS]
    if len(named) != 1:
        named = list(tiers)
    if len(named) != 1:
        listed = ", ".join(map(repr, tiers)) or "none"
        raise ValueError(
            f"{path}: expected one interval tier called 'words', or a single interval tier; it has {listed}."
        )
    return _checked(tiers[named[0]], path)


def read_ctm(path: str | Path) -> dict[str, list[AlignedWord]]:
    """Read a CTM file: lines of utterance, channel, start, duration, word, and perhaps a confidence.

    Returns:
        The words of each utterance, in order of time, without silences.

    Raises:
        ValueError: for a line of another form, or an utterance on two channels; the message names file and line.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    words: dict[str, list[AlignedWord]] = {}
    channels: dict[str, str] = {}
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        fields = line.split()
        try:
            name, channel, start, duration, text = fields[0], fields[1], float(fields[2]), float(fields[3]), fields[4]
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}, line {number}: expected 'utterance channel start duration word', got {line.strip()!r}."
            ) from None
        if channels.setdefault(name, channel) != channel:
            raise ValueError(
                f"{path}, line {number}: utterance {name!r} is on channels {channels[name]} and {channel}; recordings "
                "are mono here, so keep one of them."
            )
        words.setdefault(name, []).append(AlignedWord(text, start, start + duration))
    if not words:
        raise ValueError(f"{path} holds no words.")
    return {name: _checked(sorted(found, key=lambda word: word.start), path) for name, found in words.items()}


def read_alignments(folder: str | Path) -> dict[str, list[AlignedWord]]:
    """Read all alignments of a folder and of those in it: a TextGrid for each utterance, named after it, or CTM files.

    Returns:
        Words by utterance.

    Raises:
        FileNotFoundError: if there is no such folder, or no alignment in it.
        ValueError: if a file cannot be understood, or an utterance is aligned twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of alignments.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no alignment (*.TextGrid or *.ctm).")
    words: dict[str, list[AlignedWord]] = {}
    for file in files:
        read = {file.stem: read_textgrid(file)} if file.suffix.lower() == ".textgrid" else read_ctm(file)
        for name, found in read.items():
            if name in words:
                raise ValueError(f"{file}: utterance {name!r} has an alignment already in another file of {folder}.")
            words[name] = found
    return words


def match_alignments(
    alignments: Mapping[str, list[AlignedWord]], names: Sequence[Sequence[str]], seconds: Sequence[float]
) -> list[list[AlignedWord] | None]:
    """Find each utterance's alignment.

    Args:
        alignments: from `read_alignments`.
        names: what each utterance may be called there: its caption id, the name of its file.
        seconds: length of each utterance.

    Returns:
        Its words, or None where it has no alignment.

    Raises:
        ValueError: if no utterance has one, or a word ends more than 0.1 s behind its recording.
    """
    matched = [next((alignments[name] for name in known if name in alignments), None) for known in names]
    if not any(matched):
        raise ValueError(
            f"None of the {len(names)} utterances has an alignment: the first is called {names[0][0]!r}, the "
            f"alignments {', '.join(map(repr, list(alignments)[:3]))}. Name each TextGrid (or the utterances of a CTM "
            "file) after the caption_id or the audio file."
        )
    for known, words, length in zip(names, matched, seconds, strict=True):
        if words and words[-1].end > length + 0.1:
            raise ValueError(
                f"The alignment of {known[0]!r} does not match its recording: a word ends at {words[-1].end:.2f} s, "
                f"but the recording at {length:.2f} s."
            )
    return matched


def word_boundaries(words: Sequence[AlignedWord]) -> list[float]:
    """Where one word ends and the next begins; once, if the next follows within 20 ms.

    Example:
        >>> word_boundaries([AlignedWord("a", 0.1, 0.2), AlignedWord("red", 0.2, 0.5), AlignedWord("cat", 0.6, 1.0)])
        [0.2, 0.5, 0.6]
    """
    times = []
    for word, following in pairwise(words):
        if following.start - word.end > _ROUNDING:
            times.append(word.end)
        times.append(following.start)
    return times


class _Tokens:
    """The meaningful pieces of a TextGrid, one after the other."""

    def __init__(self, text: str, path: Path) -> None:
        self._found = iter(_TOKEN.findall(text))
        self._path = path

    def next(self, what: str) -> str:
        token = next(self._found, None)
        if token is None:
            raise ValueError(f"{self._path} ends where {what} should be: it is no TextGrid or was cut short.")
        return token

    def string(self, what: str) -> str:
        token = self.next(what)
        if not token.startswith('"'):
            raise ValueError(f"{self._path}: expected {what} in quotes, got {token}; it is no TextGrid.")
        return token[1:-1].replace('""', '"')

    def number(self, what: str) -> float:
        token = self.next(what)
        try:
            return float(token)
        except ValueError:
            raise ValueError(f"{self._path}: expected {what}, a number, got {token}.") from None


def _interval_tiers(tokens: _Tokens) -> dict[str, list[AlignedWord]]:
    if not tokens.string("the file type").startswith("ooTextFile") or tokens.string("the object class") != "TextGrid":
        raise ValueError(f"{tokens._path} is no TextGrid (ooTextFile of class TextGrid).")
    tokens.number("the beginning"), tokens.number("the end")
    if tokens.next("the flag <exists>") != "<exists>":
        return {}
    tiers: dict[str, list[AlignedWord]] = {}
    for _ in range(int(tokens.number("the number of tiers"))):
        kind, name = tokens.string("a tier's class"), tokens.string("a tier's name")
        tokens.number("a tier's beginning"), tokens.number("a tier's end")
        count = int(tokens.number("a tier's size"))
        if kind == "IntervalTier":
            tiers[name] = [_interval(tokens) for _ in range(count)]
        else:
            for _ in range(count):
                tokens.number("a point"), tokens.string("its mark")
    return tiers


def _interval(tokens: _Tokens) -> AlignedWord:
    start, end = tokens.number("an interval's beginning"), tokens.number("an interval's end")
    return AlignedWord(tokens.string("an interval's text").strip(), start, end)


def _checked(words: Sequence[AlignedWord], path: Path) -> list[AlignedWord]:
    kept = [word for word in words if word.text.lower() not in SILENCES]
    for word, following in zip(kept, [*kept[1:], None], strict=True):
        if (
            word.end < word.start
            or word.start < 0
            or (following is not None and following.start < word.end - _ROUNDING)
        ):
            raise ValueError(
                f"{path}: the word {word.text!r} from {word.start:g} to {word.end:g} s ends before it begins, or "
                "overlaps the next."
            )
    return kept


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is neither UTF-8 nor UTF-16 with its mark: {error}.") from error
