"""`transformers.Trainer` for speech-image models: the published optimiser, named losses, retrieval as evaluation."""

import copy
import json
import math
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from ..atomic_files import write_json
from ..configuration.publication import is_generated
from ..hub_cards.cards import save_model_card
from ..modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel, is_frozen
from ..remote_code import add_remote_code
from .card_data import trainer_card_facts
from .collator import GOLD_SUBWORDS, SpeechImageCollator
from .evaluation.evaluate import SplitOutputs, evaluate, kept_outputs
from .gradient_cache import backward_in_chunks, check_chunks_are_exact
from .sampler import training_dataloader
from .training_arguments import SpeechClipPlusTrainingArguments, warmup_decay
from .training_log import TrainingLog

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP
FILE_LIST = "files.json"  # a checkpoint's files and their sizes, written when all of them are there


class SpeechClipPlusTrainer(Trainer):
    """Train a `SpeechClipPlusModel`, also inside `peft` or `torch.compile`, on pairs of speech and images.

    Logs the parts of the loss, the temperature and the use of keywords, and evaluates retrieval over the whole split:
    docs/training.md and docs/metrics.md have the names. Several processes (`torchrun`) train as one would with their
    batches joined: all pairs are negatives of each other.

    Arguments are those of `transformers.Trainer`: `model` may be a module that holds the model, the data sets have
    rows as the collator takes them (by default `SpeechImageCollator(processing_class)`, which in training crops long
    utterances), and `processing_class` is a `SpeechClipPlusProcessor`.
    """

    args: SpeechClipPlusTrainingArguments
    # Set by Trainer, which declares no types for them.
    compute_metrics: Any
    eval_dataset: Any
    lr_scheduler: Any
    optimizer_cls_and_kwargs: Any
    processing_class: Any

    def __init__(
        self,
        model: nn.Module,
        args: SpeechClipPlusTrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        speech_clip = find_speech_clip(model)
        if not isinstance(args, SpeechClipPlusTrainingArguments):
            raise TypeError(f"args must be SpeechClipPlusTrainingArguments, got {type(args).__name__}.")
        if args.gradient_cache_chunk is not None:
            check_chunks_are_exact(speech_clip.config)
        if "image_id" in (getattr(eval_dataset, "column_names", None) or ()):
            args.choose_metric(len(set(map(int, eval_dataset["image_id"]))))
        if data_collator is None:
            if processing_class is None:
                raise ValueError("Give processing_class (a SpeechClipPlusProcessor) or a data_collator.")
            data_collator = SpeechImageCollator(processing_class)
        if isinstance(data_collator, SpeechImageCollator):
            data_collator = data_collator.for_evaluation()
        encoders = (speech_clip.speech_encoder, speech_clip.clip)
        if args.ddp_find_unused_parameters is None and all(map(is_frozen, encoders)):
            args.ddp_find_unused_parameters = False  # every step uses the whole branch: nothing to look for
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not over tokens
        self.compute_metrics = self.compute_metrics or self._split_metrics
        if args.optimizer == "adam" and self.optimizer_cls_and_kwargs is None:
            # torch's Adam adds the weight decay to the gradient: L2, not decoupled.
            options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            self.optimizer_cls_and_kwargs = (torch.optim.Adam, options)
        self._training_log = TrainingLog(self.speech_clip.config.clip_config.text_config.vocab_size)
        self._last_logged = 0.0
        self.add_callback(_EachEpochAndStep())

    @property
    def speech_clip(self) -> SpeechClipPlusModel:
        """The model without what wraps it: DDP, an adapter, `torch.compile`."""
        return find_speech_clip(self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `transformers.Trainer` does; True resumes from the output folder's last complete checkpoint."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        if resume_from_checkpoint and not Path(resume_from_checkpoint, "scheduler.pt").is_file():
            raise ValueError(
                f"{resume_from_checkpoint} holds no optimiser and schedule, which save_only_model=True leaves out: "
                "training cannot go on from it. Load its model and train that anew."
            )
        # Trainer writes a processor's special tokens into the model's configuration, for models that generate text.
        processor = self.processing_class
        if processor is not None:
            self.processing_class = SimpleNamespace(save_pretrained=processor.save_pretrained)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.processing_class = processor

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the weighted sum of the losses (and the output), and remember the parts for the next log."""
        given = {name: value for name, value in inputs.items() if name != GOLD_SUBWORDS}
        outputs = model(**given | {"return_loss": True}, global_step=self.state.global_step)
        if model.training:
            self._training_log.add(outputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the gradients of a batch, in chunks if `gradient_cache_chunk` says so; returns the loss."""
        if self.args.gradient_cache_chunk is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        outputs = backward_in_chunks(
            self.speech_clip,
            self._prepare_inputs(inputs),
            self.args.gradient_cache_chunk,
            self.state.global_step,
            autocast=self.accelerator.autocast,
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
        )
        if self.args.world_size > 1:  # the model ran outside of DDP, which would have averaged the gradients
            for parameter in model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.args.world_size
        self._training_log.add(outputs)
        return outputs["loss"] / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the parts of the loss beside the loss itself, and the hours of training so far."""
        if "loss" in logs and self._training_log.batches:
            logs.update(self._training_log.averages(self.accelerator))
            logs["temperature"] = torch.exp(-self.speech_clip.logit_scale.detach().float()).item()
        if start_time is not None:
            before = next((e["train_hours"] for e in reversed(self.state.log_history) if "train_hours" in e), 0.0)
            now = time.time()
            logs["train_hours"] = before + (now - max(start_time, self._last_logged)) / 3600
            self._last_logged = now
        super().log(logs, start_time)

    # ---- optimiser and schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters with weight decay: with the published Adam all of them."""
        if self.args.optimizer == "trainer":
            return super().get_decay_parameter_names(model)
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the published warm-up and decay, or what `lr_scheduler_type` names."""
        if self.args.schedule == "trainer" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        curve = partial(
            warmup_decay,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
            total_steps=num_training_steps,
            final_ratio=self.args.final_learning_rate / self.args.learning_rate,
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, curve)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the training batches, long utterances cropped."""
        # Not the batch size of the arguments: auto_find_batch_size lowers it.
        return training_dataloader(self.train_dataset, self.data_collator, self.args, self._train_batch_size)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return all batches of an evaluation in the data set's order."""
        # Private, because Trainer applies the order and the last batch of the training to evaluation too.
        given, self.args = self.args, copy.copy(self.args)
        self.args.dataloader_drop_last, self.args.train_sampling_strategy = False, "random"
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args = given

    # ---- checkpoints and the Hub

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, list its files when all processes have written theirs, and then delete older ones."""
        # Private: no event lies between the last file and the deletion of older checkpoints, and a run killed there
        # would be left with nothing complete.
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # an earlier run may have left a checkpoint of the same step
            (checkpoint / FILE_LIST).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(checkpoint / FILE_LIST, _file_sizes(checkpoint))
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in an output folder that goes to the Hub, with the code to load it there."""
        super().save_model(output_dir, _internal_call)
        if output_dir is None and self.hub_model_id is not None and self.args.should_save:
            add_remote_code(Path(self.args.output_dir))

    def create_model_card(self, model_name: str | None = None, **facts: Any) -> None:
        """Write README.md and its chart in the output folder; a README.md that somebody wrote or changed stays.

        `facts` are fields of `ModelCardFacts` such as `license`, in place of what the trainer knows.
        """
        folder = Path(self.args.output_dir)
        file = folder / "README.md"
        is_own = file.is_file() and not is_generated(file.read_text(encoding="utf-8"))
        if self.is_world_process_zero() and not is_own:
            name = self.hub_model_id or model_name or folder.resolve().name
            save_model_card(folder, trainer_card_facts(self, name=name, **facts))

    # ---- evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Return the loss, what evaluation keeps of the output, and the image ids and captions."""
        inputs = self._prepare_inputs(inputs)
        labels = {name: inputs[name] for name in ("image_ids", GOLD_SUBWORDS) if name in inputs}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss.detach().float().mean()
        return (loss, None, None) if prediction_loss_only else (loss, kept_outputs(outputs), labels)

    def _split_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        split = SplitOutputs.from_predictions(prediction.predictions, prediction.label_ids)
        return evaluate(
            split, self.speech_clip, hit_rate_neighbours=self.args.hit_rate_neighbours, resamples=0
        ).metrics


class _EachEpochAndStep(TrainerCallback):
    """Tells the epoch to the order of rows and to the crops, and bounds the logit scale."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        for part in (train_dataloader.collate_fn, train_dataloader.batch_sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        find_speech_clip(model).logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)


def find_speech_clip(model: nn.Module) -> SpeechClipPlusModel:
    """Find the `SpeechClipPlusModel` that a module is or holds, by the class's name: remote code has its own class."""
    for module in model.modules():
        if any(kind.__name__ == SpeechClipPlusModel.__name__ for kind in type(module).__mro__):
            return cast(SpeechClipPlusModel, module)
    raise TypeError(f"{type(model).__name__} is no SpeechClipPlusModel and holds none.")


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the `checkpoint-STEP` of the highest step in a folder of which all files are there, if any."""
    steps = [path.name.removeprefix("checkpoint-") for path in Path(folder).glob("checkpoint-*")]
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        checkpoint = Path(folder, f"checkpoint-{step}")
        listed = checkpoint / FILE_LIST
        if listed.is_file() and json.loads(listed.read_text("utf-8")).items() <= _file_sizes(checkpoint).items():
            return str(checkpoint)
    return None


def _file_sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
