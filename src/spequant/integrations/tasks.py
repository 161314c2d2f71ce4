"""The task of a transformers network, as far as its class and its configuration say."""

from typing import Any

from torch import nn

from spequant.methods.tasks import (
    AnyTask,
    Classification,
    MultiLabel,
    Regression,
    Segmentation,
    SpanExtraction,
    TokenClassification,
)
from spequant.processes import innermost

PROBLEMS = {
    "regression": Regression,
    "single_label_classification": Classification,
    "multi_label_classification": MultiLabel,
}
"""{problem_type of a configuration: the task}"""
ONE_ANSWER = ("SequenceClassification", "ImageClassification", "AudioClassification", "VideoClassification")
"""Ends of the names of classes whose configuration may have a problem_type."""
HEADS = {
    "TokenClassification": TokenClassification,
    "QuestionAnswering": SpanExtraction,
    "MultipleChoice": Classification,
    "NextSentencePrediction": Classification,
}
"""{end of the name of a class: the task}"""
TASKS = "Classification, Regression, MultiLabel, TokenClassification, SpanExtraction, Segmentation"


def task_of(model: nn.Module) -> AnyTask:
    """Return the task that a network of transformers is for.

    Classification of whole inputs follows `config.problem_type`, and where that is None the number of labels, as in
    transformers: one is `Regression`, several are `Classification` (labels that are multi-hot need `MultiLabel`, or
    problem_type="multi_label_classification"). Otherwise the end of the class's name decides. Segmentation leaves out
    `config.semantic_loss_ignore_index`, and enlarges logits.

    Args:
        model: A network of transformers, float or prepared.

    Raises:
        ValueError: `model` does not say what it is for; the message has the tasks to choose from.
    """
    network = innermost(model)
    config: Any = getattr(network, "config", None)
    names = [kind.__name__ for kind in type(network).__mro__]
    if config is not None and _ends(names, ONE_ANSWER):
        problem = getattr(config, "problem_type", None)
        if problem is None:
            return Regression() if config.num_labels == 1 else Classification()
        if problem in PROBLEMS:
            return PROBLEMS[problem]()
        raise ValueError(f"config.problem_type is {problem!r}; expected {', '.join(map(repr, PROBLEMS))} or None")
    if config is not None and _ends(names, ("SemanticSegmentation",)):
        return Segmentation(ignored=getattr(config, "semantic_loss_ignore_index", 255), upsample=True)
    for head, task in HEADS.items():
        if _ends(names, (head,)):
            return task()
    raise ValueError(
        f"model is a {type(network).__name__}, whose name and configuration do not say what it is for; expected a "
        f"network For{'/'.join((*ONE_ANSWER, *HEADS, 'SemanticSegmentation'))}: give the method its task, one of "
        f"{TASKS}, or your own with logits(model, batch) and loss(logits, batch)"
    )


def _ends(names: list[str], heads: tuple[str, ...]) -> bool:
    return any(name.endswith(tuple(f"For{head}" for head in heads)) for name in names)
