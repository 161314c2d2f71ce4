"""spequant's methods inside other libraries' training loops. Nothing that those loops do is repeated here."""

from spequant.integrations.trainer import QATTrainer, load_checkpoint

__all__ = ["QATTrainer", "load_checkpoint"]
