"""What one of several processes trains with Hugging Face's Trainer; rank 0 writes it as JSON.

python trainer_rank.py FOLDER        RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment; without them: alone
"""

import json
import os
import sys
from pathlib import Path

import torch

import spequant
from spequant.methods.tasks import SpanExtraction
from spequant.processes import gathered
from support.trainers import STILL, Questions, prepared, trainer


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(folder: Path, make, changes: dict) -> dict:
    """Of a run, and of one resumed from its middle."""
    changes = {"max_grad_norm": 0.0, "optim": "sgd", "save_strategy": "steps", "save_steps": 3, **changes}
    model = prepared(**STILL)
    before = flat(model)
    run = trainer(folder, model, make(task=SpanExtraction()), changes=changes)
    run.train()
    again = trainer(folder, prepared(calibrate=False, **STILL), make(task=SpanExtraction()), changes=changes)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {
        "wrapped": type(run.model_wrapped).__name__,
        "moved": (flat(model) - before).tolist(),
        "equal": all(torch.equal(flat(model), other) for other in gathered(flat(model))),
        "resumed": all(gathered(torch.equal(flat(model), flat(again.model)))),
        "logs": [row for row in run.state.log_history if "loss" in row],
        "loss": run.evaluate(Questions(16))["eval_loss"],
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    size = {"per_device_train_batch_size": 8 // world}
    found = {
        "retrain": trained(folder / "retrain", spequant.Retrain, size),
        "speq": trained(folder / "speq", spequant.SPEQ, size),
    }
    if world == 1:
        compiled = {**size, "torch_compile_backend": "eager"}
        found["compiled"] = trained(folder / "compiled", spequant.SPEQ, compiled)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
