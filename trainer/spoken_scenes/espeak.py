"""Speech made in process by espeak-ng: the voices of `spoken_scenes`.

The library comes from the wheel `espeakng-loader` and is called through ctypes; an utterance takes a few milliseconds.
espeak-ng keeps global state and is not re-entrant, and what it said before shifts the flutter and the noise of what
it says next. So every call holds one lock per process, loads the library, speaks, and unloads it again (half a
millisecond): the samples of an utterance depend on its text and its voice alone.
"""

import _ctypes
import atexit
import ctypes
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np

SAMPLING_RATE = 16_000

# American, British, received pronunciation, Scottish, Lancastrian, West Midlands, Caribbean, New York.
ACCENTS = (
    *("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"),
)

# Variants that share their formants (steph, steph2, steph3; linda, belinda; ...) stay in one split: a test voice must
# be a timbre that was never heard in training. Left out of all splits: whispers, robots, demons and echo chambers
# (whisper, whisperf, caleb, croak, Demonic, robosoft*, UniRobot, anikaRobot, RicishayMax*), zac (a squeak), and Reed,
# whose breath comes from the C library's random numbers and differs from call to call.
_TEST_VARIANTS = ("m3", "f2", "pedro", "steph", "steph2", "gustave", "Annie", "edward", "linda", "Nguyen")
_VALIDATION_VARIANTS = ("m6", "f4", "antonio", "victor", "Jacky", "Alicia")
_TRAIN_VARIANTS = (
    *("m1", "m2", "m4", "m5", "m7", "m8", "f1", "f3", "f5"),
    *("Alex", "Andrea", "Andy", "AnxiousAndy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Lee", "Marco"),
    *("Mario", "Michael", "Mike", "Mr serious", "Storm", "Tweaky", "adam", "anika", "announcer", "aunty"),
    *("benjamin", "boris", "david", "ed", "grandma", "grandpa", "ian", "iven", "iven2", "iven3", "john"),
    *("kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "marcelo", "max", "miguel", "mike2"),
    *("norbert", "pablo", "paul", "quincy", "rob", "robert", "sandro", "shelby", "travis"),
)

TRAIN_VOICES: tuple[str, ...] = tuple(f"{accent}+{variant}" for variant in _TRAIN_VARIANTS for accent in ACCENTS)
VALIDATION_VOICES: tuple[str, ...] = tuple(f"{accent}+{name}" for name in _VALIDATION_VARIANTS for accent in ACCENTS)
TEST_VOICES: tuple[str, ...] = tuple(f"{accent}+{variant}" for variant in _TEST_VARIANTS for accent in ACCENTS)
"""Voice names by split, as `accent+variant`. The splits share accents and no variant."""

# espeak-ng looks a voice up by file name, and the file of en-gb is called en.
_FILE_NAMES = {"en-gb": "en"}

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 0x0001, 0x0002, 0x8000
_CHARS_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7


class SpeechSynthesisError(RuntimeError):
    """espeak-ng is missing, could not start, or could not speak what it was given."""


@dataclass(frozen=True)
class Voice:
    """How an utterance is spoken."""

    name: str = "en-us"  # as `accent+variant`, such as "en-us+m3"; the variant may be left out
    speed: int = 175  # words per minute, 80 to 450
    pitch: int = 50  # 0 (low) to 99 (high); 50 is the variant's own
    pitch_range: int = 50  # how far the pitch moves, 0 (monotone) to 99
    word_gap: int = 0  # extra pause between words, in units of 10 ms at the default speed


@dataclass(frozen=True)
class SpeechEvent:
    """Where a word or a phoneme begins."""

    kind: str  # "word" or "phoneme"
    start: float  # seconds from the beginning of the utterance
    text: str  # the word as written, or the phoneme in IPA (empty at a pause)


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),  # a phoneme's name, of what is a union there
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The freshly loaded library, for one utterance. Only one may exist in a process at a time."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechSynthesisError(
                "Speech synthesis needs espeak-ng, which comes with the package espeakng-loader. "
                'Install it with: pip install "speechclip-plus[quickstart]"'
            ) from error
        library, data = str(espeakng_loader.get_library_path()), _data_path()
        try:
            self.library = ctypes.CDLL(library)
        except OSError as error:
            raise SpeechSynthesisError(
                f"espeak-ng's library could not be loaded from {library}: {error}. "
                "Reinstall it with: pip install --force-reinstall espeakng-loader"
            ) from error
        self.library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self.rate = self.library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
        )
        if self.rate <= 0:
            raise SpeechSynthesisError(f"espeak-ng could not start with its data folder {data} (code {self.rate}).")
        self.chunks: list[np.ndarray] = []
        self.events: list[SpeechEvent] = []
        self.text = ""
        self.callback = _CALLBACK(self._collect)  # kept on self: ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self.callback)

    def close(self) -> None:
        """Unload the library, and with it every static variable that the utterance changed."""
        self.library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(self.library._handle)
        else:
            _ctypes.dlclose(self.library._handle)
        del self.callback, self.library  # the callback refers back to this object

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        for event in takewhile(lambda event: event.type != _EVENT_END_OF_LIST, events):
            start, begin = event.sample / self.rate, event.text_position - 1
            if event.type == _EVENT_WORD:
                self.events.append(SpeechEvent("word", start, self.text[begin : begin + event.length]))
            elif event.type == _EVENT_PHONEME:
                self.events.append(SpeechEvent("phoneme", start, event.id.decode("utf-8", "replace")))
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[SpeechEvent]]:
        """Return int16 samples at the library's own rate, and the events."""
        library = self.library
        accent, plus, variant = voice.name.partition("+")
        # espeak-ng takes an unknown variant for none, and an unknown accent for the nearest name it has.
        if accent not in ACCENTS or (variant and variant not in _known_variants()):
            raise SpeechSynthesisError(
                f"There is no voice {voice.name!r}. A name is accent+variant, for example 'en-us+m3'; accents: "
                f"{', '.join(ACCENTS)}; variants: {', '.join(sorted(_known_variants()))}."
            )
        if library.espeak_SetVoiceByName((_FILE_NAMES.get(accent, accent) + plus + variant).encode()) != 0:
            raise SpeechSynthesisError(f"This build of espeak-ng does not speak the voice {voice.name!r}.")
        # By the library's numbers: speed, volume, pitch, its range, punctuation, capitals, gap between words.
        settings = (voice.speed, 100, voice.pitch, voice.pitch_range, 0, 0, voice.word_gap)
        for parameter, value in enumerate(settings, 1):
            library.espeak_SetParameter(parameter, int(value), 0)
        if hasattr(library, "espeak_ng_SetRandSeed"):
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self.text, encoded = text, text.encode("utf-8") + b"\0"
        code = library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _CHARS_UTF8, None, None)
        if code != 0 or not self.chunks:
            raise SpeechSynthesisError(f"espeak-ng said nothing for the text {text!r} (code {code}).")
        return np.concatenate(self.chunks), self.events


