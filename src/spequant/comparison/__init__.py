"""Arms of an experiment compared, as figures (`arms.py`) and as pictures (`pictures.py`)."""

from spequant.comparison.arms import Arm, Comparison, compare, deviation, half_width, paired, students_t

__all__ = ["Arm", "Comparison", "compare", "deviation", "half_width", "paired", "students_t"]
