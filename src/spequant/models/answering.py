"""Networks of transformers for question answering, their configurations and tokenizers.

A name is "transformers/" followed by a local folder or by a name on the Hugging Face hub.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from spequant.extras import needs
from spequant.names import some_of
from spequant.networks import head_of

TRANSFORMERS = "transformers/"


def make_answering(name: str, *, pretrained: bool = False, new_head: bool = False) -> nn.Module:
    """Return the float network of that name, in train mode.

    Args:
        name: folder or name on the hub, with or without `TRANSFORMERS` before it.
        pretrained: True loads its weights; False needs only its configuration and gives random weights.
        new_head: the weights may lack the last layer, which is then random. This is for encoders that have not been
            trained on questions.

    Raises:
        ValueError: `name` is neither a folder nor available from the hub, it is not a network for question answering,
            or its weights lack more than a head.
    """
    source = name.removeprefix(TRANSFORMERS)
    auto = _transformers().AutoModelForQuestionAnswering
    if not pretrained:
        return answering_from(configuration(name))
    try:
        network, report = auto.from_pretrained(source, output_loading_info=True, dtype="float32")
    except Exception as error:  # transformers, the hub's client and safetensors raise many types of errors
        raise _absent(name, "a network for question answering", error) from error
    missing = sorted(report["missing_keys"])
    head = f"{head_of(network)}."
    if missing and not (new_head and all(key.startswith(head) for key in missing)):
        advice = f" (--network.new-head for a random {head[:-1]})" if not new_head else ""
        raise ValueError(f"network.name is {name!r}, whose weights lack {some_of(missing)}; expected all{advice}")
    return network.train()


def configuration(name: str) -> Any:
    """Return transformers' configuration object of `name`; a ValueError says that it has none."""
    try:
        return _transformers().AutoConfig.from_pretrained(name.removeprefix(TRANSFORMERS))
    except Exception as error:
        raise _absent(name, "config.json", error) from error


def configuration_dict(network: nn.Module) -> dict[str, Any]:
    """Return the configuration of a network of transformers as a dictionary for JSON, without the path of its file."""
    config: Any = network.config
    return {name: value for name, value in json.loads(config.to_json_string()).items() if name != "_name_or_path"}


def transformers_configuration(settings: dict[str, Any]) -> Any:
    """Return the configuration object of a dictionary of `configuration_dict`; a ValueError says that it is damaged."""
    try:
        return _transformers().AutoConfig.for_model(**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the network's configuration cannot be read ({error}); expected transformers'") from error


def answering_from(config: Any) -> nn.Module:
    """Return a network for question answering of that configuration, with random weights, in train mode.

    Raises:
        ValueError: transformers has no such network for this kind of configuration.
    """
    return _transformers().AutoModelForQuestionAnswering.from_config(config, dtype="float32").train()


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of `name`; a ValueError says that it has none."""
    try:
        return _transformers().AutoTokenizer.from_pretrained(name.removeprefix(TRANSFORMERS))
    except Exception as error:
        raise _absent(name, "a tokenizer", error) from error


def _transformers() -> Any:
    return needs("transformers", "text")


def _absent(name: str, what: str, error: Exception) -> ValueError:
    source = Path(name.removeprefix(TRANSFORMERS))
    where = "a folder that lacks it" if source.is_dir() else "no folder here, and not available from the hub"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"network.name is {name!r}: expected {what}; {where} ({first})")
