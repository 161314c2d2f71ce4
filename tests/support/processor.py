"""How runs are trained that engines shall answer as, on the processor of this machine. Importing it tries an engine."""

from support.clipping import clips

END_BITS = ["--quant.end-bits", "7"] if clips() else []
"""What a run is trained with, so that engines answer as the twin on this processor, too."""
