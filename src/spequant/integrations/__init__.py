"""Hugging Face's transformers: training by its `Trainer`, and low-bit networks saved and loaded as any others.

Importing this package is what lets `from_pretrained` and `pipeline` load networks that were prepared and saved
(`preparation/adapters/pretrained.py`). Nothing that transformers does is repeated here.
"""

from typing import TYPE_CHECKING, Any

from spequant.extras import needs

needs("transformers", "text")

from spequant.integrations.checkpoints import load_checkpoint  # noqa: E402
from spequant.integrations.tasks import task_of  # noqa: E402
from spequant.preparation.adapters import pretrained as pretrained  # noqa: E402

if TYPE_CHECKING:
    from spequant.integrations.trainer import QATTrainer

__all__ = ["QATTrainer", "load_checkpoint", "task_of"]


def __getattr__(name: str) -> Any:
    """Import the Trainer where it is asked for: transformers' own imports seconds of what only training needs."""
    if name != "QATTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spequant.integrations.trainer import QATTrainer

    return QATTrainer
