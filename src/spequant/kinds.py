"""The kinds of layers that the library quantizes, and which layer of a float network is its head."""

from torch import nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
EMBEDDINGS = (nn.Embedding,)
"""Quantized in their weight alone: what they read are indices."""
LEFT_FLOAT = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag)
"""Modules of torch with weights that the library does not quantize, and says so."""


def head_of(network: nn.Module) -> str:
    """The name of the head of the float `network`: the last of its `QUANTIZABLE` layers, in the order of
    `named_modules`. Its input is the network's penultimate feature. ValueError: there is none."""
    layers = [name for name, module in network.named_modules() if name and isinstance(module, QUANTIZABLE)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no linear layer or convolution inside; expected a network with a head"
        )
    return layers[-1]
