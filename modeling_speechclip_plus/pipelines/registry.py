"""The pipelines by task, and their registration with transformers."""

from typing import Any

from transformers import AutoModel, AutoProcessor, AutoTokenizer, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.feature_extraction import FeatureExtractionPipeline

from .base import MODEL_TYPE, SpeechClipPlusPipeline
from .feature_extraction import SpeechFeatureExtractionPipeline
from .image_retrieval import SpeechImageRetrievalPipeline
from .keyword_extraction import SpeechKeywordExtractionPipeline
from .zero_shot_classification import ZeroShotSpeechClassificationPipeline

# The one list of tasks: both the registration below and the "custom_pipelines" of published models follow it.
PIPELINES: dict[str, type[SpeechClipPlusPipeline]] = {
    "speech-image-retrieval": SpeechImageRetrievalPipeline,
    "speech-keyword-extraction": SpeechKeywordExtractionPipeline,
    "zero-shot-speech-classification": ZeroShotSpeechClassificationPipeline,
    "feature-extraction": SpeechFeatureExtractionPipeline,
}


class FeatureExtraction(FeatureExtractionPipeline):
    """What `pipeline("feature-extraction", model=...)` makes once this package is imported.

    For a `SpeechClipPlusModel` a `SpeechFeatureExtractionPipeline`; for any other model what transformers makes.
    """

    # Not demanded, since ours needs none; of other models one that cannot be loaded is asked for again, for the error.
    _load_tokenizer = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Pipeline:  # type: ignore[misc]
        """Make the pipeline that fits the model."""
        model = kwargs["model"] if "model" in kwargs else args[0]
        if getattr(getattr(model, "config", None), "model_type", None) != MODEL_TYPE:
            if kwargs.get("tokenizer") is None and len(args) < 2:
                kwargs["tokenizer"] = _loaded(AutoTokenizer, model, "tokenizer")
            return FeatureExtractionPipeline(*args, **kwargs)
        for unused in ("tokenizer", "feature_extractor", "image_processor"):
            kwargs.pop(unused, None)
        if kwargs.get("processor") is None:  # transformers.pipeline loads none for this task
            kwargs["processor"] = _loaded(AutoProcessor, model, "processor")
        return SpeechFeatureExtractionPipeline(*args, **kwargs)


def _loaded(auto_class: Any, model: Any, name: str) -> Any:
    """Load what belongs to a model from where the model was loaded."""
    source = getattr(model, "name_or_path", None)
    if not source:
        raise ValueError(f"This model was not loaded from anywhere: pass its {name}, {name}=.")
    try:
        return auto_class.from_pretrained(source, revision=getattr(model.config, "_commit_hash", None))
    except OSError as error:
        raise OSError(f"The {name} of {source} cannot be loaded; pass {name}=. {error}") from error


def register_pipelines() -> None:
    """Make the tasks known to `transformers.pipeline`."""
    for task, pipeline_class in PIPELINES.items():
        if task in PIPELINE_REGISTRY.supported_tasks:
            # A task of transformers' own, which stays what it is for all other models.
            PIPELINE_REGISTRY.supported_tasks[task] |= {"impl": FeatureExtraction}
        else:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=AutoModel, type="multimodal")
