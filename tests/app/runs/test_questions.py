"""Recipes on questions: trained, resumed, measured, packed and exported; small networks and files made here."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import spequant
from reference.squad import evaluation
from spequant.app.cli import main
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.serial import from_json, to_json
from spequant.app.recipes.training import Training
from spequant.app.runs import Quiet, evaluate_source, export_source, run
from spequant.app.runs.evaluation import source_at_bits
from spequant.app.runs.questions import Questions, divided
from spequant.app.runs.sources import about_run, load_run, open_source
from spequant.data import Digits, Squad, load_squad
from spequant.methods import SPEQ, Retrain
from spequant.quantizers import LSQ, LSQPlus
from spequant.train import AdamW
from support.transformers_networks import SIZES

COLOURS, THINGS = ("red", "green", "blue", "grey", "pink"), ("hat", "car", "door", "ball", "cup", "lamp")
FILLERS = ("old", "here", "now", "very", "small", "again")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "colour", "of", "the", "thing", "?", *COLOURS, *THINGS, *FILLERS]


def articles(count, seed):
    """Texts that hold one colour among other words, and two questions for it."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        colour = str(rng.choice(COLOURS))
        words = [colour, *rng.choice([*THINGS, *FILLERS], rng.integers(3, 20))]
        context = " ".join(rng.permutation(words))
        answer = {"text": colour, "answer_start": context.index(colour)}
        asked = [
            {"id": f"{seed}-{number}-{i}", "question": text, "answers": [answer]}
            for i, text in enumerate(("what colour ?", "colour of the thing ?"))
        ]
        made.append({"title": f"text {number}", "paragraphs": [{"context": context, "qas": asked}]})
    return {"version": "1.1", "data": made}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with squad/ and encoder/, a network with its tokenizer."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "squad").mkdir()
    for name, count, seed in (("train-v1.1.json", 90, 0), ("dev-v1.1.json", 18, 1)):
        (folder / "squad" / name).write_text(json.dumps(articles(count, seed)))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(
        tokenizer_object=tokenizers.BertWordPieceTokenizer(vocab=str(folder / "vocab.txt"))._tokenizer,
        model_max_length=64,
    )
    tokenizer.save_pretrained(folder / "encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZES, "hidden_size": 32})
    transformers.AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder / "encoder")
    return folder


