"""Speech finds pictures, and pictures and words find speech: a Gradio app for a SpeechCLIP+ model.

On the Hub this folder is a Space by itself: `MODEL_ID` below, or the environment variable of that name, is the model's
repository, whose own code is loaded with it. `speechclip-plus demo` runs the same app with a model on this machine.

What visitors give is not kept. Gradio has to put an upload into a file: it is deleted seconds after it was read. What
they uploaded to be searched is held in memory until they leave. What is shown is part of the page and never a file.
"""

import atexit
import base64
import io
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read when gradio is imported: it would otherwise ask its makers' server for the newest version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402
import jinja2  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

MODEL_ID = ""  # a repository on the Hub
HERE = Path(__file__).parent
GALLERIES = HERE / "galleries"  # one folder each, of pictures and recordings

MAX_SECONDS = 30  # of a recording
MAX_MEGABYTES = 20  # of a file
MAX_MEGAPIXELS = 50  # of a picture
MAX_FILES = {"pictures": 200, "recordings": 50}  # that a visitor may upload to be searched
MAX_CHANNELS = 8
MIN_SECONDS = 0.1
MAX_TEXT = 300  # characters
DELETE_AFTER = 2.0  # seconds from an upload's being read
MAX_VISITS = 64  # that are remembered at a time; the one that was quiet for longest is forgotten first

