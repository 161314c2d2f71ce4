"""Packed files whose content is changed and whose digest is right: hostile, not damaged."""

import json

from safetensors import safe_open
from safetensors.torch import save_file

from spequant.deploy.packed_file import KEY, content_digest


def rewritten(path, target, change):
    """The file with `change(content, tensors)` made and its digest computed anew: hostile, not damaged."""
    with safe_open(path, "pt") as file:
        head = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = {k: v for k, v in head.items() if k not in ("format", "digest")}
    change(content, tensors)
    head = {"format": head["format"], "digest": content_digest(tensors, content), **content}
    save_file(tensors, target, {KEY: json.dumps(head)})


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(content, tensors):
        for key in keys:
            content = content[key]
        content[last] = value

    return change
