"""Speech finds images, and images and words find speech: a Gradio app for a SpeechCLIP+ model.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read when gradio is imported: it would otherwise ask its makers' server for the newest version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

if __package__:
    from .waveform import PLAYER, STYLE, audio_data_uri, image_data_uri, templates, waveform_view
else:  # a Space, where this file is in no package
    from waveform import (  # type: ignore[import-not-found, no-redef]
        PLAYER,
        STYLE,
        audio_data_uri,
        image_data_uri,
        templates,
        waveform_view,
    )

MODEL_ID = ""  # a repository on the Hub
HERE = Path(__file__).parent
INDEXES = HERE / "indexes"  # one folder each, of images and recordings

MAX_SECONDS = 30  # of a recording
MAX_MEGABYTES = 20  # of a file
MAX_MEGAPIXELS = 50  # of an image
MAX_FILES = {"images": 200, "recordings": 50}  # that a visitor may upload to be searched
MAX_CHANNELS = 8
MIN_SECONDS = 0.1
MAX_TEXT = 300  # characters
DELETE_AFTER = 2.0  # seconds from an upload's being read
MAX_VISITS = 64  # that are remembered at a time; the one that was quiet for longest is forgotten first

NUM_FOUND = {"images": 8, "recordings": 5}
NUM_OFFERED = {"images": 12, "recordings": 3}  # to ask with, for visitors who have none
NUM_TRIED = 12  # recordings of which the one that is understood best is offered first
NUM_WAITING = 24  # images shown before anything was asked
BATCH_SIZE = 16
THUMBNAIL = 320  # pixels
YOURS = "yours"
SUFFIXES = {
    "images": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "recordings": (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif"),
}

# Listeners on the element itself, which stays when its content is replaced.
CHOOSE = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('click', { index: Number(button.dataset.index) });
});"""
PAGE: Any = templates.get_template("page.html.jinja").module


