"""The saved model that a command is given, or that the quickstart left here."""

import json
from pathlib import Path

import torch

from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

QUICKSTART_MODEL = Path("quickstart", "model")
_MODEL = "model"  # what a quickstart and a training call the folder of their model


def model_source(given: str | None) -> str:
    """Return the folder of the saved model, or the repository, that is meant.

    Args:
        given: a folder of a saved model, of a quickstart or of a training; or a repository on the Hub; None for the
            model of a quickstart in the current folder.

    Raises:
        ValueError: if none is given and there is no such quickstart.
        OSError: if there is no such folder, or it holds no saved model.
    """
    if given is None:
        if not (QUICKSTART_MODEL / "config.json").is_file():
            raise ValueError(
                f"There is no model in {QUICKSTART_MODEL}: make one with `speechclip-plus quickstart`, or name "
                "another with --model: a folder, or a repository on the Hub."
            )
        return str(QUICKSTART_MODEL)
    folder = Path(given)
    if not folder.exists():
        # Not what a repository could be, or in a folder that is here: no reason to ask the Hub for it.
        if folder == QUICKSTART_MODEL or given.count("/") > 1 or (folder.parent != Path() and folder.parent.is_dir()):
            raise OSError(f"There is no folder {given}.")
        return given
    if (folder / "config.json").is_file():
        return given
    if (folder / _MODEL / "config.json").is_file():
        return str(folder / _MODEL)
    raise OSError(f"{given} is no folder of a saved model: it has no config.json.")


def load_model(path: str, revision: str | None = None) -> tuple[SpeechClipPlusModel, SpeechClipPlusProcessor]:
    """Load a model in evaluation mode, on a GPU where there is one, and its processor.

    Args:
        path: as `model_source` takes it.
        revision: the repository's branch, tag or commit; its main branch if not given.

    Raises:
        OSError: if there is no such model, or it has no processor.
        ValueError: if it is a model of another kind.
    """
    path = model_source(path)
    folder = Path(path)
    if folder.exists():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "speechclip_plus":
            raise ValueError(f"{path} holds a {kind!r} model; expected one of type 'speechclip_plus'.")
    try:
        model = SpeechClipPlusModel.from_pretrained(path, revision=revision or "main").eval()
    except OSError as error:
        raise OSError(f"The model {path!r} cannot be loaded: {error}") from error
    try:
        processor = SpeechClipPlusProcessor.from_pretrained(path, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise OSError(
            f"The model {path!r} was saved without its processor (processor.save_pretrained): {error}"
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
