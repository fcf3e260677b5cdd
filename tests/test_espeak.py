"""Speech synthesis: the same samples everywhere, split voices that share no timbre, clear errors."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from speechclip_plus.trainer.spoken_scenes import espeak
from speechclip_plus.trainer.spoken_scenes.espeak import Voice, synthesise, synthesise_with_events

SENTENCE = "a large red circle is to the left of a small blue square"


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()


def test_an_utterance_does_not_depend_on_what_was_said_before_or_on_the_process():
    voices = [Voice("en-us+m3"), Voice("en-gb+f1", speed=210, pitch=30), Voice("en-029+klatt3", pitch_range=80)]
    forward = [digest(synthesise(SENTENCE, voice)) for voice in voices]
    synthesise("something else in between", Voice("en-us+grandma"))
    backward = [digest(synthesise(SENTENCE, voice)) for voice in reversed(voices)][::-1]
    code = (
        "import hashlib\n"
        "from speechclip_plus.trainer.spoken_scenes.espeak import Voice, synthesise\n"
        f"for voice in {voices!r}:\n"
        f"    print(hashlib.sha256(synthesise({SENTENCE!r}, voice).tobytes()).hexdigest())\n"
    )
    source_folder = espeak.__file__.rsplit("trainer", 1)[0]
    other = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, check=True, cwd=source_folder,
    )  # fmt: skip
    assert forward == backward == other.stdout.split()
    assert len(set(forward)) == 3


def test_speech_is_float32_mono_at_16_khz_of_a_sensible_length():
    samples = synthesise(SENTENCE, Voice("en-us+m3", speed=175))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 2.0 < len(samples) / espeak.SAMPLING_RATE < 5.0  # 13 words at 175 a minute: 4.5 s with the pauses of text
    assert 0.05 < np.abs(samples).max() <= 1.0


def test_a_faster_voice_takes_less_time_and_a_higher_one_has_a_higher_pitch():
    slow, fast = (synthesise(SENTENCE, Voice("en-us+m3", speed=speed)) for speed in (140, 220))
    assert len(fast) < 0.75 * len(slow)
    periods = []
    for pitch in (10, 90):
        samples = synthesise("aaaah", Voice("en-us+m3", pitch=pitch, pitch_range=0))
        middle = samples[len(samples) // 2 :][:1600]
        correlation = np.correlate(middle, middle, "full")[1600:]
        periods.append(40 + int(np.argmax(correlation[40:320])))  # 50 to 400 Hz
    assert periods[1] < 0.8 * periods[0]


def test_events_name_the_words_in_order_within_the_utterance():
    samples, events = synthesise_with_events(SENTENCE, Voice("en-gb+f1"))
    words = [event for event in events if event.kind == "word"]
    assert set(SENTENCE.split()) <= {word.text for word in words}
    starts = [event.start for event in events]
    assert starts == sorted(starts) and starts[-1] <= len(samples) / espeak.SAMPLING_RATE + 0.02


def test_the_splits_share_no_variant_and_every_voice_speaks():
    splits = [espeak.TRAIN_VOICES, espeak.VALIDATION_VOICES, espeak.TEST_VOICES]
    variants = [{name.partition("+")[2] for name in split} for split in splits]
    assert not variants[0] & variants[1] and not variants[0] & variants[2] and not variants[1] & variants[2]
    one_per_variant = {name.partition("+")[2]: name for split in splits for name in split}
    spoken = {digest(synthesise("red", Voice(name))) for name in one_per_variant.values()}
    assert len(spoken) == len(one_per_variant)
    spoken = {digest(synthesise("red", Voice(f"{accent}+m3"))) for accent in espeak.ACCENTS}
    assert len(spoken) > 1


@pytest.mark.parametrize("name", ["en-us+nobody", "klingon+m3"])
def test_an_unknown_voice_is_an_error_that_names_it(name):
    with pytest.raises(espeak.SpeechSynthesisError, match=re.escape(f"There is no voice '{name}'")):
        synthesise("red", Voice(name))


@pytest.mark.parametrize("text", ["", "  ", "...!"])
def test_a_text_without_a_word_is_an_error(text):
    with pytest.raises(ValueError, match="at least one letter or digit"):
        synthesise(text, Voice())


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(espeak.SpeechSynthesisError, match=r'pip install "speechclip-plus\[quickstart\]"'):
        synthesise("red", Voice())


def test_an_install_path_too_long_for_the_library_still_works(tmp_path, monkeypatch):
    import espeakng_loader

    link = tmp_path / ("long" * 30) / ("longer" * 10)
    link.mkdir(parents=True)
    (link / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(link / "espeak-ng-data"))
    espeak._data_path.cache_clear()
    try:
        assert len(synthesise("red", Voice("en-us+m3"))) > 3000
    finally:
        espeak._data_path.cache_clear()
