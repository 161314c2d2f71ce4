"""Networks for question answering and their tokenizers, by "transformers/" and a local folder or the hub's name."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from spequant.extras import needs
from spequant.names import some_of
from spequant.networks import head_of

TRANSFORMERS = "transformers/"


def make_answering(name: str, *, pretrained: bool = False, new_head: bool = False) -> nn.Module:
    """The float network of `name`, without or with TRANSFORMERS before it, in train mode.

    pretrained: its weights; else random ones, of its configuration alone. new_head: the last layer's may be missing
    and are then random: an encoder that nobody has trained on questions yet.

    ValueError: neither a folder nor to be had from the hub, no network for question answering, or weights that lack
    more than a head.
    """
    source = name.removeprefix(TRANSFORMERS)
    auto = _transformers().AutoModelForQuestionAnswering
    if not pretrained:
        return network_of(configuration(name))
    try:
        network, found = auto.from_pretrained(source, output_loading_info=True, dtype="float32")
    except Exception as error:  # transformers, the hub's client and safetensors raise a dozen kinds
        raise _absent(name, "a network for question answering", error) from error
    missing = sorted(found["missing_keys"])
    head = f"{head_of(network)}."
    if missing and not (new_head and all(key.startswith(head) for key in missing)):
        advice = f" (--network.new-head for a random {head[:-1]})" if not new_head else ""
        raise ValueError(f"network.name is {name!r}, whose weights lack {some_of(missing)}; expected all{advice}")
    return network.train()


def configuration(name: str) -> Any:
    """transformers' configuration of `name`. ValueError: there is none."""
    try:
        return _transformers().AutoConfig.from_pretrained(name.removeprefix(TRANSFORMERS))
    except Exception as error:
        raise _absent(name, "config.json", error) from error


def configuration_told(network: nn.Module) -> dict[str, Any]:
    """The configuration of a network of transformers as JSON; not where it was read."""
    config: Any = network.config
    return {name: value for name, value in json.loads(config.to_json_string()).items() if name != "_name_or_path"}


def configuration_from(told: dict[str, Any]) -> Any:
    """The configuration that `configuration_told` told. ValueError: it is damaged."""
    try:
        return _transformers().AutoConfig.for_model(**told)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the network's configuration cannot be read ({error}); expected transformers'") from error


def network_of(config: Any) -> nn.Module:
    """A network for question answering with random weights. ValueError: there is none of this kind."""
    return _transformers().AutoModelForQuestionAnswering.from_config(config, dtype="float32").train()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of `name`. ValueError: there is none."""
    try:
        return _transformers().AutoTokenizer.from_pretrained(name.removeprefix(TRANSFORMERS))
    except Exception as error:
        raise _absent(name, "a tokenizer", error) from error


def _transformers() -> Any:
    return needs("transformers", "text")


def _absent(name: str, what: str, error: Exception) -> ValueError:
    source = Path(name.removeprefix(TRANSFORMERS))
    where = "a folder that lacks it" if source.is_dir() else "no folder here, and not to be had from the hub"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"network.name is {name!r}: expected {what}; {where} ({first})")
