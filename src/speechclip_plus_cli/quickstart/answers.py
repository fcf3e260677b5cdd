"""Answer spoken queries with pictures and pictures with speech, by a model loaded from a folder; write the report.

The quickstart runs this in a process of its own, so that nothing of the training can help:
`python -m speechclip_plus_cli.quickstart.answers REQUEST.json`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechclip_plus.hub_cards.report import (
    FoundImage,
    FoundSpeech,
    ImageQuery,
    SpeechQuery,
    audio_data_uri,
    image_data_uri,
    write_report,
)
from speechclip_plus.modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from speechclip_plus.modeling_speechclip_plus.image_utils import load_image
from speechclip_plus.modeling_speechclip_plus.input_paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_files
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.evaluation.evaluate import frame_seconds, spoken_keywords
from speechclip_plus.trainer.evaluation.retrieval_metrics import all_ranks

from ..console import quiet_libraries
from .report import quickstart_report

NUM_FOUND = 5
TOLERANCE = 1e-4


@dataclass
class AnswerRequest:
    """What to answer, as plain values that fit into a JSON file.

    Attributes:
        model: folder of the saved model and its processor.
        report: the HTML file to write.
        audio: recordings that ask; none: those of the test split.
        images: pictures that are searched; none: those of the test split.
        eval_scenes: pictures of the test split.
        seed: seed of the test split.
        num_speech_queries: how many recordings of the test split ask.
        num_image_queries: how many pictures ask.
        results: the training's results file, shown in the report; None without a training.
        expected: safetensors file with the embeddings that the training process had; None checks nothing.
        batch_size: utterances or pictures at a time.
    """

    model: str
    report: str
    audio: Sequence[str] = ()
    images: Sequence[str] = ()
    eval_scenes: int = 500
    seed: int = 0
    num_speech_queries: int = 6
    num_image_queries: int = 3
    results: str | None = None
    expected: str | None = None
    batch_size: int = 32

    def to_json(self) -> str:
        """Return the request as JSON."""
        return json.dumps({**asdict(self), "audio": list(self.audio), "images": list(self.images)})


@dataclass
class _Recordings:
    waveforms: list[np.ndarray]
    titles: list[str]
    captions: list[str | None]
    speakers: list[str]
    image_ids: list[int | None]
    outputs: dict[str, Tensor]  # of the model, one row each


@dataclass
class _Pictures:
    sources: list[Any]  # what load_image takes: decoded when needed, since a folder may hold thousands of photographs
    labels: list[str]
    image_ids: list[int | None]
    embeds: Tensor  # (I, P)


def answer(request: AnswerRequest) -> str:
    """Answer, write the report, and return a sentence about the check of the embeddings (empty without one).

    Raises:
        ValueError: if recordings or pictures cannot be read, or the loaded model embeds otherwise than expected.
        OSError: if the folder holds no model.
    """
    torch.set_grad_enabled(False)
    model = SpeechClipPlusModel.from_pretrained(request.model).eval()
    processor = SpeechClipPlusProcessor.from_pretrained(request.model)
    recordings = _user_recordings(request.audio) if request.audio else None
    pictures = _user_pictures(request.images) if request.images else None
    checked = ""
    if recordings is None or pictures is None or request.expected is not None:
        scenes = load_speech_image_dataset(
            "spoken_scenes", split="test", num_scenes=request.eval_scenes, seed=request.seed
        )
        scene_recordings, scene_pictures = _scene_recordings(scenes), _scene_pictures(scenes)
        if request.expected is not None:
            _embed(model, processor, scene_recordings, scene_pictures, request.batch_size)
            checked = _check(request.expected, scene_recordings.outputs, scene_pictures.embeds)
            _write_samples(Path(request.report).parent, scene_recordings, scene_pictures)
        recordings, pictures = recordings or scene_recordings, pictures or scene_pictures
    _embed(model, processor, recordings, pictures, request.batch_size)

    results = json.loads(Path(request.results).read_text(encoding="utf-8")) if request.results else None
    speech_queries = _speech_queries(model, processor, recordings, pictures, request)
    image_queries = _image_queries(recordings, pictures, request)
    report = quickstart_report(model.config, results, speech_queries, image_queries, checked)
    write_report(request.report, report)
    return checked


def _write_samples(folder: Path, recordings: _Recordings, pictures: _Pictures) -> None:
    """Leave a recording, the picture that it describes and another one, to try things out with."""
    soundfile.write(folder / "query.wav", recordings.waveforms[0], SAMPLING_RATE)
    own = pictures.image_ids.index(recordings.image_ids[0])
    for name, place in (("first.png", own), ("second.png", (own + 1) % len(pictures.sources))):
        load_image(pictures.sources[place], name).save(folder / name)


def _user_recordings(paths: Sequence[str]) -> _Recordings:
    files = list_files(paths, AUDIO_SUFFIXES, "recording")
    waveforms = [load_audio(file, name="recording") for file in files]
    names = [file.name for file in files]
    count = len(files)
    return _Recordings(waveforms, names, [None] * count, [""] * count, [None] * count, {})


def _scene_recordings(scenes: Any) -> _Recordings:
    audio = scenes.select_columns(["audio"])
    waveforms = [load_audio(row["audio"], name=f"test recording {number}") for number, row in enumerate(audio)]
    texts = list(scenes["text"])
    return _Recordings(
        waveforms, [f"“{text}”" for text in texts], texts, list(scenes["speaker"]), list(scenes["image_id"]), {}
    )


def _user_pictures(paths: Sequence[str]) -> _Pictures:
    files = list_files(paths, IMAGE_SUFFIXES, "picture")
    return _Pictures(list(files), [file.name for file in files], [None] * len(files), torch.empty(0))


def _scene_pictures(scenes: Any) -> _Pictures:
    first: dict[int, int] = {}
    for row, image_id in enumerate(scenes["image_id"]):
        first.setdefault(image_id, row)
    column = scenes.select_columns(["image"])
    sources = [column[row]["image"] for row in first.values()]
    return _Pictures(sources, [""] * len(sources), list(first), torch.empty(0))


def _embed(
    model: SpeechClipPlusModel, processor: Any, recordings: _Recordings, pictures: _Pictures, batch_size: int
) -> None:
    if not recordings.outputs:
        recordings.outputs = _embed_speech(model, processor, recordings.waveforms, batch_size)
    if not len(pictures.embeds):
        pictures.embeds = _embed_images(model, processor, pictures.sources, batch_size)


def _embed_speech(
    model: SpeechClipPlusModel, processor: Any, waveforms: Sequence[np.ndarray], batch_size: int
) -> dict[str, Tensor]:
    kept: dict[str, list[Tensor]] = {}
    for start in range(0, len(waveforms), batch_size):
        inputs = processor(audio=list(waveforms[start : start + batch_size]), sampling_rate=SAMPLING_RATE)
        outputs = model(input_values=inputs["input_values"], attention_mask=inputs["attention_mask"])
        for name in ("speech_embeds", "parallel_embeds", "cascaded_embeds"):
            if outputs[name] is not None:
                kept.setdefault(name, []).append(outputs[name].float())
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _embed_images(model: SpeechClipPlusModel, processor: Any, sources: Sequence[Any], batch_size: int) -> Tensor:
    parts = []
    for start in range(0, len(sources), batch_size):
        images = [load_image(source, name="picture") for source in sources[start : start + batch_size]]
        inputs = processor(images=images)
        parts.append(model.get_image_features(inputs["pixel_values"]).pooler_output.float())
    return torch.cat(parts)


def _picture(pictures: _Pictures, row: int) -> str:
    return image_data_uri(load_image(pictures.sources[row], name="picture"))


def _check(file: str, outputs: dict[str, Tensor], image_embeds: Tensor) -> str:
    """Compare with the embeddings of the training process."""
    from safetensors.torch import load_file

    worst = 0.0
    for name, expected in load_file(file).items():
        got = image_embeds if name == "image_embeds" else outputs[name]
        if got.shape != expected.shape:
            raise ValueError(
                f"The loaded model gives {name} of shape {tuple(got.shape)}, not {tuple(expected.shape)}."
            )
        worst = max(worst, (got - expected).abs().max().item())
    if not worst <= TOLERANCE:
        raise ValueError(
            f"The loaded model does not embed as the trained one did: they differ by {worst:.2g}, and only "
            f"{TOLERANCE:g} can be rounding. What was saved is not what was trained."
        )
    return (
        f"Loaded back in a new process, the model embeds {len(outputs['speech_embeds'])} recordings and "
        f"{len(image_embeds)} pictures as it did in training (largest difference {worst:.1g})."
    )


def _speech_queries(
    model: SpeechClipPlusModel, processor: Any, recordings: _Recordings, pictures: _Pictures, request: AnswerRequest
) -> list[SpeechQuery]:
    similarities = recordings.outputs["speech_embeds"] @ pictures.embeds.T  # (S, I)
    count = len(recordings.waveforms) if request.audio else min(request.num_speech_queries, len(recordings.waveforms))
    known = recordings.image_ids[0] is not None and pictures.image_ids[0] is not None
    ranks = None
    if known:
        speech_ids, image_ids = torch.tensor(recordings.image_ids), torch.tensor(pictures.image_ids)
        ranks = all_ranks(recordings.outputs["speech_embeds"], pictures.embeds, speech_ids, image_ids).speech
    queries = []
    for row in range(count):
        waveform, own = recordings.waveforms[row], recordings.image_ids[row]
        best = similarities[row].topk(min(NUM_FOUND, len(pictures.sources)))
        found = [
            FoundImage(
                _picture(pictures, i),
                similarity,
                pictures.image_ids[i] == own if known else None,
                pictures.labels[i],
            )
            for similarity, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        rank = int(ranks[row]) if ranks is not None else None
        missed = known and not any(image.right for image in found)
        keywords, weights = spoken_keywords(model, processor, waveform, recordings.captions[row])
        queries.append(
            SpeechQuery(
                title=recordings.titles[row],
                audio=audio_data_uri(waveform),
                waveform=waveform,
                images=found,
                keywords=keywords,
                weights=weights,
                frame_seconds=frame_seconds(model),
                speaker=_voice(recordings.speakers[row]),
                rank=rank,
                right_image=_picture(pictures, pictures.image_ids.index(own)) if missed else None,
                searched=len(pictures.sources),
            )
        )
    return queries


def _voice(name: str) -> str:
    return f"voice {name}" if name else ""


def _image_queries(recordings: _Recordings, pictures: _Pictures, request: AnswerRequest) -> list[ImageQuery]:
    similarities = pictures.embeds @ recordings.outputs["speech_embeds"].T  # (I, S)
    known = recordings.image_ids[0] is not None and pictures.image_ids[0] is not None
    ranks = None
    if known:
        speech_ids, image_ids = torch.tensor(recordings.image_ids), torch.tensor(pictures.image_ids)
        ranks = all_ranks(recordings.outputs["speech_embeds"], pictures.embeds, speech_ids, image_ids).best_own
    # Other pictures than those of the spoken queries above, where there are enough.
    start = request.num_speech_queries if len(pictures.sources) >= request.num_speech_queries * 2 else 0
    rows = range(start, min(start + request.num_image_queries, len(pictures.sources)))
    queries = []
    for row in rows:
        best = similarities[row].topk(min(NUM_FOUND, len(recordings.waveforms)))
        speech = [
            FoundSpeech(
                audio_data_uri(recordings.waveforms[i]),
                recordings.titles[i],
                similarity,
                recordings.image_ids[i] == pictures.image_ids[row] if known else None,
                _voice(recordings.speakers[i]),
            )
            for similarity, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        queries.append(
            ImageQuery(
                _picture(pictures, row),
                speech,
                int(ranks[row]) if ranks is not None else None,
                len(recordings.waveforms),
                pictures.labels[row],
            )
        )
    return queries


def main(argv: Sequence[str] | None = None) -> int:
    """Read a request from the file that is named on the command line, and answer it."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1:
        print("usage: python -m speechclip_plus_cli.quickstart.answers REQUEST.json", file=sys.stderr)
        return 2
    try:
        quiet_libraries()
        request = AnswerRequest(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        checked = answer(request)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if checked:
        print(checked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