def recipe(place, **changes):
    made = Recipe(
        name="questions",
        data=Squad(root=place, held_out=15, max_length=40, stride=8),
        network=Network(name=f"transformers/{place / 'encoder'}", pretrained=True),
        quant=Quantization(
            weight=LSQ.Settings(),
            weight_bits=4,
            act=LSQPlus.Settings(),
            act_bits=4,
            residual_bits=None,
            product_bits=8,
            per_channel=True,
            percentile=99.9,
        ),
        method=SPEQ.Settings(),
        train=Training(
            epochs=2, batch_size=15, optimizer=AdamW(), lr=3e-3, precision="fp32", compile=False, device="cpu"
        ),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def finished(place):
    """A float run that has learned to answer, and a quantized one from it."""
    floating = recipe(
        place,
        name="float",
        quant=Quantization(weight_bits=None, act_bits=None),
        method=Retrain.Settings(),
        train=replace(recipe(place).train, epochs=12, lr=5e-3),
    )
    run(floating, place / "float")
    train = replace(recipe(place).train, layers_every=1)
    trained = recipe(place, network=replace(floating.network, weights=place / "float"), train=train)
    run(trained, place / "speq")
    return place


def figures(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_network_learns_to_answer_and_keeps_it_at_low_bits(finished):
    floating, trained = figures(finished / "float"), figures(finished / "speq")
    assert floating["test_f1"] > 90 and trained["test_f1"] > 80
    assert trained["weight_bytes"] < floating["weight_bytes"] / 4
    rows = [json.loads(line) for line in (finished / "speq" / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert len(epochs) == 2 and all(0 <= row["held_out_f1"] <= 100 and row["distill"] >= 0 for row in epochs)
    assert 0 < [row for row in rows if row["kind"] == "layers"][-1]["agreement"] <= 1
    assert not any(row["kind"] == "biases" for row in rows)


def test_its_figures_are_the_official_ones_of_its_answers(finished):
    from spequant.data import best_answers, eval_windows
    from spequant.methods.tasks import SpanExtraction

    _, model, test = load_run(finished / "speq")
    logits = {}
    for numbers, batch in eval_windows(test.windows, 7):
        with torch.no_grad():
            out = SpanExtraction().logits(model.eval(), batch)
        logits |= dict(zip(numbers.tolist(), out, strict=True))
    starts, ends = ([logits[i][end] for i in range(len(test.windows))] for end in (0, 1))
    answers = best_answers(test.windows, test.questions, starts, ends)
    exact, f1 = evaluation(answers, test.questions)
    found = figures(finished / "speq")
    assert (found["test_exact_match"], found["test_f1"]) == (pytest.approx(exact), pytest.approx(f1))


def test_evaluation_and_packing_answer_alike(finished, tmp_path, capsys):
    expected = figures(finished / "speq")
    (row,) = evaluate_source(finished / "speq")
    assert row["f1"] == pytest.approx(expected["test_f1"]) and row["samples"] == 36 and row["engine"] == "torch"
    shutil.copytree(finished / "speq", tmp_path / "speq")
    exported = export_source(tmp_path / "speq", "packed").exported
    assert exported.path == tmp_path / "speq" / "model.packed" and exported.size < exported.float_size / 2
    (packed,) = evaluate_source(exported.path, root=finished)
    assert packed["f1"] == row["f1"] and packed["exact_match"] == row["exact_match"]
    wider, narrower = evaluate_source(exported.path, act_bits=(8, 2), root=finished)
    assert wider["act_bits"] == 8 and narrower["f1"] <= wider["f1"]
    main(["evaluate", str(exported.path), "--images", "9", "--root", str(finished)])
    assert "questions 9" in capsys.readouterr().out
    assert str(finished).encode() not in exported.path.read_bytes()  # no paths of this machine


@pytest.mark.slow
def test_an_export_answers_alike_in_its_engine(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    shutil.copytree(finished / "speq", tmp_path / "speq")
    (row,), out = evaluate_source(finished / "speq"), tmp_path / "speq" / "model.mixed.onnx"
    main(["export", str(tmp_path / "speq"), "--to", "mixed"])
    said = capsys.readouterr().out
    assert "arg-max equal on" in said and "f1" in said and "exact_match" in said
    (engine,) = evaluate_source(out, root=finished)
    assert engine["engine"] == "onnxruntime" and abs(engine["f1"] - row["f1"]) <= 100 * 2 / 36
    main(["evaluate", str(out), "--images", "9", "--root", str(finished)])
    assert "questions 9" in capsys.readouterr().out
    assert str(finished).encode() not in out.read_bytes()  # no paths of this machine


def test_a_run_does_not_need_the_folder_that_its_network_came_from(finished, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished / "speq", moved)
    made = from_json((moved / "recipe.json").read_text())
    gone = replace(made, network=replace(made.network, name="transformers//nowhere/encoder", weights=None))
    (moved / "recipe.json").write_text(to_json(gone))
    assert evaluate_source(moved, images=6)[0]["samples"] == 6


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(place, tmp_path):
    from spequant.train import Interrupted

    class Stop(Quiet):
        def step(self, progress):
            if progress.epoch == 1 and progress.step == 2:
                raise KeyboardInterrupt

    made = recipe(
        place, data=replace(recipe(place).data, images=60), quant=replace(recipe(place).quant, act=LSQ.Settings())
    )
    run(made, tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(made, tmp_path / "parts", Stop())
    run(made, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["distill"] > 0 for row in rows if row["kind"] == "epoch")  # it has much to learn yet


def test_two_parts_of_a_batch_add_up_to_the_whole(place, tmp_path):
    from spequant.train import train_step
    from support.assembled import assembled

    found = []
    for parts in (1, 3):
        made = recipe(place, method=Retrain.Settings(), quant=replace(recipe(place).quant, act=LSQ.Settings()))
        made = replace(made, train=replace(made.train, accumulate=parts))
        assembly = assembled(made, tmp_path)
        assembly.state.wrapped.train()
        batch = next(assembly.field.batches(0, 0))
        for module in assembly.state.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        sums = train_step(assembly.state, batch, assembly.accelerator, task=assembly.field.task)
        found.append((sums, [p.detach().clone() for p in assembly.state.model.parameters()]))
    (one, weights), (three, others) = found
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-6)
    # AdamW's first step is lr x sign(g): where |g| is near its eps rounding shows
    moved = [(a - b).abs().max() for a, b in zip(weights, others, strict=True)]
    assert float(torch.stack(moved).median()) < 1e-5


def test_the_part_and_what_is_held_out_are_other_texts_and_always_the_same(place):
    train, _ = load_squad(place)
    first, held = divided(train, 30, 15)
    again, same = divided(train, 60, 15)
    assert first == again[:30] and held == same and len(held) == 15
    assert not {q.id for q in again} & {q.id for q in held}
    everything, nothing = divided(train, None, 0)
    assert sorted(q.id for q in everything) == sorted(q.id for q in train) and nothing == []
    assert len({q.context for q in first}) == 15  # two questions each
    for count in range(1, 12):  # wherever it cuts a text
        rest, held = divided(train, None, count)
        assert len(held) == count and not {q.context for q in rest} & {q.context for q in held}
        assert len(rest) == 180 - count - count % 2
    with pytest.raises(ValueError, match=r"data\.held_out is 180; expected 0 to 179"):
        divided(train, None, 180)
    with pytest.raises(ValueError, match=r"data\.images is 170; expected 1 to 164"):
        divided(train, 170, 15)


def test_dry_run_and_the_list_of_runs(finished, capsys):
    arguments = ["--data.root", str(finished), "--network.name", f"transformers/{finished / 'encoder'}"]
    settings = ["--data.max-length", "40", "--data.stride", "8", "--train.batch-size", "15", "--train.no-compile"]
    start = ["--network.weights", str(finished / "float")]
    quick = ["--train.precision", "fp32", "--quant.percentile", "99.9", "--data.images", "60"]
    main(["train", "squad-bert-w3a3-speq", *arguments, *settings, *quick, "--dry-run", *start])
    said = capsys.readouterr().out
    assert "60 to train, 0 held out, 36 to test" in said and "--to mixed" in said
    main(["runs", str(finished)])
    assert f"{figures(finished / 'speq')['test_f1']:.2f}" in capsys.readouterr().out
    main(["compare", str(finished / "float"), str(finished / "speq")])
    said = capsys.readouterr().out
    assert "test f1" in said and f"{figures(finished / 'float')['test_f1']:.2f}" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": Network(name="resnet20")},
            r"network\.name is 'resnet20' and data are Squad; .*transformers/",
        ),
        ({"data": Digits()}, r"network\.name .*and data are Digits"),
        ({"train": Training(label_smoothing=0.1)}, r"train\.label_smoothing is 0\.1, .*questions"),
    ],
)
def test_settings_that_make_no_sense_are_named(place, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(place, **changes)


def test_lengths_and_tokenizers_that_do_not_fit_are_named(place, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"max_length is 65; expected at most 64"):
        Questions(recipe(place, data=replace(recipe(place).data, max_length=65)), cpu)
    shutil.copytree(place / "encoder", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps({**config, "vocab_size": 5}))
    with pytest.raises(ValueError, match="vocab_size is 5; expected"):
        Questions(recipe(place, network=Network(name=f"transformers/{tmp_path / 'small'}")), cpu)


def test_a_packed_file_that_does_not_tell_its_network_says_so(finished, tmp_path):
    from spequant.deploy import packed_about

    path = export_source(finished / "speq", "packed", tmp_path / "whole.packed", images=3).exported.path
    facts, model = packed_about(path), load_run(finished / "speq")[1]
    for change, message in (
        ({"network": None}, r"other\.packed does not say .*its network is None"),
        ({"network": {"model_type": "nothing"}}, "configuration cannot be read"),
        ({"network": {**facts["network"], "num_hidden_layers": 0}}, r"bert\.encoder\.layer\.0"),
    ):
        spequant.pack(model, tmp_path / "other.packed", {**facts, **change})
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / "other.packed")


def logits_at(source, bits):
    with torch.no_grad(), source_at_bits(source, bits):
        return source.model(torch.arange(5, 15)[None], torch.ones(1, 10, dtype=torch.int64)).start_logits


def test_other_widths_and_inspection(finished, tmp_path, capsys):
    packed, rows = tmp_path / "net.packed", tmp_path / "rows.json"
    export_source(finished / "speq", "packed", packed, images=3)
    with pytest.raises(ValueError, match=r"expected a tokenizer; .*'network' next to .*packed"):
        evaluate_source(packed, root=finished)
    shutil.copytree(finished / "speq" / "network", tmp_path / "network")
    by_width = evaluate_source(packed, act_bits=[1, 4, 8], root=finished)
    assert [row["act_bits"] for row in by_width] == [1, 4, 8]
    assert by_width[1]["f1"] == figures(finished / "speq")["test_f1"]
    source = open_source(packed)
    outs = {bits: logits_at(source, bits) for bits in (1, 4, 8)}
    assert torch.equal(outs[4], logits_at(source, None))
    assert (outs[8] - outs[4]).norm() < (outs[8] - outs[1]).norm() / 2
    main(["inspect", str(packed), "--json", str(rows)])
    costs = json.loads(rows.read_text())
    assert "word_embeddings" in capsys.readouterr().out
    assert sum(layer["macs"] for layer in costs["layers"]) == costs["total"]["macs"] > 0
    with pytest.raises(SystemExit, match=r"length is 0; expected 1 or more"):
        main(["bench", "infer", str(packed), "--length", "0"])
    with pytest.raises(SystemExit, match=r"length is 65: "):
        main(["bench", "infer", str(packed), "--length", "65"])


@pytest.mark.slow
def test_times_of_engines_and_an_export_at_other_widths(finished, tmp_path):
    packed, rows = tmp_path / "net.packed", tmp_path / "rows.json"
    export_source(finished / "speq", "packed", packed, images=3)
    shutil.copytree(finished / "speq" / "network", tmp_path / "network")
    report = export_source(packed, "mixed", tmp_path / "eight.onnx", act_bits=8, images=10, root=finished)
    expected = evaluate_source(packed, act_bits=[8], images=10, root=finished)[0]["f1"]
    assert report.figures["f1"][0] == pytest.approx(expected)
    main(
        ["bench", "infer", str(packed), "--rounds", "1", "--act-bits", "4", "8", "--length", "24", "--json", str(rows)]
    )
    timed = json.loads(rows.read_text())
    assert [(row["engine"], row["name"]) for row in timed] == [
        (engine, name) for engine in ("onnxruntime", "openvino") for name in ("fp32", "W4A4", "W4A8")
    ]
    assert all(row["ms"] > 0 for row in timed) and timed[0]["times_faster_than_fp32"] == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("transformers/google/electra-small", "transformers/google/electra-small"),
        ("transformers/bert-base-uncased", "transformers/bert-base-uncased"),
        ("transformers//home/someone/bert", "transformers/bert"),
        ("transformers/../bert", "transformers/bert"),
        ("transformers/runs/of/bert", "transformers/bert"),
    ],
)
def test_a_file_tells_the_hubs_name_of_a_network_and_no_folders(finished, name, told):
    made, model, test = load_run(finished / "speq")
    facts = about_run(replace(made, network=replace(made.network, name=name)), test, model)
    assert facts["recipe"]["network"]["name"] == told


def test_formats_of_image_networks_are_refused(finished):
    for to in ("onnx", "openvino", "qonnx"):
        with pytest.raises(ValueError, match=rf"--to {to} .*expected packed or mixed"):
            export_source(finished / "speq", to)
    with pytest.raises(ValueError, match="preprocessing is of images"):
        export_source(finished / "speq", "mixed", preprocessing=True)
    with pytest.raises(ValueError, match="engine is 'openvino'; "):
        evaluate_source(finished / "speq", engine="openvino")
