"""spequant's methods inside other libraries' training loops. Thin: what those loops do is not done again here."""

from spequant.integrations.trainer import QATTrainer, load_checkpoint

__all__ = ["QATTrainer", "load_checkpoint"]
