"""Networks of transformers, tiny, random weights, made without a hub: one of each head; and their inputs."""

import torch
import transformers
from torch import nn

WORDS, LENGTH = 60, 12
BERT = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
DISTIL = {"vocab_size": WORDS, "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "max_position_embeddings": 64}
GPT = {"vocab_size": WORDS, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "pad_token_id": 0}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
VIT = {
    **{name: BERT[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")},
    **{"image_size": 16, "patch_size": 4, "num_labels": 3},
}
NFNET = {"architecture": "test_nfnet", "num_labels": 3}


class PlainConfig(transformers.PretrainedConfig):
    model_type = "spequant-plain"


class Residual(transformers.PreTrainedModel):
    """A network of a user: convolutions, whose additions a tracer finds, and torch's encoder layer, whose it adapts."""

    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 3)
        self.post_init()

    def forward(self, pixel_values):
        x = self.stem(pixel_values)
        return self.head((x + self.branch(x)).relu().mean((2, 3)))


class Encoder(transformers.PreTrainedModel):
    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(WORDS, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)
        self.post_init()

    def forward(self, input_ids):
        return self.head(self.layer(self.table(input_ids)).mean(1))


NETWORKS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)),
    "distilbert": lambda: transformers.DistilBertForTokenClassification(transformers.DistilBertConfig(**DISTIL)),
    "roberta": lambda: transformers.RobertaForQuestionAnswering(transformers.RobertaConfig(**BERT | {"num_labels": 2})),
    "albert": lambda: transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(**BERT, embedding_size=8, inner_group_num=2)
    ),
    "bert, tied head": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT, num_labels=3)),
    "t5": lambda: transformers.T5ForSequenceClassification(
        transformers.T5Config(**T5, num_labels=3, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0)
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)),
    "beit": lambda: transformers.BeitForImageClassification(
        transformers.BeitConfig(**VIT, use_relative_position_bias=True)
    ),
    "swin": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4, num_labels=3
        )
    ),
    "convnext": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, num_labels=3)
    ),
    "timm": lambda: transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig(**NFNET)),
    "residual": lambda: Residual(PlainConfig()),
    "encoder": lambda: Encoder(PlainConfig()),
}
IMAGES = ("vit", "beit", "swin", "convnext", "timm", "residual")


def made(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The network, in eval mode, with weights large enough that two of them answer differently."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    for parameter in {id(p): p for p in network.parameters()}.values():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.1, 1.0)
    return network.eval()


def inputs_of(name: str, samples: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name in IMAGES:
        side = 32 if name == "timm" else 16
        return {"pixel_values": torch.randn(samples, 3, side, side, generator=generator)}
    ids = torch.randint(3, WORDS, (samples, LENGTH), generator=generator)
    if name == "encoder":
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    if name == "t5":
        ids[:, -1] = 1
    else:
        ids[::2, -3:], mask[::2, -3:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(model, batch) -> list[torch.Tensor]:
    """All floating-point tensors that the network returns, in their order."""
    out = model(**batch)
    return [t for t in ([out] if isinstance(out, torch.Tensor) else out.values()) if isinstance(t, torch.Tensor)]