NUM_FOUND = {"pictures": 8, "recordings": 5}
NUM_OFFERED = {"pictures": 12, "recordings": 3}  # to ask with, for visitors who have none
NUM_WAITING = 24  # pictures shown before anything was asked
SAMPLING_RATE = 16_000  # Hz: what the model hears
BATCH_SIZE = 16
THUMBNAIL = 320  # pixels
YOURS = "yours"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Listeners on the element itself, which stays when its content is replaced.
CHOOSE = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('click', { index: Number(button.dataset.index) });
});"""
PLAY = (HERE / "player.js").read_text(encoding="utf-8")
PAGE: Any = (
    jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    .from_string((HERE / "page.html.jinja").read_text(encoding="utf-8"))
    .module
)


# What is searched


@dataclass
class SearchIndex:
    """Pictures or recordings that can be found.

    Attributes:
        kind: "pictures" or "recordings".
        labels: what they are called.
        sources: data URIs to show or play them.
        embeds: (N, P) unit-length embeddings.
    """

    kind: str
    labels: list[str]
    sources: list[str]
    embeds: torch.Tensor

    def items(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """What is shown of some of them."""
        return [{"index": index, "label": self.labels[index], "source": self.sources[index]} for index in indices]

    def spread(self, number: int) -> list[int]:
        """Some indices from all of it: neighbours in the alphabet often look the same."""
        count = len(self.labels)
        return [index * count // min(number, count) for index in range(min(number, count))]


@dataclass
class Query:
    """What was asked: how it is shown above the answer, and its unit-length embedding (P,)."""

    shown: str
    embed: torch.Tensor


@dataclass
class Visit:
    """What is remembered of an open page: the last query and the uploads, each by the kind that it searches or is."""

    queries: dict[str, Query] = field(default_factory=dict)
    uploads: dict[str, SearchIndex] = field(default_factory=dict)


@dataclass
class Heard:
    """What the model makes of a recording.

    Attributes:
        waveform: (S,) samples at 16 kHz, as the model gets them, brought to the same loudness for all.
        embed: (P,) unit length.
        keywords: as `model.extract_keywords` gives them; None if the model has none.
    """

    waveform: np.ndarray
    embed: torch.Tensor
    keywords: list[Any] | None


class Searcher:
    """A model and its processor.

    Args:
        model: a folder, or a repository on the Hub.
        trust_remote_code: run the code in the repository, for where speechclip-plus is not installed.
    """

    def __init__(self, model: str, trust_remote_code: bool = False):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = Path(model).name if os.path.isdir(model) else model
        self.model = AutoModel.from_pretrained(model, trust_remote_code=trust_remote_code).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)

    @torch.no_grad()
    def listen(self, samples: np.ndarray, rate: int) -> Heard:
        """Embed a recording (S,) of a rate in Hz, and read its keywords."""
        inputs = self.processor(audio=samples, sampling_rate=rate).to(self.model.device)
        waveform = inputs["input_values"][0].cpu().numpy()
        hidden_states, frame_lengths = self.model.encode_speech_frames(**inputs)
        speech = {"speech_hidden_states": hidden_states, "frame_lengths": frame_lengths}
        keywords = None
        if self.model.config.has_cascaded:
            near = min(4, int(self.model.is_keyword.sum()))
            keywords = self.model.extract_keywords(**speech, tokenizer=self.processor, top_k=near)[0]
        embed = self.model.get_audio_features(**speech).pooler_output[0].float().cpu()
        return Heard(waveform / max(float(np.abs(waveform).max()), 1e-4) * 0.9, embed, keywords)

    @torch.no_grad()
    def embed(self, kind: str, items: Sequence[Any]) -> torch.Tensor:
        """Embed a batch of RGB pictures, or of recordings as (samples, rate) pairs: (N, P)."""
        if kind == "pictures":
            output = self.model.get_image_features(**self.processor(images=items).to(self.model.device))
        else:
            audio = [{"array": samples, "sampling_rate": rate} for samples, rate in items]
            output = self.model.get_audio_features(**self.processor(audio=audio).to(self.model.device))
        return output.pooler_output.float().cpu()

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """Embed a text: (P,)."""
        inputs = self.processor(text=[text]).to(self.model.device)
        return self.model.get_text_features(**inputs).pooler_output[0].float().cpu()

    def index(self, kind: str, files: Sequence[Path], labels: list[str]) -> SearchIndex:
        """Read and embed files.

        Raises:
            ValueError: if one cannot be read or is too long or too large; the message names it.
        """
        sources, parts = [], []
        for start in range(0, len(files), BATCH_SIZE):
            named = list(zip(files, labels, strict=True))[start : start + BATCH_SIZE]
            if kind == "pictures":
                items: list[Any] = [read_picture(file, label) for file, label in named]
                sources += [picture_uri(picture) for picture in items]
            else:
                items = [read_recording(file, label) for file, label in named]
                sources += [audio_uri(samples, rate) for samples, rate in items]
            parts.append(self.embed(kind, items))
        return SearchIndex(kind, labels, sources, torch.cat(parts))


# What comes in


def read_recording(file: str | Path, label: str = "The recording") -> tuple[np.ndarray, int]:
    """Read a recording: mono samples (S,) float32 in about [-1, 1], and their rate in Hz.

    Raises:
        ValueError: if it is no recording, or too long or too short; the message is for the visitor.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            if sound.channels > MAX_CHANNELS:
                raise ValueError(f"{label}: {sound.channels} channels are too many; mono or stereo is fine.")
            # Not what the header promises is counted, but what is there, and no more than that is ever decoded.
            samples = sound.read(frames=MAX_SECONDS * rate + rate // 2, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{label} cannot be read: WAV, FLAC, OGG and MP3 files can.") from error
    if len(samples) >= MAX_SECONDS * rate + rate // 2:
        raise ValueError(f"{label} is longer than {MAX_SECONDS} seconds. Please take a shorter one.")
    if len(samples) < MIN_SECONDS * rate:
        raise ValueError(f"{label} is empty or shorter than {MIN_SECONDS} seconds.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{label} holds samples that are no numbers; it seems to be damaged.")
    return samples, rate


def read_picture(file: str | Path, label: str = "The picture") -> Image.Image:
    """Read a picture as RGB, the right way up, transparent parts on white.

    Raises:
        ValueError: if it is no picture, or too large; the message is for the visitor.
    """
    try:
        picture = Image.open(file)
        too_large = picture.width * picture.height > MAX_MEGAPIXELS * 1_000_000
        upright = None if too_large else ImageOps.exif_transpose(picture).convert("RGBA")
        picture.close()
    except Image.DecompressionBombError:
        upright = None
    except Exception as error:  # on damaged files PIL's decoders raise anything from OSError to struct.error
        raise ValueError(f"{label} cannot be read: PNG, JPEG, WebP and GIF files can.") from error
    if upright is None:
        raise ValueError(f"{label} has more than {MAX_MEGAPIXELS} million pixels. Please take a smaller one.")
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def label_of(file: str | Path) -> str:
    """Return what a file is called: its name without ending, with spaces."""
    return " ".join(Path(file).stem.replace("_", " ").split()) or Path(file).name


@contextmanager
def uploaded(value: Any) -> Iterator[list[tuple[Path, str]]]:
    """Give an upload's files with the names that they had, and delete them soon afterwards, come what may.

    Args:
        value: what gradio's upload components send: a dictionary with "path" and "orig_name", a list of them, or None.
    """
    values = value if isinstance(value, list) else [value] if value else []
    files = [(Path(one["path"]), one.get("orig_name") or Path(one["path"]).name) for one in values]
    try:
        yield files
    finally:
        # Not at once: the page's recorder is about to fetch a recording back, and the server would stumble over it.
        timer = threading.Timer(DELETE_AFTER, _delete, [[path for path, _ in files]])
        timer.daemon = True  # the program's end deletes all there is
        timer.start()


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that holds something else stays
            path.parent.rmdir()


# What is shown


def picture_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI, scaled down to what is shown."""
    small = max(picture.size) <= THUMBNAIL
    picture = picture.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, format="PNG" if small else "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def audio_uri(samples: np.ndarray, rate: int) -> str:
    """Return samples in [-1, 1] as the data URI of a FLAC file, which every current browser plays."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def speech_card(heard: Heard) -> str:
    """Show a recording: a player, its waveform with the keywords where they were heard, and a table of them."""
    seconds = len(heard.waveform) / SAMPLING_RATE
    timed = [word for word in heard.keywords or [] if word.start is not None]
    middles = [(word.start + word.end) / 2 / seconds for word in timed]  # 0 to 1
    chips = []
    for number, (word, middle) in enumerate(zip(timed, middles, strict=True)):
        left, right = (100 * min(max(time / seconds, 0), 1) for time in (word.start, word.end))
        # Every other name goes below the waveform, so that each has twice the room.
        room = min((abs(middle - other) for other in middles[number % 2 :: 2] if other != middle), default=0.5)
        chips.append(
            {
                "side": "below" if number % 2 else "above",
                "left": left,
                "width": max(right - left, 0.2),
                "at": 100 * middle,
                "room": 100 * room / (1 + room),
                "start": word.start,
                "end": word.end,
                "text": word.text or f"#{word.id}",
            }
        )
    source = audio_uri(heard.waveform, SAMPLING_RATE)
    return PAGE.speech(source, seconds, _outline(heard.waveform), heard.keywords, chips)


def _outline(waveform: np.ndarray, columns: int = 300) -> str:
    """Path around the loudest samples of each column, in a square of 100 by 100."""
    edges = np.linspace(0, len(waveform), columns + 1).astype(int)
    upper, lower = [], []
    for column in range(columns):
        part = waveform[edges[column] : max(edges[column + 1], edges[column] + 1)]
        x = (column + 0.5) * 100 / columns
        upper.append(f"{x:.2f} {50 - 48 * float(part.max()):.1f}")
        lower.append(f"{x:.2f} {50.6 - 48 * float(part.min()):.1f}")
    return f"M{'L'.join(upper)}L{'L'.join(reversed(lower))}Z"


def found(index: SearchIndex, query: Query) -> str:
    """Show what is nearest to a query, the best first."""
    best = (index.embeds @ query.embed).topk(min(NUM_FOUND[index.kind], len(index.labels)))
    items = index.items(best.indices.tolist())
    for item, similarity in zip(items, best.values.tolist(), strict=True):
        item["similarity"] = similarity
    return PAGE.found(query.shown, index.kind, len(index.labels), items)


def waiting(index: SearchIndex) -> str:
    """Show, before anything was asked, some of what can be found."""
    return PAGE.waiting(index.kind, len(index.labels), index.items(index.spread(NUM_WAITING)))


def offered(index: SearchIndex, hint: str) -> str:
    """Buttons to ask with what is already here."""
    return PAGE.offered(index.kind, hint, index.items(index.spread(NUM_OFFERED[index.kind])))


# The app


class Demo:
    """What the page does.

    Args:
        searcher: the model.
        galleries: folders of pictures and recordings; together they hold at least one of each.

    Raises:
        ValueError: if they do not, or a file in them cannot be read.
    """

    def __init__(self, searcher: Searcher, galleries: Iterable[str | Path]):
        self.searcher = searcher
        self.indexes: dict[str, dict[str, SearchIndex]] = {"pictures": {}, "recordings": {}}
        self.visits: dict[str, Visit] = {}
        folders = [Path(folder) for folder in galleries]
        for folder in folders:
            for kind, suffixes in (("pictures", IMAGE_SUFFIXES), ("recordings", AUDIO_SUFFIXES)):
                files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
                if files:
                    try:
                        index = searcher.index(kind, files, [label_of(file) for file in files])
                    except ValueError as error:
                        raise ValueError(f"In {files[0].parent}: {error}") from error
                    self.indexes[kind][label_of(folder.resolve())] = index
        for kind, indexes in self.indexes.items():
            if not indexes:
                places = ", ".join(map(str, folders)) or str(GALLERIES)
                raise ValueError(f"There are no {kind} to search in {places}.")

    def visit(self, request: gr.Request) -> Visit:
        """Return what is remembered of the page that asks."""
        session = request.session_hash or ""
        visit = self.visits.pop(session, None) or Visit()
        self.visits[session] = visit  # the last one is the newest
        while len(self.visits) > MAX_VISITS:
            self.visits.pop(next(iter(self.visits)), None)
        return visit

    def forget(self, request: gr.Request) -> None:
        """Forget a page that was closed."""
        self.visits.pop(request.session_hash or "", None)

    def choices(self, kind: str, visit: Visit | None = None) -> list[tuple[str, str]]:
        """Return what can be searched, as (what is shown, name) pairs."""
        choices = [(f"{name} ({len(index.labels):,})", name) for name, index in self.indexes[kind].items()]
        if visit is not None and kind in visit.uploads:
            choices.append((f"Yours ({len(visit.uploads[kind].labels):,})", YOURS))
        return choices

    def answer(self, kind: str, choice: str, visit: Visit) -> str:
        """Show what is nearest to the last query, or what waits for one."""
        index = visit.uploads.get(kind) if choice == YOURS else self.indexes[kind].get(choice)
        if index is None:
            return PAGE.problem(
                f"Your {kind} are no longer here: they are forgotten when the page is left. Add them again."
            )
        query = visit.queries.get(kind)
        return waiting(index) if query is None else found(index, query)

    def ask(self, value: Any, choice: str, request: gr.Request) -> tuple[None, str]:
        """Answer a recording with pictures; returns None, which clears the recorder, and the answer."""
        if not value:
            return None, self.answer("pictures", choice, self.visit(request))
        try:
            with uploaded(value) as files:
                samples, rate = read_recording(files[0][0])
        except (ValueError, OSError) as error:
            return None, PAGE.problem(_said(error))
        return None, self._answer_new("pictures", self._heard(samples, rate), choice, request)

    def ask_offered(self, choice: str, event: gr.EventData, request: gr.Request) -> str:
        """Answer one of the recordings that are offered."""
        source = next(iter(self.indexes["recordings"].values())).sources[event.index]
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])), dtype="float32")
        return self._answer_new("pictures", self._heard(samples, rate), choice, request)

    def _heard(self, samples: np.ndarray, rate: int) -> Query:
        heard = self.searcher.listen(samples, rate)
        return Query(speech_card(heard), heard.embed)

    def find_by_text(self, text: str, choice: str, request: gr.Request) -> str:
        """Answer words with recordings."""
        text = " ".join(text.split())
        if not text:
            return PAGE.problem("There are no words to search for: type some first.")
        if len(text) > MAX_TEXT:
            return PAGE.problem(f"The text has {len(text):,} characters; at most {MAX_TEXT} are taken.")
        query = Query(PAGE.asked(text, None), self.searcher.embed_text(text))
        return self._answer_new("recordings", query, choice, request)

    def find_by_picture(self, value: Any, choice: str, request: gr.Request) -> str:
        """Answer a picture with recordings."""
        try:
            with uploaded(value) as files:
                if not files:
                    return self.answer("recordings", choice, self.visit(request))
                picture = read_picture(files[0][0])
        except (ValueError, OSError) as error:
            return PAGE.problem(_said(error))
        embed = self.searcher.embed("pictures", [picture])[0]
        query = Query(PAGE.asked("Your picture", picture_uri(picture)), embed)
        return self._answer_new("recordings", query, choice, request)

    def find_by_offered(self, choice: str, event: gr.EventData, request: gr.Request) -> str:
        """Answer one of the pictures that are offered."""
        index = next(iter(self.indexes["pictures"].values()))
        asked = PAGE.asked(index.labels[event.index], index.sources[event.index])
        return self._answer_new("recordings", Query(asked, index.embeds[event.index]), choice, request)

    def _answer_new(self, kind: str, query: Query, choice: str, request: gr.Request) -> str:
        visit = self.visit(request)
        visit.queries[kind] = query
        return self.answer(kind, choice, visit)

    def choose(self, kind: str, choice: str, request: gr.Request) -> str:
        """Put other pictures or recordings in order."""
        return self.answer(kind, choice, self.visit(request))

    def upload(self, kind: str, value: Any, choice: str, request: gr.Request) -> tuple[Any, str]:
        """Take a visitor's own pictures or recordings; returns the update of the choice, and the answer."""
        visit = self.visit(request)
        try:
            with uploaded(value) as files:
                if not files:
                    return gr.update(), self.answer(kind, choice, visit)
                if len(files) > MAX_FILES[kind]:
                    raise ValueError(f"{len(files)} {kind} are too many: at most {MAX_FILES[kind]} can be searched.")
                labels = [label_of(name) for _, name in files]
                visit.uploads[kind] = self.searcher.index(kind, [path for path, _ in files], labels)
        except (ValueError, OSError) as error:
            return gr.update(), PAGE.problem(_said(error))
        return gr.update(choices=self.choices(kind, visit), value=YOURS), self.answer(kind, YOURS, visit)

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        # Files of uploads that never reached us (a page closed half way) go after five minutes.
        with gr.Blocks(title="Say something, find the picture", delete_cache=(60, 300)) as page:
            gr.HTML(self._header())
            with gr.Tabs():
                with gr.Tab("Find pictures"), gr.Row(equal_height=False):
                    self._speech_tab()
                with gr.Tab("Find recordings"), gr.Row(equal_height=False):
                    self._recordings_tab()
            page.unload(self.forget)
        return page

    def _header(self) -> str:
        variant = self.searcher.model.config.variant
        return PAGE.header(self.searcher.name, variant, MAX_SECONDS, MAX_MEGABYTES, MAX_FILES)

    def _speech_tab(self) -> None:
        with gr.Column(scale=4, min_width=300):
            audio = gr.Audio(
                sources=["microphone", "upload"],
                type="filepath",
                label="Describe a picture",
                editable=False,
                buttons=[],
                elem_id="recorder",
            )
            index = next(iter(self.indexes["recordings"].values()))
            examples = gr.HTML(offered(index, "Or ask with one of these recordings"), js_on_load=CHOOSE)
            choice, upload = self._choice("pictures", "Pictures to search", "Search your own pictures", "image")
        with gr.Column(scale=7, min_width=300):
            answer = gr.HTML(
                waiting(self.indexes["pictures"][choice.value]), js_on_load=PLAY, elem_id="pictures-found"
            )
        # Not `input`, which also tells that the recorder was emptied, or turned to the other source.
        for event in (audio.upload, audio.stop_recording):
            self._on(event, self.ask, inputs=[audio, choice], outputs=[audio, answer])
        self._on(examples.click, self.ask_offered, inputs=[choice], outputs=[answer])
        self._shared("pictures", choice, upload, answer)

    def _recordings_tab(self) -> None:
        with gr.Column(scale=4, min_width=300):
            text = gr.Textbox(
                label="In words", placeholder="a red star above a blue ring", submit_btn="Search", max_lines=1
            )
            index = next(iter(self.indexes["pictures"].values()))
            pictures = gr.HTML(offered(index, "Or with a picture"), js_on_load=CHOOSE)
            picture = gr.UploadButton("Use a picture of yours", file_types=["image"], size="md")
            choice, upload = self._choice("recordings", "Recordings to search", "Search your own recordings", "audio")
        with gr.Column(scale=7, min_width=300):
            answer = gr.HTML(
                waiting(self.indexes["recordings"][choice.value]), js_on_load=PLAY, elem_id="recordings-found"
            )
        self._on(text.submit, self.find_by_text, inputs=[text, choice], outputs=[answer])
        self._on(picture.upload, self.find_by_picture, inputs=[picture, choice], outputs=[answer])
        self._on(pictures.click, self.find_by_offered, inputs=[choice], outputs=[answer])
        self._shared("recordings", choice, upload, answer)

    def _choice(self, kind: str, label: str, button: str, file_type: str) -> tuple[gr.Radio, gr.UploadButton]:
        choices = self.choices(kind)
        choice = gr.Radio(choices, value=choices[0][1], label=label)
        return choice, gr.UploadButton(button, file_count="multiple", file_types=[file_type], size="md")

    def _shared(self, kind: str, choice: gr.Radio, upload: gr.UploadButton, answer: gr.HTML) -> None:
        def chosen(name: str, request: gr.Request) -> str:
            return self.choose(kind, name, request)

        def added(value: Any, name: str, request: gr.Request) -> tuple[Any, str]:
            return self.upload(kind, value, name, request)

        self._on(choice.input, chosen, inputs=[choice], outputs=[answer])
        self._on(upload.upload, added, inputs=[upload, choice], outputs=[choice, answer])

    @staticmethod
    def _on(event: Any, function: Any, inputs: list[Any], outputs: list[Any]) -> None:
        # Without gradio's own preprocessing, which would leave files behind: `uploaded` reads what it sends.
        event(
            function,
            inputs=inputs,
            outputs=outputs,
            preprocess=False,
            trigger_mode="multiple",  # a second upload is read, and so deleted, even if the first waits for its answer
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=outputs[-1],
            concurrency_id="model",  # one at a time, of whatever kind
            concurrency_limit=1,
        )


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):  # the same file from two pages at once
        return "The upload is gone before it could be read. Please try again."
    return str(error)


