"""The recipes on SQuAD 1.1, for `catalogue`."""

from dataclasses import replace
from pathlib import Path

from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.training import Training
from spequant.app.recipes.variants import FLOAT_QUANTIZATION, RETRAIN, distill, retrain, speq_distill
from spequant.data import Squad
from spequant.methods import SPEQ
from spequant.quantizers import LSQ, LSQPlus
from spequant.train import AdamW


def squad_bert_float() -> Recipe:
    """Float BERT on SQuAD 1.1, 2 epochs, from an encoder (--network.name transformers/NAME or transformers/FOLDER)."""
    return Recipe(
        name="squad-bert-float",
        data=Squad(held_out=0),
        network=Network(name="transformers/bert-base-uncased", pretrained=True, new_head=True),
        quant=FLOAT_QUANTIZATION,
        method=RETRAIN,
        train=Training(epochs=2, batch_size=16, optimizer=AdamW(), lr=5e-5, weight_decay=0.01, clip_norm=1.0),
    )


def _squad(bits: int) -> Recipe:
    """From that float run, by the stand-in for the paper's schedule. Weights by LSQ, one range per channel, since
    rows of a BERT have outliers; activations by LSQ+, since GELU's output needs a zero point."""
    floating = squad_bert_float()
    return replace(
        floating,
        name=f"squad-bert-w{bits}a{bits}-speq",
        network=Network(name="transformers/bert-base-uncased", weights=Path("runs/squad-bert-float")),
        quant=Quantization(
            weight=LSQ.Settings(),
            weight_bits=bits,
            act=LSQPlus.Settings(),
            act_bits=bits,
            residual_bits=None,
            product_bits=8,
            per_channel=True,
        ),
        method=SPEQ.Settings(),
        train=replace(floating.train, epochs=3),
    )


def squad_bert_w3a3_speq() -> Recipe:
    """W3A3 BERT on SQuAD 1.1 by SPEQ, 3 epochs, from the run squad-bert-float (paper: F1 85.1). Not reproduced yet."""
    return _squad(3)


def squad_bert_w3a3_retrain() -> Recipe:
    """W3A3 BERT on SQuAD 1.1 without a teacher (Retrain), 3 epochs, from the run squad-bert-float (paper: F1 81.4). Not
    reproduced yet."""
    return retrain(_squad(3))


def squad_bert_w3a3_distill() -> Recipe:
    """W3A3 BERT on SQuAD 1.1 taught by the float network, 3 epochs, from the run squad-bert-float. Not reproduced
    yet."""
    return distill(_squad(3))


def squad_bert_w3a3_speq_distill() -> Recipe:
    """W3A3 BERT on SQuAD 1.1 by SPEQ and taught by the float network, 3 epochs, from the run squad-bert-float. Not
    reproduced yet."""
    return speq_distill(_squad(3))


def squad_bert_w4a4_speq() -> Recipe:
    """W4A4 BERT on SQuAD 1.1 by SPEQ, 3 epochs, from the run squad-bert-float; not a row of the paper. Not reproduced
    yet."""
    return _squad(4)


def squad_bert_w4a4_retrain() -> Recipe:
    """W4A4 BERT on SQuAD 1.1 without a teacher (Retrain), 3 epochs, from the run squad-bert-float. Not reproduced
    yet."""
    return retrain(_squad(4))


def squad_bert_w4a4_distill() -> Recipe:
    """W4A4 BERT on SQuAD 1.1 taught by the float network, 3 epochs, from the run squad-bert-float. Not reproduced
    yet."""
    return distill(_squad(4))


def squad_bert_w4a4_speq_distill() -> Recipe:
    """W4A4 BERT on SQuAD 1.1 by SPEQ and taught by the float network, 3 epochs, from the run squad-bert-float. Not
    reproduced yet."""
    return speq_distill(_squad(4))


SQUAD_RECIPES = (
    squad_bert_float,
    squad_bert_w3a3_speq,
    squad_bert_w3a3_retrain,
    squad_bert_w3a3_distill,
    squad_bert_w3a3_speq_distill,
    squad_bert_w4a4_speq,
    squad_bert_w4a4_retrain,
    squad_bert_w4a4_distill,
    squad_bert_w4a4_speq_distill,
)