_LOCK = threading.Lock()


@cache
def _data_path() -> str:
    """espeak-ng's data folder, through a short link if its path would not fit into the library's 160 bytes."""
    import espeakng_loader

    path = str(espeakng_loader.get_data_path())
    if len(os.fsencode(path)) <= 110:  # the names of voices and dictionaries are appended
        return path
    folder = tempfile.mkdtemp(prefix="espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = os.path.join(folder, "espeak-ng-data")
    try:
        os.symlink(path, link, target_is_directory=True)
    except OSError:
        shutil.copytree(path, link)  # Windows without the right to make links
    return link


@cache
def _known_variants() -> frozenset[str]:
    import espeakng_loader

    return frozenset(os.listdir(os.path.join(str(espeakng_loader.get_data_path()), "voices", "!v")))


def synthesise_with_events(text: str, voice: Voice) -> tuple[np.ndarray, list[SpeechEvent]]:
    """Speak a text, of at least one letter or digit, and say where its words and phonemes begin.

    Returns:
        Float32 samples (S,) at 16 kHz, within [-1, 1], and events in order of time.

    Raises:
        SpeechSynthesisError: if espeak-ng is not installed, the voice is unknown, or nothing was said.
    """
    import soxr

    if not any(character.isalnum() for character in text):
        raise ValueError(f"The text to speak must contain at least one letter or digit, got {text!r}.")
    with _LOCK:
        engine = _Engine()
        try:
            samples, events = engine.speak(text, voice)
        finally:
            engine.close()
    resampled = soxr.resample(samples.astype(np.float32) / 32768.0, engine.rate, SAMPLING_RATE, quality="HQ")
    return np.clip(resampled, -1.0, 1.0).astype(np.float32, copy=False), events


def word_times(events: list[SpeechEvent], seconds: float) -> list[dict[str, Any]]:
    """Locate the words of an utterance of so many seconds: `word`, `start` and `end` of each, in spoken order.

    A word lasts until the next word or pause. espeak-ng runs some function words together ("on the"): they are one
    event, named after the first.
    """
    words = []
    for place, event in enumerate(events):
        if event.kind == "word":
            following = (later.start for later in events[place + 1 :] if later.kind == "word" or not later.text)
            words.append({"word": event.text, "start": event.start, "end": min(next(following, seconds), seconds)})
    return words


def synthesise(text: str, voice: Voice) -> np.ndarray:
    """Speak a text as `synthesise_with_events` does; the same samples in every process."""
    return synthesise_with_events(text, voice)[0]