def theme() -> gr.themes.Base:
    """Return the look: the system's own fonts, so that nothing is fetched from elsewhere."""
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        # Letters at least 4.5 times as bright or dark as what is behind them.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_700",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_background_fill_dark="*background_fill_secondary",
        button_secondary_border_color="*neutral_300",
        button_border_width="1px",
    )


def launch(demo: Demo, **options: Any) -> gr.Blocks:
    """Start serving, with everything off that would keep or send something.

    Args:
        demo: the app.
        **options: of `gradio.Blocks.launch`.

    Returns:
        The page being served.
    """
    uploads = tempfile.mkdtemp(prefix="speechclip-plus-demo-")
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = uploads  # read by the components that are made now
    page = demo.build()
    page.queue(max_size=32)
    page.launch(
        theme=theme(),
        css=(HERE / "style.css").read_text(encoding="utf-8"),
        max_file_size=MAX_MEGABYTES * 2**20,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["gradio", "settings"],
        **options,
    )
    return page


def main() -> None:
    """Run as a Space."""
    model = os.environ.get("MODEL_ID") or MODEL_ID
    if not model:
        raise SystemExit("error: no model; set the variable MODEL_ID of this Space to a model's repository.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the uploads' folder goes
    galleries = sorted(path for path in GALLERIES.iterdir() if path.is_dir()) if GALLERIES.is_dir() else []
    launch(Demo(Searcher(model, trust_remote_code=True), galleries))


if __name__ == "__main__":
    main()
