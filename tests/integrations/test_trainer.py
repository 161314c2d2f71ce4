"""Hugging Face's Trainer with a method as its loss: gradients, logs, groups, evaluation, batches, refusals."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import spequant
from spequant.integrations import QATTrainer
from spequant.layers import act_quantizers
from spequant.methods import Losses, SPEQDistill, allow_float
from spequant.methods.tasks import Classification, SpanExtraction
from spequant.policies import Fixed
from spequant.quantizers import PACT, SAWB, LSQPlus, Quantizer
from support.trainers import (
    STILL,
    At,
    Questions,
    arguments,
    calibrated,
    copied,
    interrupt,
    little_garbage,
    padded,
    prepared,
    trainer,
)
from support.transformers_networks import LENGTH, SIZES, answering, inputs, tokens


@pytest.fixture(scope="module", autouse=True)
def quick_starts():
    with little_garbage():
        yield


# --- the loss ----------------------------------------------------------------------------------------------------


def classified(samples=8):
    batch = inputs(tokens(samples))
    return [{**{k: v[i] for k, v in batch.items()}, "labels": torch.tensor(i % 3)} for i in range(samples)]


def step_gradients(folder, model, method, rows, size, parts):
    """Return the gradients of one optimizer step over all rows, by name."""
    gradients = {}

    def store(network):
        gradients.update({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})

    changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    changes |= {"max_steps": 1, "max_grad_norm": 0.0}
    callbacks = [At("on_pre_optimizer_step", store)]
    trainer(folder, model, method, rows=rows, changes=changes, callbacks=callbacks).train()
    return gradients


@pytest.mark.parametrize("name", ["speq", "retrain", "distill", "labels"])
def test_four_batches_of_two_give_the_gradient_of_one_of_eight(name, tmp_path):
    task = Classification() if name == "labels" else SpanExtraction()
    rows = classified() if name == "labels" else Questions(8)
    config = transformers.BertConfig(**SIZES, **STILL, num_labels=3)
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(config).eval() if name == "labels" else answering(**STILL)
    model = prepared(network)

    def gradients(size, parts):
        methods = {"retrain": spequant.Retrain(task=task), "distill": spequant.Distill(network, task=task)}
        method = methods.get(name) or spequant.SPEQ(policy=Fixed(8), task=task)
        return step_gradients(tmp_path / f"{size}", copy.deepcopy(model), method, rows, size, parts)

    one, four = gradients(8, 1), gradients(2, 4)
    assert one.keys() == four.keys() and any("step" in n for n in one)
    a, b = (torch.cat([g[n].flatten() for n in one]) for g in (one, four))
    assert a.norm() > 0.1 and (a - b).norm() < 2e-6 * a.norm()
    if name == "speq":  # and it is the gradient of the method's total
        model.train()
        spequant.SPEQ(policy=Fixed(8), task=task)(model, tokens()).total.backward()
        expected = torch.cat([dict(model.named_parameters())[n].grad.flatten() for n in one])
        assert (a - expected).norm() < 2e-6 * a.norm()


def test_logs_have_the_means_of_both_parts_since_the_last_log(tmp_path):
    seen, method = [], spequant.SPEQ(task=SpanExtraction(), weight=3.0)

    def recorded(model, batch):
        seen.append(method(model, batch))
        return seen[-1]

    # 10 rows in parts of 2, 2 parts per step: the third step of each epoch has only one part
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 7}
    run = trainer(tmp_path, method=recorded, rows=Questions(10), changes=changes)
    run.train()
    logs = [row for row in run.state.log_history if "loss" in row]
    assert [row["step"] for row in logs] == [2, 4, 6] and len(seen) == 5 + 5 + 2
    for row in logs:
        assert row["loss"] == pytest.approx(row["task"] + 3 * row["distill"], rel=1e-5) and row["distill"] > 0
    assert logs[0]["task"] == pytest.approx(np.mean([float(x.task.detach()) for x in seen[:4]]), rel=1e-5)
    distills = [float(x.distill.detach()) for x in seen]
    expected = (distills[4] + np.mean(distills[5:7])) / 2  # of the third step and the fourth
    assert logs[1]["distill"] == pytest.approx(expected, rel=1e-5)


def test_noting_a_loss_does_not_wait_for_the_device(tmp_path):
    unreadable = torch.zeros((), device="meta")  # it has no value
    with pytest.raises(RuntimeError):
        float(unreadable)
    run = trainer(tmp_path, method=lambda model, batch: Losses(unreadable, unreadable, unreadable, unreadable))
    assert run.compute_loss(run.model.train(), tokens()) is unreadable
    assert run.sums.device.type == "meta"


def test_losses_of_an_interrupted_run_are_in_no_later_log(tmp_path):
    stop = At("on_step_end", interrupt, step=1)
    run = trainer(tmp_path, callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.sums is not None
    run.remove_callback(At)
    run.train()
    row = next(row for row in run.state.log_history if "loss" in row)
    assert row["loss"] == pytest.approx(row["task"] + row["distill"], rel=1e-5)


# --- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [LSQPlus(4), PACT(4)], ids=lambda act: type(act).__name__)
def test_evaluation_runs_only_the_student_and_outputs_are_those_of_the_trainer(act, tmp_path):
    model, rows, seen = prepared(act=act), Questions(10, seed=1, cut=True), []

    def metrics(evaluation):
        seen.append(evaluation)
        return {"starts": float((evaluation.predictions[0].argmax(-1) == evaluation.label_ids[0]).mean())}

    method = spequant.SPEQ(task=SpanExtraction())
    options = {"eval_dataset": rows, "data_collator": padded, "compute_metrics": metrics}
    run = trainer(tmp_path, model, method, **options)
    levels = [int(q.levels) for q in act_quantizers(model).values()]
    result = run.evaluate()
    assert (
        not model._forward_hooks
        and method.step == 0
        and levels == [int(q.levels) for q in act_quantizers(model).values()]
    )
    plain = transformers.Trainer(model, arguments(tmp_path), **options)
    expected = plain.evaluate()
    ours, theirs = seen
    for a, b in zip((*ours.predictions, *ours.label_ids), (*theirs.predictions, *theirs.label_ids), strict=True):
        assert np.array_equal(a, b) and len(a) == 10
    assert (ours.predictions[0] == -100).any()  # batches of several widths
    assert result["eval_starts"] == expected["eval_starts"]
    task, losses = SpanExtraction(), []
    for first in (0, 4, 8):
        batch = padded([rows[i] for i in range(first, min(10, first + 4))])
        with torch.no_grad():
            losses += [float(task.loss(task.logits(model.eval(), batch), batch))] * len(batch["input_ids"])
    assert result["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert abs(result["eval_loss"] - expected["eval_loss"]) > 1e-3  # the latter gives probability to padding
    blind = run.predict(Questions(10, seed=1, without=SpanExtraction.LABELS))
    assert blind.predictions[1].shape == (10, LENGTH) and blind.label_ids is None


class Plain(nn.Module):
    """Returns a tensor, or a tuple that begins with it."""

    def __init__(self, single):
        super().__init__()
        self.table, self.head, self.single = nn.Embedding(60, 8), nn.Linear(8, 3), single

    def forward(self, input_ids, labels=None):
        logits = self.head(self.table(input_ids).mean(1))
        return logits if self.single else (logits, input_ids)


class ById:
    """The task of `Plain`."""

    def logits(self, model, batch):
        output = model(batch["input_ids"])
        return output if isinstance(output, torch.Tensor) else output[0]

    def loss(self, logits, batch):
        return F.cross_entropy(logits, batch["labels"])


@pytest.mark.parametrize("single", [True, False])
def test_networks_that_return_tensors_are_evaluated_with_all_outputs(single, tmp_path):
    model = allow_float(Plain(single).eval())
    run = trainer(tmp_path, model, spequant.Retrain(task=ById()), rows=classified(), eval_dataset=classified(6))
    prediction = run.predict(run.eval_dataset)
    ids = torch.stack([row["input_ids"] for row in run.eval_dataset])
    with torch.no_grad():
        logits = model.head(model.table(ids).mean(1))
    expected = logits.numpy() if single else (logits.numpy(), ids.numpy())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(prediction.predictions, expected, strict=True))
    run.train()


def test_a_method_without_a_task_is_evaluated_by_the_networks_own_loss(tmp_path):
    model, speq = prepared(), spequant.SPEQ(task=SpanExtraction())
    run = trainer(tmp_path, model, lambda network, batch: speq(network, batch))
    expected = transformers.Trainer(model, arguments(tmp_path), eval_dataset=run.eval_dataset).evaluate()
    assert run.evaluate()["eval_loss"] == expected["eval_loss"]


# --- the optimizer -----------------------------------------------------------------------------------------------


def named_groups(run):
    names = {id(p): n for n, p in run.model.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in run.optimizer.param_groups]


@pytest.mark.parametrize("range_lr", [None, 1e-2])
def test_ranges_are_a_separate_group_and_the_other_groups_are_the_trainers(range_lr, tmp_path):
    model, rates = prepared(), []
    run = trainer(tmp_path, model, range_lr=range_lr)
    run.add_callback(At("on_step_begin", lambda m: rates.append([g["lr"] for g in run.optimizer.param_groups])))
    run.train()
    plain = transformers.Trainer(model, arguments(tmp_path), train_dataset=Questions())
    plain.create_optimizer()
    owners = {n for n, m in model.named_modules() if isinstance(m, Quantizer)}
    decayed, undecayed, ranges = named_groups(run)
    theirs = named_groups(plain)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert ranges == {n for n in trained if n.rpartition(".")[0] in owners} and len(ranges) > 20
    assert {n.rpartition(".")[2] for n in ranges} == {"step", "offset"}
    assert (decayed, undecayed) == (theirs[0] - ranges, theirs[1] - ranges)
    assert all("LayerNorm" in n or n.endswith("bias") for n in undecayed) and undecayed
    assert not any("LayerNorm" in n or n.endswith("bias") for n in decayed)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [0.1, 0.0, 0.0]
    top = range_lr or 1e-3
    for step, lrs in enumerate(rates):  # linear to 0
        assert lrs == pytest.approx([1e-3 * (6 - step) / 6] * 2 + [top * (6 - step) / 6])


def test_a_range_lr_of_zero_leaves_the_ranges(tmp_path):
    model = prepared()
    before = copied(model)
    trainer(tmp_path, model, range_lr=0.0).train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert moved and not any(n.rpartition(".")[2] in ("step", "offset") for n in moved)


def test_a_users_optimizer_is_used_unchanged_unless_it_belongs_to_another_network(tmp_path):
    model = prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run = trainer(tmp_path, model, optimizers=(optimizer, None))
    run.train()
    assert run.optimizer.optimizer is optimizer and len(optimizer.param_groups) == 1
    early = prepared(calibrate=False)
    optimizer = torch.optim.SGD(early.parameters(), lr=1e-2)
    trainer(tmp_path, calibrated(early), optimizers=(optimizer, None)).train()
    with pytest.raises(ValueError, match=r"optimizer holds \d+ parameters"):
        trainer(tmp_path, prepared(), optimizers=(optimizer, None)).train()


# --- data, precision ---------------------------------------------------------------------------------------------


def test_columns_that_the_method_needs_arrive(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [{**{k: v.tolist() for k, v in Questions()[i].items()}, "id": f"q{i}"} for i in range(24)]
    )
    seen, method = [], spequant.SPEQ(task=SpanExtraction())

    def recorded(model, batch):
        seen.append(set(batch))
        return method(model, batch)

    trainer(tmp_path, method=recorded, rows=rows, eval_dataset=rows, changes={"max_steps": 1}).train()
    assert seen == [{"input_ids", "attention_mask", "start_positions", "end_positions"}]


@pytest.mark.parametrize("name", ["attention_mask", "end_positions"])
def test_a_key_that_is_missing_is_named(name, tmp_path):
    run = trainer(tmp_path, rows=Questions(without=[name]), eval_dataset=Questions(without=[name]))
    has = ", ".join(run.train_dataset[0])
    with pytest.raises(ValueError, match=f"SpanExtraction .*'{name}' in the batch, .* {has}; "):
        run.train()
    if name == "attention_mask":
        with pytest.raises(ValueError, match=f"SpanExtraction .*'{name}' in the batch"):
            run.evaluate()


def test_a_task_for_other_batches_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"QuestionAnsweringModelOutput with .*start_logits"):
        trainer(tmp_path, method=spequant.SPEQ()).train()

    class Pairs(Classification):
        def logits(self, model, batch):
            return model(batch[0])

    with pytest.raises(ValueError, match=r"Pairs .* by number .*input_ids"):
        trainer(tmp_path, method=spequant.SPEQ(task=Pairs())).train()


def test_another_key_error_is_raised_unchanged(tmp_path):
    def method(model, batch):
        raise KeyError("input_ids")

    with pytest.raises(KeyError, match="input_ids"):
        trainer(tmp_path, method=method).train()


def test_bf16_is_the_trainers_autocast_and_quantization_stays_fp32(tmp_path):
    model, kinds, wrong, teacher_kinds = prepared(), set(), [], set()

    def look(q, args, out):
        kinds.add(args[0].dtype)
        if not torch.equal(out, q.quantized(args[0].float()).to(args[0].dtype)):
            wrong.append(q.name)

    method = SPEQDistill(spequant.SPEQ(task=SpanExtraction()), spequant.Distill(answering(), task=SpanExtraction()))
    teacher = method.distill.teacher.bert.encoder.layer[0].intermediate.dense
    teacher.register_forward_hook(lambda layer, args, out: teacher_kinds.add(out.dtype))
    run = trainer(tmp_path, model, method, changes={"bf16": True, "max_steps": 2})
    for q in act_quantizers(model).values():
        q.register_forward_hook(look)
    run.train()
    assert kinds == {torch.float32, torch.bfloat16} and not wrong and teacher_kinds == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rows = [row for row in run.state.log_history if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(rows[0]["task"] + rows[0]["distill"], rel=1e-5)
    assert np.isfinite(run.evaluate()["eval_loss"])


# --- what is refused ---------------------------------------------------------------------------------------------


def test_an_object_that_is_no_method_is_refused(tmp_path):
    with pytest.raises(TypeError, match="argument: 'method'"):
        QATTrainer(prepared(), arguments(tmp_path))  # type: ignore[call-arg]
    for method in ("speq", None, spequant.SPEQ):
        with pytest.raises(TypeError, match=r"method is .*\(model, batch\) -> Losses"):
            QATTrainer(prepared(), arguments(tmp_path), method=method)
    with pytest.raises(TypeError, match=r"method returned a Tensor; expected spequant\.methods\.Losses"):
        trainer(tmp_path, method=lambda model, batch: model(**batch).loss).train()

    class Unsaved(spequant.SPEQ):
        def state_dict(self):
            return {"step": torch.tensor(0)}

    with pytest.raises(TypeError, match=r"method\.state_dict\(\) .*JSON"):
        trainer(tmp_path, method=Unsaved())


@pytest.mark.parametrize("name", ["SPEQ", "SPEQDistill"])
def test_a_network_without_activation_quantizers_is_refused(name, tmp_path):
    speq = spequant.SPEQ(task=SpanExtraction())
    method = speq if name == "SPEQ" else SPEQDistill(speq, spequant.Distill(answering(), task=SpanExtraction()))
    for network in (answering(), spequant.prepare(answering(), weight=SAWB(4), act=None)):
        message = rf"model is a BertForQuestionAnswering without .*{name} .*spequant\.prepare.*calibrate"
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, network, method)
    with pytest.raises(RuntimeError, match=r"no range yet: .*spequant\.calibrate"):
        trainer(tmp_path, prepared(calibrate=False), method).train()
    trainer(tmp_path, prepared(), method, changes={"max_steps": 1}).train()


def test_a_float_network_is_trained_where_allow_float_was_called(tmp_path):
    task, network = SpanExtraction(), answering()
    for method in (spequant.Retrain(task=task), spequant.Distill(network, task=task)):
        with pytest.raises(ValueError, match="allow_float"):
            trainer(tmp_path, answering(), method, changes={"max_steps": 2}).train()
        run = trainer(tmp_path, allow_float(answering()), method, changes={"max_steps": 2})
        run.train()
        assert len(run.optimizer.param_groups) == 2 and "distill" in run.state.log_history[0]


def test_settings_that_would_be_ignored_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="range_lr is -1; expected"):
        trainer(tmp_path, range_lr=-1)
    optimizer = torch.optim.SGD(prepared().parameters(), lr=1e-2)
    with pytest.raises(ValueError, match=r"range_lr is 0\.01 and optimizers"):
        trainer(tmp_path, range_lr=0.01, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"range_lr is 0\.01, .*AdamW .*expected None"):
        trainer(tmp_path, answering(), spequant.Retrain(task=SpanExtraction()), range_lr=0.01).train()
    with pytest.raises(ValueError, match="compute_loss_func is given"):
        trainer(tmp_path, compute_loss_func=lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=r"args\.label_smoothing_factor is given"):
        trainer(tmp_path, changes={"label_smoothing_factor": 0.1})
    with pytest.raises(TypeError, match="'methods'"):
        trainer(tmp_path, methods=1)
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"args see 2 GPUs, .*torchrun"):
        QATTrainer(prepared(), args, method=spequant.SPEQ(task=SpanExtraction()))
    create = QATTrainer.create_accelerator_and_postprocess
    sharded = lambda self: (create(self), setattr(self, "is_fsdp_enabled", True))  # noqa: E731
    monkeypatch.setattr(QATTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match=r"args\.fsdp shards"):
        trainer(tmp_path)
