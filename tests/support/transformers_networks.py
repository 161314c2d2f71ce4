"""Small networks for question answering, random weights, made without a hub; and batches for them."""

import torch
import transformers

WORDS, LENGTH = 60, 12
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
DISTIL = {"vocab_size": WORDS, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "max_position_embeddings": 64}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTIL),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=8),
    "albert": lambda: transformers.AlbertConfig(**SIZES, embedding_size=8),
}


def answering(kind: str = "bert", attention: str = "sdpa", **changes):
    """A network in eval mode."""
    config = CONFIGS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    network = transformers.AutoModelForQuestionAnswering.from_config(config, attn_implementation=attention)
    for parameter in network.parameters():  # as initialised, most weights are too small to tell networks apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def tokens(samples: int = 8, length: int = LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with padding of several lengths, and where the answers are."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, length + 1, (samples,), generator=generator)
    lengths[0] = length
    ends = (torch.rand(samples, 2, generator=generator) * lengths[:, None]).long().sort(dim=1).values
    return {
        "input_ids": torch.randint(3, WORDS, (samples, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
        "start_positions": ends[:, 0],
        "end_positions": ends[:, 1],
    }


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the network takes of it."""
    return {k: v for k, v in batch.items() if not k.endswith("positions")}
