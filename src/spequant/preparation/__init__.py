"""From a float network to a prepared one: which layers, inputs and additions are quantized, and by which quantizer."""
