"""Training with the weights shared out over the processes (FSDP2): what stays whole on each of them."""

from typing import Any

import torch
from torch import nn


def prepare_sharding(accelerator: Any, model: Any, wanted: bool) -> list[nn.Parameter]:
    """Tell accelerate what of a `SpeechClipPlusModel` it must not take apart when it shards it.

    Both temperatures are scalars, which FSDP2 cannot share out, and CLIP's subword embeddings are the keywords'
    codebook too, read outside of their module's forward, where they would be in parts. Weights and gradients travel
    in float32; half precision is autocast's, as with DDP, so that what is computed in float32 there is so here too.

    Args:
        accelerator: of the Trainer.
        model: not sharded yet.
        wanted: whether the training arguments ask for FSDP.

    Returns:
        The trained parameters that stay whole, whose gradients FSDP does not average.

    Raises:
        ValueError: if FSDP is wanted and accelerate does not offer it here, or it is the first version of it.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if wanted:
            raise ValueError(
                f"fsdp is set, but accelerate shards on GPUs alone and this run is on {accelerator.device.type} "
                f"({accelerator.distributed_type.value}), where it would train with DDP: leave fsdp out."
            )
        return []
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"This model is sharded by FSDP2, and the settings ask for version {plugin.fsdp_version}: give "
            "fsdp_config={'version': 2}."
        )
    temperatures = [model.logit_scale, model.clip.logit_scale]
    plugin.ignored_modules = [nn.ParameterList(temperatures), model.get_input_embeddings()]
    plugin.mixed_precision_policy = None
    return [parameter for parameter in temperatures if parameter.requires_grad]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights have been shared out, so that it runs on all processes at once or not at all."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)
