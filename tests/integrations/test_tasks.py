"""The task that a network of transformers is for, and values in place of classes trained with the Trainer."""

import pytest
import torch
import transformers
from torch import nn

import spequant
from spequant.integrations import load_checkpoint, task_of
from spequant.methods.tasks import (
    Classification,
    MultiLabel,
    Regression,
    Segmentation,
    SpanExtraction,
    TokenClassification,
)
from spequant.quantizers import LSQ, LSQPlus, percentile
from spequant.train import evaluate
from support.pretrained_networks import BERT, inputs_of
from support.trainers import little_garbage, trainer


class Config:
    def __init__(self, **values):
        vars(self).update(values)


def network(name, **config):
    """A network of that class, of which only its name and its configuration are of matter."""
    made = type(name, (nn.Module,), {})()
    made.config = Config(**config)
    return made


ONE = {"num_labels": 1, "problem_type": None}
SEVERAL = {"num_labels": 3, "problem_type": None}


@pytest.mark.parametrize(
    ("name", "config", "task"),
    [
        ("BertForSequenceClassification", SEVERAL, Classification),
        ("BertForSequenceClassification", ONE, Regression),
        ("ViTForImageClassification", {"num_labels": 1, "problem_type": "single_label_classification"}, Classification),
        ("ViTForImageClassification", {"num_labels": 3, "problem_type": "regression"}, Regression),
        ("ASTForAudioClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}, MultiLabel),
        ("BertForTokenClassification", ONE, TokenClassification),
        ("BertForQuestionAnswering", SEVERAL, SpanExtraction),
        ("BertForMultipleChoice", SEVERAL, Classification),
        ("SegformerForSemanticSegmentation", {"semantic_loss_ignore_index": 7}, Segmentation),
    ],
)
def test_the_class_and_the_configuration_say_the_task(name, config, task):
    model = network(name, **config)
    assert type(task_of(model)) is task
    assert type(task_of(nn.DataParallel(model))) is task
    assert type(task_of(type("Own", (type(model),), {"config": model.config})())) is task


def test_segmentation_leaves_out_what_the_configuration_says_and_enlarges():
    task = task_of(network("SegformerForSemanticSegmentation", semantic_loss_ignore_index=7))
    assert task.ignored == 7 and task.upsample


def test_what_does_not_say_it_is_named_with_what_to_give():
    for name in ("BertForMaskedLM", "DetrForObjectDetection", "BertModel", "BertForVisualQuestionAnswering"):
        with pytest.raises(ValueError, match=f"model is a {name}, .*MultiLabel"):
            task_of(network(name, **SEVERAL))
    with pytest.raises(ValueError, match="model is a Linear"):
        task_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'regresion'; expected 'regression'"):
        task_of(network("BertForSequenceClassification", num_labels=1, problem_type="regresion"))


@pytest.mark.slow
def test_values_are_learned_saved_and_loaded(tmp_path):
    """The share of the first word's number: more than the mean is learned, and by SPEQ's teacher, too."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**BERT | {"num_labels": 1}, hidden_dropout_prob=0.0)
    batch = inputs_of("bert", 64)
    values = batch["input_ids"][:, 1].float() / 30 - 1
    rows = [{**{name: t[i] for name, t in batch.items()}, "labels": values[i]} for i in range(64)]
    model = spequant.prepare(
        transformers.BertForSequenceClassification(config), weight=LSQ(4), act=LSQPlus(4), products=8, residual=None
    )
    spequant.calibrate(model, [batch], samples=64, rule=percentile(99.9))
    task = task_of(model)
    assert type(task) is Regression
    changes = {"max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 32, "logging_steps": 20}
    changes |= {"eval_strategy": "steps", "eval_steps": 30, "save_strategy": "steps", "save_steps": 30}
    with little_garbage():
        run = trainer(tmp_path, model, spequant.SPEQ(task=task), rows=rows, changes=changes, eval_dataset=rows)
        run.train()
    figures = evaluate(model, [{**batch, "labels": values}], task).figures
    assert figures["r2"] > 50
    assert run.state.log_history[-2]["eval_loss"] < float(values.var())
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-60")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        assert torch.equal(again(**batch).logits, expected) and expected.shape == (64, 1)
    load_checkpoint(again, tmp_path / "checkpoint-30")
    with torch.no_grad():
        assert not torch.equal(again(**batch).logits, expected)
