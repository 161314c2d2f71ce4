"""`spequant bench train`: what it prints and writes, each row, memory counted; not how fast anything is."""

import json

import pytest
import torch
from torch import nn

from spequant.bench.memory import peak_bytes, peak_of
from spequant.bench.peers import brevitas, torch_ao
from spequant.bench.subjects import make_subject
from spequant.bench.train import KINDS, BenchTrain, Row, bench_train, ready
from spequant.cli import main
from spequant.methods import Retrain

FIELDS = {"name", "step_ms", "ratio_to_float", "peak_mib", "graphs", "threads", "device", "dtype"}
TINY = ["--network", "resnet8", "--batch", "4", "--image", "8", "--rounds", "2", "--threads", "1", "--device", "cpu"]


def test_rows_are_printed_and_written(tmp_path, capsys):
    path = tmp_path / "rows.json"
    main(["bench", "train", *TINY, "--rows", "speq", "--steps", "2", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert list(rows) == ["float", "speq", "input"]
    for name in ("float", "speq"):
        row = rows[name]
        assert set(row) == FIELDS and row["step_ms"] > 0 and row["peak_mib"] > 0
        assert (row["threads"], row["device"], row["dtype"]) == (1, "cpu", "bf16")
    assert rows["float"]["graphs"] == rows["speq"]["graphs"] == 1
    assert rows["float"]["ratio_to_float"] == 1
    printed = capsys.readouterr().out
    assert "speq" in printed and "ms a batch" in printed and "resnet8, W2A2, batch 4, bf16, cpu" in printed


def test_processes_at_once(tmp_path, capsys):
    path = tmp_path / "rows.json"
    main(["bench", "train", *TINY, "--rows", "float", "--no-compile", "--at-once", "2", "--json", str(path)])
    one, two, _ = json.loads(path.read_text())
    assert (one["name"], two["name"]) == ("float", "float x2") and set(two) == FIELDS
    assert two["peak_mib"] == pytest.approx(2 * one["peak_mib"], abs=0.2) and two["step_ms"] > 0
    gain = 2 * one["step_ms"] / two["step_ms"]
    assert f"float: 2 at once take {gain:.2f} times the steps a second of one" in capsys.readouterr().out


def test_a_process_that_dies_is_named():
    settings = BenchTrain("resnet8", batch=2, image=8, rounds=1, threads=1, device="cpu", compile=False)
    row = Row("float", settings, 2)
    assert row.error is None and row.ask(3) > 0
    row.workers[1].process.kill()
    with pytest.raises(
        ChildProcessError, match="row 'float x2': its process died; leave it out with rows, or give fewer"
    ):
        row.ask(3)
    row.close()


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("eager")])
def test_every_row_takes_a_step(name):
    if name == "brevitas":
        pytest.importorskip("brevitas")
    settings = BenchTrain("resnet8", batch=2, image=8, rounds=1, threads=1, device="cpu", compile=False)
    step, fixed = ready(KINDS[name], settings, torch.device("cpu"))
    before = fixed()
    assert float(step()[0]) > 0
    assert fixed() > before > 4 * 75_000  # momenta beside the parameters


@pytest.mark.slow
def test_bert_takes_steps():
    pytest.importorskip("transformers")
    found = bench_train(BenchTrain("bert6", batch=2, rows=("retrain",), rounds=1, device="cpu", compile=False))
    assert [row["name"] for row in found] == ["float", "retrain"] and not any(row["graphs"] for row in found)


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("make", [brevitas, torch_ao])
def test_a_peers_network_is_low_bit_and_learns(make):
    if make is brevitas:
        pytest.importorskip("brevitas")
    subject = make_subject("resnet8", 4, 8, torch.device("cpu"))
    levels: dict[str, int] = {}
    model = make(subject.network, 2)
    model(subject.batch[0])

    def read(name):
        return lambda module, inputs: levels.__setitem__(name, len(inputs[0].detach().unique()))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and make is torch_ao:
            module.register_forward_pre_hook(read(name))
    Retrain()(model, subject.batch).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if make is torch_ao:
        assert sorted(levels.values())[:-1] == [4] * (len(levels) - 1) and max(levels.values()) > 4
    else:
        widths = [int(m.quant_weight().bit_width) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert widths == [8, *[2] * (len(widths) - 2), 8]
        model.zero_grad()
        Retrain()(model, subject.batch).total.backward()  # from the second step on the bounds learn
        bounds = [p.grad.abs().max() for n, p in model.named_parameters() if "input_quant" in n or "act_quant" in n]
        assert len(bounds) > len(widths) and all(bounds)


def test_memory_at_its_peak():
    assert peak_of([(3, -4), (1, 4), (2, 6), (4, 1)]) == 10
    x = torch.ones(2**20)

    def step():
        y = x + 1  # 4 MiB more
        z = y * 2  # and 4 more, at which point
        del y
        return (z + 1).sum()

    assert 8 * 2**20 <= peak_bytes(step, torch.device("cpu")) < 9 * 2**20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "sqeq"], "rows has 'sqeq'; expected some of 'float', 'retrain', 'speq'"),
        (["--rounds", "0"], "rounds is 0; expected 1 or more"),
        (["--at-once", "0"], "at_once is 0; expected 1 or more"),
        (["--batch", "1"], "batch is 1; expected 2 or more"),
        (["--device", "tpu9"], "device is 'tpu9'; expected auto, cpu, cuda or cuda:N"),
        (["--threads", "0"], "threads is 0; expected 1 or more"),
        (["--network", "resnet19"], "network is 'resnet19'; expected one of resnet8, resnet20"),
        (["--network", "vgg16_bn", "--image", "8"], "image is 8: vgg16_bn does not run on it"),
    ],
)
def test_bad_arguments_are_named(args, message):
    with pytest.raises(SystemExit) as error:
        main(["bench", "train", *args])
    assert message in str(error.value)


def test_a_row_that_does_not_run_is_named_and_costs_no_other():
    said: list[str] = []
    settings = BenchTrain("resnet8", batch=2, image=8, bits=9, rows=("lsq",), rounds=1, device="cpu", compile=False)
    found = bench_train(settings, said.append)
    assert [row["name"] for row in found] == ["float", "input"]
    assert len(said) == 1 and said[0].startswith("lsq: not measured, ValueError: bits is 9; expected")