@dataclass
class SearchIndex:
    """Images or recordings that can be found."""

    kind: str  # "images" or "recordings"
    labels: list[str]  # what they are called
    sources: list[str]  # data URIs to show or play them
    embeds: torch.Tensor  # (N, P) unit-length embeddings

    def some(self, number: int, first: int | None = None) -> list[dict[str, Any]]:
        """What is shown of a few from all of it, `first` before the others: neighbours often look the same."""
        count = min(number, len(self.labels))
        places = [index * len(self.labels) // count for index in range(count)]
        if first is not None:
            places = [first, *(place for place in places if place != first)][:count]
        return [{"index": index, "label": self.labels[index], "source": self.sources[index]} for index in places]

    def nearest(self, embed: torch.Tensor) -> list[dict[str, Any]]:
        """What is shown of those nearest to an embedding (P,), the best first."""
        best = (self.embeds @ embed).topk(min(NUM_FOUND[self.kind], len(self.labels)))
        return [
            {"label": self.labels[index], "source": self.sources[index], "similarity": similarity}
            for index, similarity in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@dataclass
class Query:
    """What was asked: how it is shown above the answer, and its unit-length embedding (P,)."""

    shown: str
    embed: torch.Tensor


@dataclass
class Visit:
    """What is remembered of an open page, by kind: the last query for it, and the uploads to be searched."""

    queries: dict[str, Query] = field(default_factory=dict)
    uploads: dict[str, SearchIndex] = field(default_factory=dict)


class Searcher:
    """A model (a folder, or a repository whose code may be trusted) and its processor."""

    def __init__(self, model: str, trust_remote_code: bool = False):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = Path(model).name if os.path.isdir(model) else model
        self.model = AutoModel.from_pretrained(model, trust_remote_code=trust_remote_code).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
        # The reader of images that the processor itself uses, which came with its code.
        self.load_image: Callable[..., Image.Image] = sys.modules[type(self.processor).__module__].load_image

    @torch.no_grad()
    def embed(self, **inputs: Any) -> torch.Tensor:
        """Embed what the processor takes as `images`, `audio` or `text`: (N, P)."""
        (kind,) = inputs
        prepared = self.processor(**inputs).to(self.model.device)
        name = {"images": "get_image_features", "audio": "get_audio_features", "text": "get_text_features"}[kind]
        return getattr(self.model, name)(**prepared).pooler_output.float().cpu()

    @torch.no_grad()
    def hear(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, dict[str, torch.Tensor], list[Any] | None]:
        """Return a recording at 16 kHz (S,), the speech encoder's output, and the keywords; None without keywords."""
        inputs = self.processor(audio=samples, sampling_rate=rate).to(self.model.device)
        hidden_states, frame_lengths = self.model.encode_speech_frames(**inputs)
        speech = {"speech_hidden_states": hidden_states, "frame_lengths": frame_lengths}
        keywords = None
        if self.model.config.has_cascaded:
            top_k = min(4, int(self.model.is_keyword.sum()))
            keywords = self.model.extract_keywords(**speech, tokenizer=self.processor, top_k=top_k)[0]
        return inputs["input_values"][0].cpu().numpy(), speech, keywords

    @torch.no_grad()
    def listen(self, samples: np.ndarray, rate: int) -> Query:
        """Embed a recording (S,) of a rate in Hz, and show its keywords on its waveform."""
        waveform, speech, keywords = self.hear(samples, rate)
        embed = self.model.get_audio_features(**speech).pooler_output[0].float().cpu()
        loud = waveform / max(float(np.abs(waveform).max()), 1e-4) * 0.9
        return Query(PAGE.speech(waveform_view(loud, keywords)), embed)

    def best_understood(self, index: SearchIndex) -> int:
        """Place of the recording, of a few, whose keywords are most often tokens of its label."""
        best, most = 0, 0.0
        for one in index.some(NUM_TRIED):
            keywords = self.hear(*read_recording(_content(one["source"])))[2]
            said = self.processor.tokenizer(one["label"], add_special_tokens=False)["input_ids"]
            right = sum(word.id in said for word in keywords or []) / max(len(keywords or []), 1)
            if right > most:
                best, most = one["index"], right
            if right == 1 or keywords is None:
                break
        return best

    def index(self, kind: str, files: Sequence[tuple[Path, str]]) -> SearchIndex:
        """Read and embed files, each with its label; a ValueError names one that cannot be used."""
        sources, parts = [], []
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            if kind == "images":
                images = [self.read_image(file, label) for file, label in batch]
                sources += [image_data_uri(image, THUMBNAIL) for image in images]
                parts.append(self.embed(images=images))
            else:
                recordings = [read_recording(file, label) for file, label in batch]
                sources += [audio_data_uri(samples, rate) for samples, rate in recordings]
                audio = [{"array": samples, "sampling_rate": rate} for samples, rate in recordings]
                parts.append(self.embed(audio=audio))
        return SearchIndex(kind, [label for _, label in files], sources, torch.cat(parts))

    def read_image(self, file: Path, label: str = "The image") -> Image.Image:
        """Read an image as RGB, as the processor does; the message of a ValueError is for the visitor."""
        content, size = file.read_bytes(), (0, 0)
        with suppress(Exception), Image.open(io.BytesIO(content)) as image:  # what is no image, the reader says
            size = image.size
        if size[0] * size[1] > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(f"{label} has more than {MAX_MEGAPIXELS} million pixels. Please take a smaller one.")
        return self.load_image(content, name=label)


def read_recording(file: Path | io.BytesIO, label: str = "The recording") -> tuple[np.ndarray, int]:
    """Read a recording: mono samples (S,) float32 in about [-1, 1], and their rate in Hz.

    The message of a ValueError is for the visitor.
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


def _content(source: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(source.partition(",")[2]))


def label_of(file: str | Path) -> str:
    """Return what a file is called: its name without ending, with spaces."""
    return " ".join(Path(file).stem.replace("_", " ").split()) or Path(file).name


@contextmanager
def uploaded(value: Any) -> Iterator[list[tuple[Path, str]]]:
    """Give the files that gradio's upload components sent, with labels, and delete them soon, come what may."""
    values = value if isinstance(value, list) else [value] if value else []
    files = [(Path(one["path"]), label_of(one.get("orig_name") or one["path"])) for one in values]
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


class Demo:
    """What the page does, with a model and folders that together hold images and recordings."""

    def __init__(self, searcher: Searcher, folders: Iterable[str | Path]):
        self.searcher = searcher
        self.indexes: dict[str, dict[str, SearchIndex]] = {kind: {} for kind in SUFFIXES}
        self.visits: dict[str, Visit] = {}
        folders = [Path(folder) for folder in folders]
        for kind, suffixes in SUFFIXES.items():
            for folder in folders:
                files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
                if files:
                    try:
                        index = searcher.index(kind, [(file, label_of(file)) for file in files])
                    except ValueError as error:
                        raise ValueError(f"In {files[0].parent}: {error}") from error
                    self.indexes[kind][label_of(folder.resolve())] = index
            if not self.indexes[kind]:
                places = ", ".join(map(str, folders)) or str(INDEXES)
                raise ValueError(f"There are no {kind} to search in {places}.")
        self.first = searcher.best_understood(next(iter(self.indexes["recordings"].values())))

    def visit(self, request: gr.Request) -> Visit:
        """Return what is remembered of the page that asks; without one, what it gave would be everybody's."""
        if not request.session_hash:
            raise ValueError("This needs a session, which a browser has that shows the page.")
        visit = self.visits.pop(request.session_hash, None) or Visit()
        self.visits[request.session_hash] = visit  # the last one is the newest
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

    def search(
        self, kind: str, choice: str, request: gr.Request, read: Callable[[Any], Query | None], value: Any = None
    ) -> str:
        """Show what is nearest to the query that `read` makes of a value, or, if none, to the page's last one."""
        try:
            query = read(value)
            visit = self.visit(request)
        except (ValueError, OSError) as error:
            return PAGE.problem(_message(error))
        index = visit.uploads.get(kind) if choice == YOURS else self.indexes[kind].get(choice)
        if index is None:
            return PAGE.problem(f"Your {kind} are no longer here: they are forgotten when the page is left.")
        if query is not None:
            visit.queries[kind] = query
        if kind not in visit.queries:
            return PAGE.waiting(kind, len(index.labels), index.some(NUM_WAITING))
        query = visit.queries[kind]
        return PAGE.found(query.shown, kind, len(index.labels), index.nearest(query.embed))

    def last(self, value: Any) -> None:
        """No new query: the page's last one is searched for again."""

    def recording(self, value: Any) -> Query | None:
        """Query by a recording that was uploaded."""
        with uploaded(value) as files:
            recordings = [read_recording(file) for file, _ in files[:1]]
        return self.searcher.listen(*recordings[0]) if recordings else None

    def offered_recording(self, place: int) -> Query:
        """Query by one of the recordings that are offered."""
        source = next(iter(self.indexes["recordings"].values())).sources[place]
        return self.searcher.listen(*read_recording(_content(source)))

    def text(self, value: str) -> Query:
        """Query by words."""
        words = " ".join(value.split())
        if not words:
            raise ValueError("There are no words to search for: type some first.")
        if len(words) > MAX_TEXT:
            raise ValueError(f"The text has {len(words):,} characters; at most {MAX_TEXT} are taken.")
        return Query(PAGE.asked(words, None), self.searcher.embed(text=[words])[0])

    def image(self, value: Any) -> Query | None:
        """Query by an image that was uploaded."""
        with uploaded(value) as files:
            images = [self.searcher.read_image(file) for file, _ in files[:1]]
        if not images:
            return None
        return Query(
            PAGE.asked("Your image", image_data_uri(images[0], THUMBNAIL)), self.searcher.embed(images=images)[0]
        )

    def offered_image(self, place: int) -> Query:
        """Query by one of the images that are offered."""
        index = next(iter(self.indexes["images"].values()))
        return Query(PAGE.asked(index.labels[place], index.sources[place]), index.embeds[place])

    def upload(self, kind: str, value: Any, choice: str, request: gr.Request) -> tuple[Any, str]:
        """Take a visitor's own images or recordings; returns the update of the choice, and the answer."""
        update = gr.update()
        try:
            with uploaded(value) as files:
                visit = self.visit(request)
                if len(files) > MAX_FILES[kind]:
                    raise ValueError(f"{len(files)} {kind} are too many: at most {MAX_FILES[kind]} can be searched.")
                if files:
                    visit.uploads[kind] = self.searcher.index(kind, files)
                    choice = YOURS
                    update = gr.update(choices=self.choices(kind, visit), value=YOURS)
        except (ValueError, OSError) as error:
            return update, PAGE.problem(_message(error))
        return update, self.search(kind, choice, request, self.last)

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        config, name = self.searcher.model.config, self.searcher.name
        # Files of uploads that never reached us (a page closed half way) go after five minutes.
        with gr.Blocks(title="Say something, find the image", delete_cache=(60, 300)) as page:
            gr.HTML(PAGE.header(name, config.model_variant, MAX_SECONDS, MAX_MEGABYTES, MAX_FILES))
            with gr.Tabs():
                with gr.Tab("Find images"), gr.Row(equal_height=False):
                    self._tab("images")
                with gr.Tab("Find recordings"), gr.Row(equal_height=False):
                    self._tab("recordings")
            page.unload(self.forget)
        return page

    def _tab(self, kind: str) -> None:
        asks: list[tuple[Any, Any, list[Any]]] = []  # an event, what reads its query, the component with its value
        with gr.Column(scale=4, min_width=300):
            if kind == "images":
                audio = gr.Audio(
                    sources=["microphone", "upload"],
                    type="filepath",
                    label="Describe an image",
                    editable=False,
                    buttons=[],
                    elem_id="recorder",
                )
                # Not `input`, which also tells that the recorder was emptied, or turned to the other source.
                asks = [(event, self.recording, [audio]) for event in (audio.upload, audio.stop_recording)]
                asks.append(
                    (self._offer("recordings", "Or ask with one of these recordings"), self.offered_recording, [])
                )
            else:
                text = gr.Textbox(
                    label="In words", placeholder="a red star above a blue ring", submit_btn="Search", max_lines=1
                )
                asks = [(text.submit, self.text, [text])]
                asks.append((self._offer("images", "Or with an image"), self.offered_image, []))
                image = gr.UploadButton("Use an image of yours", file_types=["image"], size="md")
                asks.append((image.upload, self.image, [image]))
            choices = self.choices(kind)
            choice = gr.Radio(choices, value=choices[0][1], label=f"{kind.capitalize()} to search")
            file_types = ["image" if kind == "images" else "audio"]
            own = gr.UploadButton(f"Search your own {kind}", file_count="multiple", file_types=file_types, size="md")
        with gr.Column(scale=7, min_width=300):
            index = self.indexes[kind][choices[0][1]]
            waiting = PAGE.waiting(kind, len(index.labels), index.some(NUM_WAITING))
            answer = gr.HTML(waiting, js_on_load=PLAYER, elem_id=f"{kind}-found")
        for event, read, values in [*asks, (choice.input, self.last, [])]:
            self._on_ask(event, kind, read, values, choice, answer)

        def upload(value: Any, name: str, request: gr.Request) -> tuple[Any, str]:
            return self.upload(kind, value, name, request)

        self._on(own.upload, upload, inputs=[own, choice], outputs=[choice, answer])

    def _offer(self, kind: str, hint: str) -> Any:
        """Buttons to ask with what is already here; returns the event of a press."""
        index = next(iter(self.indexes[kind].values()))
        offered = index.some(NUM_OFFERED[kind], self.first if kind == "recordings" else None)
        return gr.HTML(PAGE.offered(kind, hint, offered), js_on_load=CHOOSE).click

    def _on_ask(self, event: Any, kind: str, read: Any, values: list[Any], choice: gr.Radio, answer: gr.HTML) -> None:
        def ask(value: Any, name: str, pressed: gr.EventData, request: gr.Request) -> str:
            return self.search(kind, name, request, read, value if values else getattr(pressed, "index", None))

        done = self._on(event, ask, [*(values or [choice]), choice], [answer])
        if read == self.recording:
            done.then(lambda: None, outputs=values, api_visibility="private", show_progress="hidden")

    @staticmethod
    def _on(event: Any, function: Any, inputs: list[Any], outputs: list[Any]) -> Any:
        # Without gradio's own preprocessing, which would leave files behind: `uploaded` reads what it sends.
        return event(
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


def _message(error: Exception) -> str:
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
    """Start serving, with everything off that would keep or send something; `options` are gradio's own."""
    uploads = tempfile.mkdtemp(prefix="speechclip-plus-demo-")
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = uploads  # read by the components that are made now
    page = demo.build()
    page.queue(max_size=32)
    page.launch(
        theme=theme(),
        css=(HERE / "style.css").read_text(encoding="utf-8") + STYLE,
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
    folders = sorted(path for path in INDEXES.iterdir() if path.is_dir()) if INDEXES.is_dir() else []
    launch(Demo(Searcher(model, trust_remote_code=True), folders))


if __name__ == "__main__":
    main()
