"""Checkpoints of the Trainer in the folders that transformers reads: the best, resumed runs, older forms."""

import pytest
import torch
import transformers
from safetensors.torch import save_file

import spequant
from spequant.integrations import load_checkpoint
from spequant.methods.tasks import SpanExtraction
from spequant.quantizers import LSQPlus
from support.trainers import arguments, equal_states, little_garbage, prepared, trainer
from support.transformers_networks import answering, inputs, tokens


@pytest.fixture(scope="module", autouse=True)
def quick_starts():
    with little_garbage():
        yield


@pytest.mark.slow
def test_a_folder_of_older_form_is_loaded(tmp_path):
    """One tensor for each name of the prepared network, as versions before wrote them."""
    model = prepared()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    other = prepared(calibrate=False)
    load_checkpoint(other, tmp_path)
    assert equal_states(other.state_dict(), state)


@pytest.mark.slow
def test_each_checkpoint_is_a_folder_of_transformers(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 3}
    run = trainer(tmp_path, changes=changes)
    run.train()
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "checkpoint-6")
    batch = inputs(tokens())
    with torch.no_grad():
        assert torch.equal(again(**batch).start_logits, run.model.eval()(**batch).start_logits)
    resumed = trainer(tmp_path, again, changes=changes)  # a loaded network trains as one that was prepared
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert equal_states(resumed.model.state_dict(), run.model.state_dict())


@pytest.mark.slow
def test_transformers_own_trainer_saves_and_refuses_to_resume_past_the_names(tmp_path):
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    plain = transformers.Trainer(
        prepared(), arguments(tmp_path, **changes), train_dataset=trainer(tmp_path).train_dataset
    )
    plain.train()
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "checkpoint-2")
    assert equal_states(again.state_dict(), plain.model.state_dict())
    with pytest.raises(ValueError, match="QATTrainer"):
        plain.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.slow
def test_a_float_network_is_saved_and_loaded(tmp_path):
    from spequant.methods import allow_float

    model = allow_float(answering())
    run = trainer(tmp_path, model, spequant.Retrain(task=SpanExtraction()))
    run.save_model()
    other = answering()
    with torch.no_grad():
        other.qa_outputs.weight.zero_()
    load_checkpoint(other, tmp_path)
    assert equal_states(other.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"model\.safetensors .*Missing key"):
        load_checkpoint(prepared(), tmp_path)


@pytest.mark.slow
def test_another_network_is_named(tmp_path):
    trainer(tmp_path).save_model()
    with pytest.raises(ValueError, match=r"model is a Linear, .*model\.safetensors"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match=r"4 bits, .* 5"):
        load_checkpoint(prepared(act=LSQPlus(5)), tmp_path)
