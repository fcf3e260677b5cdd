"""`transformers.Trainer` for speech-image models: the published optimiser, named losses, retrieval as evaluation."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import (
    HubStrategy,
    SaveStrategy,
    TrainOutput,
    has_length,
    rotate_checkpoints,
    seed_worker,
)

from ..configuration.publication import is_generated
from ..hub_cards.model_card import save_model_card
from ..modeling_speechclip_plus.keywords import perplexity
from ..modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel, is_frozen
from .card_data import trainer_card_facts
from .checkpoints import UNFINISHED, finish_checkpoint, last_complete_checkpoint, remove_unfinished
from .collator import GOLD_SUBWORDS, SpeechImageCollator
from .distributed import average_gradients, one_global_batch
from .evaluation.evaluate import join_outputs, kept_outputs, split_metrics
from .feature_cache import cache_image_embeddings
from .gradient_cache import backward_in_chunks, check_chunks_are_exact
from .hub_push import HubPushes
from .sampler import LengthGroupedBatches, SharedBatches, ShuffledRows, StreamShare, utterance_lengths
from .sharding import is_sharded, prepare_sharding
from .training_arguments import SpeechClipPlusTrainingArguments, warmup_decay
from .training_meter import TrainingMeter

LOSS_PARTS = ("parallel_loss", "cascaded_loss", "quantity_loss")


class SpeechClipPlusTrainer(Trainer):
    """Train a `SpeechClipPlusModel` on pairs of speech and pictures.

    Logs, beside the loss, each of its parts, the temperature, the mean number of keywords per utterance, the error of
    CIF's length, and of the subwords chosen since the last log how many are different and their perplexity. Evaluates
    retrieval over the whole split: see `evaluation.split_metrics` for the names. CIF's scaling ends at a global step,
    which a resumed run knows.

    Several processes (`torchrun`) train as one would with their batches joined: all pairs are negatives of each
    other. A run that was killed goes on with `train(resume_from_checkpoint=True)` as if nothing had been; checkpoints
    appear in the output folder whole or not at all.

    Args:
        model: the model.
        args: `SpeechClipPlusTrainingArguments`.
        data_collator: default: `SpeechImageCollator(processing_class)`. In training it crops long utterances.
        processing_class: a `SpeechClipPlusProcessor`, saved with every checkpoint.
        **kwargs: see `transformers.Trainer`.

    Example:
        ```python
        trainer = SpeechClipPlusTrainer(
            model=model,
            args=SpeechClipPlusTrainingArguments(output_dir="runs/first", max_steps=1000, warmup_steps=100),
            train_dataset=load_speech_image_dataset("spoken_scenes", split="train"),
            eval_dataset=load_speech_image_dataset("spoken_scenes", split="validation"),
            processing_class=processor,
        )
        trainer.train()
        ```
    """

    args: SpeechClipPlusTrainingArguments
    # Set by Trainer, which declares no types for them.
    compute_metrics: Any
    eval_dataset: Any
    lr_scheduler: Any
    optimizer: Any
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
        if not isinstance(args, SpeechClipPlusTrainingArguments):
            raise TypeError(
                f"args must be SpeechClipPlusTrainingArguments, got {type(args).__name__}; they carry the optimiser, "
                "the schedule and the crop that this trainer needs."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs and would give each a batch of its own, with its own negatives. "
                f"Start one process for each: `torchrun --standalone --nproc_per_node {args.n_gpu} ...` (or choose "
                "one GPU: CUDA_VISIBLE_DEVICES=0)."
            )
        if data_collator is None:
            if processing_class is None:
                raise ValueError("Give processing_class (a SpeechClipPlusProcessor) or a data_collator.")
            data_collator = SpeechImageCollator(processing_class)
        if args.ddp_find_unused_parameters is None and is_frozen(model.speech_encoder) and is_frozen(model.clip):
            args.ddp_find_unused_parameters = False  # every step uses the whole branch: nothing to look for
        knows_use_cache = hasattr(model.config, "use_cache")
        self._pushes: HubPushes | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if not knows_use_cache:
            del model.config.use_cache  # Trainer sets it on every model; nothing here reads it
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not over tokens
        if self.compute_metrics is None:
            self.compute_metrics = self._split_metrics
        # The wrapper of an adapter has a signature of its own.
        self._forward_names = frozenset(inspect.signature(SpeechClipPlusModel.forward).parameters)
        self._vocabulary_size = self.model.config.clip_config.text_config.vocab_size
        self._observed = _Observed()
        self._training_collator: SpeechImageCollator | None = None
        self._training_batches: SharedBatches | None = None
        self._with_embeddings: dict[int, tuple[Any, Any]] = {}
        self._checkpoint_unfinished = False
        self.add_callback(_Epochs(self))
        self.add_callback(TrainingMeter())
        self._kept_whole = prepare_sharding(self.accelerator, self.model, wanted=bool(args.fsdp))
        if args.gradient_cache_chunk is not None:
            check_chunks_are_exact(model.config)
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("gradient_cache_chunk works with DDP, not with FSDP or DeepSpeed: leave it out.")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last complete one in the output folder.
            *args: see `transformers.Trainer.train`.
            **kwargs: the same.

        Raises:
            ValueError: if there is no complete checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        # Trainer writes a processor's special tokens into the model's configuration, for models that generate text.
        processor = self.processing_class
        if processor is not None:
            self.processing_class = _Unaligned(processor)
        several = self.args.world_size > 1
        try:
            with one_global_batch(self.accelerator.unwrap_model(self.model)) if several else nullcontext():
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
        inputs = {name: value for name, value in inputs.items() if name in self._forward_names}
        # FSDP does not wrap the forward in autocast; elsewhere this changes nothing.
        with self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext():
            outputs = model(**inputs, return_loss=True, global_step=self.state.global_step)
        if model.training:
            self._observed.add(outputs, self._vocabulary_size)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the gradients of a batch, in chunks if `gradient_cache_chunk` says so; returns the loss."""
        if self.args.gradient_cache_chunk is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            average_gradients(self._kept_whole)  # FSDP has done it with the others
            return loss
        model.train()
        inputs = self._prepare_inputs(inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        outputs = backward_in_chunks(
            unwrapped,
            {name: value for name, value in inputs.items() if name in self._forward_names},
            self.args.gradient_cache_chunk,
            self.state.global_step,
            autocast=self.accelerator.autocast,
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
        )
        if self.args.world_size > 1:  # the model ran outside of DDP, which would have done this
            average_gradients([parameter for parameter in unwrapped.parameters() if parameter.requires_grad])
        self._observed.add(outputs, self._vocabulary_size)
        return outputs["loss"] / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the parts of the loss beside the loss itself."""
        if "loss" in logs and self._observed.batches:
            logs.update(self._observed.averages(self.accelerator))
            scale = getattr(self.accelerator.unwrap_model(self.model), "logit_scale", None)
            if scale is not None:
                logs["temperature"] = torch.exp(-scale.detach().float()).item()
        super().log(logs, start_time)

    # ---- optimiser and schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create Adam with an L2 term on every trained parameter as published, or what `optim` names."""
        if self.args.optimizer == "trainer" or self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            return super().create_optimizer(model)
        trained = [parameter for parameter in (model or self.model).parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("No parameter of the model requires a gradient, so there is nothing to train.")
        self.optimizer = torch.optim.Adam(
            trained,
            lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=self.args.weight_decay,  # torch's Adam adds it to the gradient: L2, not decoupled
        )
        return self.optimizer

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
        """Return this process's share of the training batches, long utterances cropped.

        Raises:
            ValueError: if there is no training data, too little for the processes, or a stream without `max_steps`.
        """
        if self.train_dataset is None:
            raise ValueError("There is nothing to train on: give train_dataset.")
        args, dataset = self.args, self.train_dataset
        collator = self.data_collator
        if isinstance(collator, SpeechImageCollator):
            collator = self._training_collator = collator.for_training(args.max_audio_samples, self._data_seed)
        shared: dict[str, Any] = {
            "collate_fn": collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "in_order": args.dataloader_in_order,
            # Of its own: otherwise every epoch would draw from the one that dropout draws from.
            "generator": torch.Generator().manual_seed(self._data_seed),
        }
        # Not given to accelerate, which would fill up the last batch with rows of the first, and let one process read
        # streams for all.
        if not has_length(dataset):
            if args.max_steps <= 0:
                raise ValueError("A stream does not tell its length: give max_steps, after which training ends.")
            if args.train_sampling_strategy == "group_by_length":
                raise ValueError("A stream cannot be grouped by length: use train_sampling_strategy='random'.")
            stream = StreamShare(dataset, args.process_index, args.world_size)
            return DataLoader(stream, batch_size=args.train_batch_size, drop_last=True, **shared)
        self._training_batches = SharedBatches(
            self._get_train_sampler(dataset),
            args.train_batch_size * args.world_size,
            args.process_index,
            args.world_size,
            args.dataloader_drop_last,
        )
        if len(self._training_batches) == 0:
            raise ValueError(
                f"{len(dataset)} rows make no batch for {args.world_size} processes of {args.train_batch_size} each "
                f"(dataloader_drop_last={args.dataloader_drop_last})."
            )
        if args.eval_strategy != "no" or self.is_fsdp_enabled:  # now, before FSDP shards the tower
            for split in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
                self._embedded(split)
        return DataLoader(
            self._embedded(dataset),
            batch_sampler=self._training_batches,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            **shared,
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return all evaluation batches, the incomplete last one too."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._embedded(eval_dataset)
        splits = self.eval_dataset
        try:
            # The names stay: Trainer keeps loaders by them.
            named = isinstance(splits, dict)
            self.eval_dataset = {k: self._embedded(v) for k, v in splits.items()} if named else self._embedded(splits)
            with self._keeping_the_last_batch():
                return super().get_eval_dataloader(eval_dataset)
        finally:
            self.eval_dataset = splits

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return all test batches, the incomplete last one too."""
        # Of a split that was evaluated in training the pictures are embedded already.
        _, test_dataset = self._with_embeddings.get(id(test_dataset), (None, test_dataset))
        with self._keeping_the_last_batch():
            return super().get_test_dataloader(test_dataset)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "sequential":
            return SequentialSampler(dataset)
        if self.args.train_sampling_strategy == "random":
            return ShuffledRows(len(dataset), self._data_seed)
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedBatches(self._lengths(dataset), per_step, self._data_seed)

    def _embedded(self, dataset: Any) -> Any:
        """The data set with CLIP's image embeddings in place of its pictures, if they can be kept."""
        model = self.accelerator.unwrap_model(self.model)
        if (
            not self.args.cache_image_embeddings
            or not is_frozen(model.clip)
            or not isinstance(dataset, datasets.Dataset)
            or not {"image", "image_id"} <= set(dataset.column_names)
            or not isinstance(self.data_collator, SpeechImageCollator)
        ):
            return dataset
        if id(dataset) not in self._with_embeddings:
            if is_sharded(model):  # embeds in the forward of all processes alone
                return dataset
            with self.args.main_process_first(desc="embedding the pictures"):
                cached = cache_image_embeddings(
                    model,
                    dataset,
                    self.data_collator.processor,
                    self.args.image_cache_dir,
                    self.args.per_device_eval_batch_size,
                )
            self._with_embeddings[id(dataset)] = (dataset, cached)
        return self._with_embeddings[id(dataset)][1]

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # In the data set's order, whatever training does; Trainer would ask for lengths that recordings do not tell.
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)

    def _lengths(self, dataset: Any) -> Sequence[int]:
        """Lengths of the rows, for batches that are grouped by them.

        Raises:
            ValueError: if they cannot be known.
        """
        columns = getattr(dataset, "column_names", None) or ()
        if (lengths := getattr(dataset, "lengths", None)) is not None:
            return lengths
        if self.args.length_column_name in columns:
            return list(dataset[self.args.length_column_name])
        if "audio" not in columns:
            raise ValueError(
                "Grouping by length needs the rows' lengths: give the data set a column "
                f"{self.args.length_column_name!r} or 'audio', or use train_sampling_strategy='random'."
            )
        longest = self.args.max_audio_samples
        lengths = utterance_lengths(dataset.select_columns(["audio"])["audio"])
        return lengths if longest is None else [min(length, longest) for length in lengths]

    @contextmanager
    def _keeping_the_last_batch(self) -> Iterator[None]:
        # `dataloader_drop_last` is meant for training, but Trainer applies it to evaluation too.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    # ---- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED) if self._checkpoint_unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, and move it to its place when it is whole."""
        folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove_unfinished(folder)
        self.accelerator.wait_for_everyone()
        self._checkpoint_unfinished = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._checkpoint_unfinished = False
        if (step := self.state.best_global_step) and (
            step == self.state.global_step or (folder / f"checkpoint-{step}").is_dir()
        ):
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{step}")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(folder / UNFINISHED / name / "trainer_state.json"))
            finish_checkpoint(folder, name)
            if self._pushes is not None and self.args.push_to_hub:
                self._push_checkpoint(folder / name)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Trainer pickles its arguments beside the model; the token among them is nobody else's business.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    # ---- the Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository that the training pushes to; see `transformers.Trainer.init_hf_repo`.

        Raises:
            ValueError: if a private one is wanted and there is a public one.
        """
        if not self.is_world_process_zero():
            return
        api = HfApi(token=token or self.args.hub_token)
        private = self.args.hub_private_repo if private is None else private
        name = self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        self.hub_model_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(self.hub_model_id).private:
            raise ValueError(
                f"The repository {self.hub_model_id} exists and is public, and a private one was asked for."
            )
        self._pushes = HubPushes(self.args, self.hub_model_id)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **facts: Any,
    ) -> None:
        """Write README.md and its picture in the output folder; a README.md that somebody wrote or changed stays.

        Args:
            language: BCP 47 codes of the speech.
            license: the Hub's name for the weights' licence.
            tags: tags to add to the card's metadata.
            model_name: the card's title; default: the repository's or the output folder's name.
            **facts: other fields of `ModelCardFacts`, in place of what the trainer knows.

        Raises:
            TypeError: if there is no such field.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        file = folder / "README.md"
        if file.is_file() and not is_generated(file.read_text(encoding="utf-8")):
            return
        facts |= {"license": license} if license else {}
        facts |= {"languages": [language] if isinstance(language, str) else language} if language else {}
        name = self.hub_model_id or model_name or folder.resolve().name
        facts |= {"tags": [tags] if isinstance(tags, str) else tags or ()}
        save_model_card(folder, trainer_card_facts(self, name=name, **facts))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and push it with its processor and card; see `transformers.Trainer.push_to_hub`.

        Raises:
            NotPublishableError: if the output folder holds something that must not be published.
            OSError: if the Hub refuses or does not answer.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self._pushes is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if self._pushes is None:  # not on the first process
            return None
        self.create_model_card(**kwargs)
        changes = {"token": token, "revision": revision}
        given = {name: value for name, value in changes.items() if value is not None}
        return self._pushes.push_model(commit_message or "End of training", blocking, **given)

    def _push_checkpoint(self, checkpoint: Path) -> None:
        """Start to push a checkpoint, unless the one before is still on its way."""
        args = self.args
        if args.hub_strategy == HubStrategy.END or (self._pushes.is_busy() and not args.hub_always_push):
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.create_model_card(examples=())  # they take time: the last push has them
        by_step = args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        self._pushes.push_checkpoint(checkpoint, f"Training in progress, {done}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass  # not from here, where the checkpoint is not finished: `_save_checkpoint` pushes it when it is

    def _finish_current_push(self) -> None:
        if self._pushes is not None:
            self._pushes.report_failures()

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

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        """Run over the whole split.

        Raises:
            RuntimeError: if fewer or more utterances were scored than the data set has.
        """
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        scored = (output.metrics or {}).get(f"{prefix}_utterances")
        dataset: Any = getattr(dataloader, "dataset", None)
        if scored is not None and has_length(dataset) and scored != len(dataset):
            raise RuntimeError(
                f"{scored} utterances were scored, but the data set has {len(dataset)}: the figures would be wrong."
            )
        return output

    def _split_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, labels = join_outputs(prediction.predictions), join_outputs(prediction.label_ids)
        model = self.accelerator.unwrap_model(self.model)
        return split_metrics(
            predictions,
            labels["image_ids"],
            labels.get(GOLD_SUBWORDS),
            model.config,
            model.get_input_embeddings().weight,
            self.args.hit_rate_neighbours,
        )


class _Unaligned:
    """A processor that Trainer does not take for one."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


class _Observed:
    """Sums of what training batches gave since the last log, kept on their device so that no step waits for them."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        self.chosen: Tensor | None = None  # (V + 1,) how often each subword was chosen, the first for padding

    def add(self, outputs: Mapping[str, Any], vocabulary_size: int) -> None:
        values = {name: outputs[name] for name in LOSS_PARTS if outputs.get(name) is not None}
        if outputs.get("keyword_ids") is not None:
            values["keywords_per_utterance"] = outputs["keyword_lengths"].float().mean()
            ids = outputs["keyword_ids"].detach().flatten().clamp(min=-1) + 1
            if self.chosen is None:
                self.chosen = torch.zeros(vocabulary_size + 1, dtype=torch.float32, device=ids.device)
            self.chosen.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
        if outputs.get("alpha_sums") is not None and outputs.get("target_lengths") is not None:
            values["cif_length_error"] = (outputs["alpha_sums"].float() - outputs["target_lengths"]).abs().mean()
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.batches += 1

    def averages(self, accelerator: Any) -> dict[str, float]:
        """Means over the batches and processes since the last call."""
        result = {
            name: accelerator.reduce(total / self.batches, reduction="mean").item()
            for name, total in self.sums.items()
        }
        if self.chosen is not None:
            counts = accelerator.reduce(self.chosen[1:], reduction="sum")
            result["distinct_keywords"] = int((counts > 0).sum())
            result["code_perplexity"] = perplexity(counts).item()
        self.forget()
        return result


class _Epochs(TrainerCallback):
    """Tells the epoch to the order of rows and to the crops, so that a resumed epoch is the one that was left."""

    def __init__(self, trainer: SpeechClipPlusTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part in (self.trainer._training_collator, self.trainer._training_batches):
            if part is not None:
                part.set_epoch(int(state.epoch or 0))
