"""Networks of Hugging Face's transformers, which save their quantizers and are loaded with them.

transformers asks the attribute `hf_quantizer` of a network for what to save. On loading it finds, by the name in
config.json, what this file registers: the float network is made and loaded as any other, then prepared as
config.json says. A transformers that has not imported this file would load the float network; one weight therefore
lies in the file flat, with which it stops.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spequant.preparation.description import check_description, describe, place_as, places
from spequant.preparation.placement import unprepare
from spequant.preparation.states import QUANTIZERS, load_quantizers, stored_state

QUANT_METHOD = "spequant"


class Prepared(QuantizationConfigMixin):
    """What config.json holds as `quantization_config`: a description of the prepared network, and `flat`, the name of
    the weight that lies flat in the file, or None."""

    def __init__(self, **content: Any):
        vars(self).update(content, quant_method=QUANT_METHOD)


class PreparedNetworks(HfQuantizer):
    """What transformers asks about a prepared network. It trains, moves and converts as a float one does."""

    requires_calibration = True  # `from_pretrained(quantization_config=)` of a float network is refused

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Describe `model` in its configuration, which is saved next, and return its tensors.

        Raises:
            ValueError: A quantizer cannot be described.
            RuntimeError: `model` is inside a precision context.
        """
        config: Any = model.config
        if not any(True for _ in places(model)):  # a part of a prepared network, all of it float
            vars(config).pop("quantization_config", None)
            return None, {}
        network, state = stored_state(model)
        flat = _weight_to_flatten(network)
        if flat is not None:
            state[flat] = state[flat].flatten()
        config.quantization_config = Prepared(**describe(model), flat=flat)
        return state, {}

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **others: Any) -> None:
        """Read the quantizers' tensors, and expect one weight flat.

        Raises:
            ValueError: The description or the files are not those of this network.
        """
        content = vars(self.quantization_config)
        check_description(content)
        self.description = _for_model(content, model)
        self.tensors = _quantizers_in(checkpoint_files)
        self.flat: tuple[nn.Module, str, torch.Size] | None = None
        if (name := self.description.get("flat")) is not None:
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            weight = getattr(module, attribute)
            self.flat = module, attribute, weight.shape
            setattr(module, attribute, nn.Parameter(weight.flatten(), requires_grad=weight.requires_grad))
        patterns = model._keys_to_ignore_on_load_unexpected
        kind = list if patterns is None else type(patterns)
        model._keys_to_ignore_on_load_unexpected = kind([*(patterns or ()), QUANTIZERS])

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> nn.Module:
        """Prepare the loaded float network.

        Raises:
            ValueError: The network is spread over devices, or a quantizer's tensors do not fit.
        """
        devices = set(getattr(model, "hf_device_map", {}).values())
        if len(devices) > 1:
            raise ValueError(
                f"device_map spreads the network over {', '.join(map(str, devices))}, and the hooks of that would "
                "bypass the quantizers; expected one device: from_pretrained(...).to(device)"
            )
        if self.flat is not None:
            module, attribute, shape = self.flat
            weight = getattr(module, attribute)
            setattr(module, attribute, nn.Parameter(weight.detach().view(shape), requires_grad=weight.requires_grad))
        vars(model).pop("hf_quantizer", None)  # `place_as` gives the network one without tensors
        place_as(model, self.description)
        load_quantizers(model, self.description["slots"], self.tensors)
        model.is_quantized = False  # by which transformers would refuse float() and half()
        return model.eval()

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return unprepare(model).to(dtype)


register_quantization_config(QUANT_METHOD)(Prepared)
register_quantizer(QUANT_METHOD)(PreparedNetworks)


def adapt(module: Any) -> None:
    """Let `module` save its quantizers, and refuse the tensors of such a file where they would be taken as its own."""
    if getattr(module, "hf_quantizer", None) is None:
        module.hf_quantizer = PreparedNetworks(Prepared())
        module.register_load_state_dict_pre_hook(_refuse_stored)


def restore(module: Any) -> None:
    del module.hf_quantizer
    vars(module.config).pop("quantization_config", None)
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, wrapped in hooks.items() if wrapped.hook is _refuse_stored]:
        del hooks[key]


def _refuse_stored(module: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Refuse what `save_pretrained` stored: not strict, a state would be loaded in which hardly a name fits."""
    if any(name.startswith(f"{prefix}spequant.") for name in state):
        raise ValueError(
            f"the state is of a file that {type(module).__name__}.save_pretrained wrote, which has other names than "
            "the prepared network; load it by from_pretrained(folder), or into a network that is there by "
            "spequant.integrations.load_checkpoint(model, folder), as QATTrainer does"
        )


def _weight_to_flatten(network: Any) -> str | None:
    """Return the name of the first weight of a float network that has two axes or more and is not tied to another."""
    tied = getattr(network, "all_tied_weights_keys", {})
    taken = {*tied.keys(), *tied.values()}
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1:
            names.setdefault(id(parameter), []).append(name)
    return next((n[0] for n in names.values() if len(n) == 1 and n[0] not in taken), None)


def _for_model(content: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return the description of `model`: the whole, or its part where `model` is the base of the network described."""
    name = type(model).__name__
    if name == content["network"]:
        return dict(content)
    prefix = f"{model.base_model_prefix}."
    slots = {n.removeprefix(prefix): number for n, number in content["slots"].items() if n.startswith(prefix)}
    if model.base_model is not model or not slots:
        raise ValueError(
            f"config.json describes a quantized {content['network']}, which cannot become a {name}; load it by the "
            f"class of {content['network']}, or its base by AutoModel"
        )
    names = [n.removeprefix(prefix) for n in content["adapted"] if n.startswith(prefix)]
    flat = content.get("flat") or ""
    flat = flat.removeprefix(prefix) if flat.startswith(prefix) else None
    return {**content, "network": name, "slots": slots, "adapted": names, "flat": flat}


def _quantizers_in(files: Any) -> dict[str, Tensor]:
    """Return the tensors of quantizers in the files of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for file in files or ():
        if not str(file).endswith(".safetensors"):
            raise ValueError(f"{file} is no safetensors file; expected those that save_pretrained wrote")
        with safe_open(file, "pt") as content:
            names = [name for name in content.keys() if re.search(QUANTIZERS, name)]  # noqa: SIM118
            tensors |= {name: content.get_tensor(name) for name in names}
    if not tensors:
        raise ValueError(
            f"{files!r} hold no tensors of quantizers, although config.json describes some; expected the files that "
            "save_pretrained of the low-bit network wrote, by the name of their folder"
        )
    return tensors
