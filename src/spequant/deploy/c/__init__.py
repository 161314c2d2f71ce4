"""Integer programs as C: memory (`tensors.py`), exact rounding (`rounding.py`), weights and their layers (`layers.py`),
what is done in which order (`emitter.py`), the source text (`text.py`), and the host's compiler (`engine.py`). The
kernels are C files of their own; a program has those that it uses."""
