"""The benchmark: its rounds and results, the forms that it measures, the command, and the export that it uses."""

import csv
import io
import json
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from itertools import count
from types import SimpleNamespace

import onnx
import pytest
import timm
import torch
from test_cli import run
from test_models import build

import dmformer
from dmformer.bench.plot import plot
from dmformer.bench.rounds import PEERS, PEERS_TOP1, Row, as_csv, bench, published_top1, why_not
from dmformer.bench.variants import KINDS, SURE, energy_counter, open_model, set_threads
from dmformer.cli.printing import print_speeds
from dmformer.export.formats import export_onnx
from dmformer.runtimes.sessions import to_onnxruntime, to_openvino
from dmformer.utils.errors import UserError
from dmformer.utils.machine import energy_joules, gpu_joules
from dmformer.utils.model_names import model_names
from dmformer.utils.timing import interleave, joules, summarise, turn

QUICK = dict(image_size=64, batch_sizes=(2, 1), threads=1, rounds=2, seconds=0.01, device="cpu")


@pytest.fixture(scope="module")
def measured() -> tuple[list[Row], list[str], list[str]]:
    """Rows of one small model in every quick form and dtype, the remarks, and the reported progress."""
    said, told = [], []
    rows = bench(
        ["dmformer_n"],
        forms=("eager", "plain", "fused", "onnxruntime", "openvino"),
        dtypes=("float32", "bfloat16"),
        say=said.append,
        progress=lambda what, done, total: told.append(what),
        **QUICK,
    )
    return rows, said, told


@pytest.mark.export
@pytest.mark.slow
def test_every_form_dtype_and_batch_size_has_a_row(measured):
    rows, said, told = measured
    bf16 = ["eager", "plain", "fused"] + (["openvino"] if not any("OpenVINO computes" in line for line in said) else [])
    kinds = [(f, "float32") for f in ("eager", "plain", "fused", "onnxruntime", "openvino")] + [
        (f, "bfloat16") for f in bf16
    ]
    assert Counter((r.form, r.dtype, r.batch_size) for r in rows) == Counter((*k, b) for k in kinds for b in (1, 2))
    assert "onnxruntime in bfloat16 is skipped: ONNX Runtime only computes in float32 on a CPU" in said
    assert told.count("timing dmformer_n/fused/float32") == 2 * (1 + 2)
    assert told[0] == "preparing dmformer_n"


@pytest.mark.export
@pytest.mark.slow
def test_figures_of_the_rows(measured):
    for row in measured[0]:
        assert row.low <= row.images_per_second <= row.high
        assert row.baseline == "dmformer_n/eager/float32"
        assert row.ratio > 0
        assert row.parameters_m == pytest.approx(2.30, rel=0.01)
        assert row.gmacs == pytest.approx(0.048, rel=0.01)
        assert row.top1 is None
        assert row.threads == 1
        assert row.torch == torch.__version__
        if sys.platform == "linux":
            assert row.memory_mb >= 0  # a backend may have allocated all of it in advance
    assert [r.ratio for r in measured[0] if (r.form, r.dtype) == ("eager", "float32")] == [1, 1]
    if sys.platform == "linux":  # an activation of the first stage alone
        assert all(r.memory_mb > 0.1 for r in measured[0] if r.form in ("eager", "fused"))


@pytest.mark.export
@pytest.mark.slow
def test_forms_agree(measured):
    for row in measured[0]:
        if row.dtype == "float32":
            assert row.difference < 1e-4, row.form
        else:
            assert 1e-4 < row.difference < 0.1, row.form


@pytest.mark.slow
def test_training_rows():
    said = []
    rows = bench(
        ["dmformer_n"], mode="training", forms=("eager", "fused"), dtypes=("bfloat16",), say=said.append, **QUICK
    )
    assert [(r.form, r.dtype, r.batch_size, r.difference) for r in rows] == [
        ("eager", "bfloat16", 1, None),
        ("eager", "bfloat16", 2, None),
    ]
    assert said == ["fused in bfloat16 is skipped: only the plain, eager and compiled forms can be trained"]
    if sys.platform == "linux":
        assert all(r.memory_mb > 5 for r in rows)  # the gradients alone take 9 MB


@pytest.mark.slow
def test_a_compiled_form(monkeypatch):
    """With a stand-in for the compiler, which takes minutes."""
    compiled, original = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda m, dynamic: original(m, dynamic=dynamic, backend=lambda g, _: compiled.append(g) or g)
    )
    rows = bench(["dmformer_n"], forms=("compiled",), **{**QUICK, "batch_sizes": (1,)})
    assert [(r.form, r.difference < 1e-4) for r in rows] == [("compiled", True)]
    assert len(compiled) == 1


@pytest.mark.slow
def test_any_number_of_models_can_be_compiled():
    """torch stops compiling after eight versions of one function, and models of the same class share functions."""
    compiled = []
    with set_threads(1):
        for size in range(1, 12):
            module = torch.compile(
                torch.nn.Linear(size, 2), backend=lambda g, _: compiled.append(g) or g, dynamic=False
            )
            module(torch.zeros(1, size))
    assert len(compiled) == 11


@pytest.mark.slow
def test_failures_are_skipped_with_the_reason(monkeypatch):
    said = []

    def fail(model):
        raise RuntimeError("the reason\nand more")

    def count(model, *size):
        if isinstance(model, timm.models.ResNet):
            raise ValueError("too small an image")
        return 1.0

    monkeypatch.setattr("dmformer.bench.variants.fuse", fail)
    monkeypatch.setattr("dmformer.bench.variants.count_gmacs", count)
    rows = bench(["resnet18", "dmformer_n"], say=said.append, **QUICK)
    assert [(r.model, r.form, r.batch_size) for r in rows] == [("dmformer_n", "eager", 1), ("dmformer_n", "eager", 2)]
    assert said == [
        "resnet18 is skipped: too small an image",
        "dmformer_n/fused/float32 is skipped from batch 1 on: the reason",
    ]
    with pytest.raises(UserError, match="nothing could be measured"):
        bench(["dmformer_n"], forms=("fused",), say=said.append, **QUICK)
    rows = bench(["dmformer_n"], baseline="dmformer_n/fused", say=said.append, **QUICK)
    assert [r.ratio for r in rows] == [None, None]
    assert said[-1] == "the baseline dmformer_n/fused could not be measured, so there are no ratios"


def test_rounds_are_interleaved():
    log, told, numbers = [], [], count()
    results = interleave(
        [lambda name=name: log.append(name) or next(numbers) for name in "abc"],
        4,
        lambda i, done, total: told.append(("abc"[i], done, total)),
    )
    rounds = [log[i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    # the results of the turns, without those of the first round
    assert results == [[3 * r + rounds[r].index(name) for r in range(1, 5)] for name in "abc"]
    assert told == [(name, i, 15) for i, name in enumerate(log)]


@pytest.mark.parametrize(("cost", "calls"), [(0.125, 4), (0.1875, 3), (2.0, 1)])
def test_a_turn_has_the_requested_length(cost, calls):
    now = [0.0]
    done = []

    def call():
        done.append(1)
        now[0] += cost

    assert turn(call, 0.5, lambda: now[0]) == cost
    assert len(done) == calls


def test_medians_and_ratios():
    times, baseline = [0.5, 1.0, 4.0], [1.0, 4.0, 4.0]
    assert summarise(8, times, baseline) == {
        "images_per_second": 8.0,
        "low": 5.0,
        "high": 12.0,
        "latency_ms": 1000.0,
        "ratio": 2.0,  # of 2, 4, 1; not of the medians, which gives 4
    }
    assert summarise(8, times, times)["ratio"] == 1
    assert summarise(2, [0.5], None) == dict(images_per_second=4, low=4, high=4, latency_ms=500, ratio=None)


def test_unsupported_combinations():
    assert why_not("fused", "float32", "inference", "cuda") is None
    assert "trained" in why_not("openvino", "float32", "training", "cpu")
    assert "loss scaling" in why_not("eager", "float16", "training", "cuda")
    assert "only measured on CPUs" in why_not("openvino", "bfloat16", "inference", "cuda")
    assert "float32" in why_not("onnxruntime", "float16", "inference", "cpu")


def test_peers_exist_and_have_published_figures():
    known = {*model_names(), *model_names("timm")}
    assert {*PEERS, *PEERS_TOP1} <= known
    assert published_top1("dmformer_s") == 82.8
    assert published_top1("convnext_tiny") == 82.1
    assert published_top1("resnet50") is None


@pytest.mark.slow
def test_norms_have_something_to_fold():
    (model, _), (again, _) = open_model("dmformer_n", 64), open_model("dmformer_n", 64)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in model.modules())
    assert all(norm.momentum == 0.1 for norm in norms)
    # BatchNorm no longer has its initial effect, x / sqrt(1 + eps)
    assert statistics.median(float((n.running_var - 1).abs().mean() + n.running_mean.abs().mean()) for n in norms) > 0.1
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(("name", "dynamic_size"), [("dmformer_n", True), ("van_b0", False)])
@pytest.mark.export
@pytest.mark.slow
def test_export_has_plain_operators_and_agrees(tmp_path, name, dynamic_size):
    model = build(name, depths=(1, 1, 1, 1))
    fused = dmformer.fuse(model)
    path = export_onnx(fused, tmp_path / "model.onnx", 64, dynamic_size=dynamic_size)
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    convs = [
        {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in graph.node if n.op_type == "Conv"
    ]
    # every depth-wise kernel as in the model, not split into phases
    assert Counter((*c["kernel_shape"], *c["dilations"]) for c in convs if c["group"] > 1) == Counter(
        (*m.kernel_size, *m.dilation) for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1
    )

    size = (96, 64) if dynamic_size else (64, 64)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = fused(images)
    for session in (
        to_onnxruntime(path, 1),
        to_openvino(path, 1),
        to_openvino(path, 1, "float32", images.shape),
    ):
        for _ in range(2):  # and again after the memory was released
            answer = torch.from_numpy(session.run(images.numpy()).copy())
            assert (answer - logits).abs().max() < 1e-4 * logits.abs().max()
            session.release()


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_signals_are_handled_after_openvino_sessions_are_released(tmp_path):
    """Runs in its own process, which it would kill: two live at once, and the older one goes first."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    path = export_onnx(model, tmp_path / "model.onnx", 32)
    code = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from dmformer.runtimes.sessions import to_openvino\n"
        "first, second = (to_openvino(Path(sys.argv[1]), 1) for _ in range(2))\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGINT, lambda number, frame: print('handled'))\n"
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.export
@pytest.mark.slow
def test_export_refuses_training_mode_and_names_the_cause(tmp_path):
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        export_onnx(timm.create_model("dmformer_n"), tmp_path / "model.onnx", 64)

    class Reader(torch.nn.Module):
        def forward(self, x):
            raise ArithmeticError("this model is not for export")

    with pytest.raises(RuntimeError, match=r"torch cannot export it: .*this model is not for export"):
        export_onnx(Reader().eval(), tmp_path / "model.onnx", 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command_prints_and_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", 32, "--batch-sizes", 1, 2, "--threads", 1, "--rounds", 2, "--seconds", 0.001]
    models = ["van_b0", "test_resnet", "--device", "cpu", "--forms", "eager", "--baseline", "test_resnet"]
    files = ["--csv", "speed.csv", "--plot", "speed.svg"]
    code, out, err = run(capsys, "bench", *models, *options, *files)
    assert code == 0
    assert "inference at 32 px" in out
    assert "ratio: to test_resnet/eager/float32" in out
    assert err == "not plotted, because they have no published top-1: test_resnet\n"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "speed.csv").read_text())))
    assert [(r["model"], r["batch_size"]) for r in rows] == [(m, b) for m in ("van_b0", "test_resnet") for b in "12"]
    assert [r["top1"] for r in rows] == ["75.4", "75.4", "", ""]
    assert all(r["machine"] and r["date"] and r["timm"] == timm.__version__ for r in rows)
    assert "van_b0" in (tmp_path / "speed.svg").read_text()  # in a comment beside the drawn letters
    assert "test_resnet" not in (tmp_path / "speed.svg").read_text()

    code, _, err = run(capsys, "bench", *models, *options, *files)
    assert (code, err) == (2, "dmformer: speed.csv exists already: give another name, or --overwrite.\n")
    one = ["van_b0", "--forms", "eager", "--device", "cpu", *options[:2], "--batch-sizes", 2, *options[5:]]
    code, out, _ = run(capsys, "bench", *one, *files, "--overwrite", "--format", "csv")
    assert code == 0
    assert out == (tmp_path / "speed.csv").read_text()
    assert out.count("\n") == 2
    code, out, _ = run(capsys, "bench", *one, "--format", "json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["model"], row["batch_size"], row["ratio"]) == ("van_b0", 2, 1)


@pytest.mark.slow
def test_command_takes_a_trained_run(capsys, trained_classifier):
    best = trained_classifier.folder / "best"
    options = ["--image-size", 32, "--batch-sizes", 1, "--threads", 1, "--rounds", 1, "--seconds", 0.001]
    code, out, _ = run(capsys, "bench", best, *options, "--device", "cpu", "--format", "json")
    assert code == 0
    rows = json.loads(out)
    assert [(r["model"], r["form"]) for r in rows] == [(str(best), "eager"), (str(best), "fused")]
    assert rows[0]["parameters_m"] < 0.1
    assert rows[1]["difference"] < 1e-4


@pytest.mark.slow
def test_whole_detectors_are_measured():
    rows = bench(["test_resnet+retinanet"], forms=("eager", "fused"), **{**QUICK, "batch_sizes": (1,)})
    assert [(r.form, r.difference) for r in rows] == [("eager", None), ("fused", None)]
    assert rows[0].gmacs == pytest.approx(0.624, rel=0.01)
    model, answer = open_model("test_resnet+retinanet", 64)
    assert model.selection.threshold == SURE
    model.selection = replace(model.selection, threshold=0.0101, per_level=50)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        found, candidates = model(images), KINDS[answer].traced(model)(images)
    selected = [each for each, _ in KINDS[answer].rest(model, (64, 96))(candidates.numpy())]
    assert [len(each) for each in selected] == [len(each["scores"]) for each in found]
    assert all(abs(a.boxes - b["boxes"].numpy()).max() < 1e-3 for a, b in zip(selected, found, strict=True))
    for more, words in (({"image_size": 100}, "must be a multiple of 32"), ({"mode": "training"}, "is not measured")):
        with pytest.raises(UserError, match=words):
            bench(["test_resnet+retinanet"], forms=("eager",), **{**QUICK, **more})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dmformer_z"], "unknown model 'dmformer_z': did you mean dmformer_"),
        (["convnext_tinny"], "did you mean convnext_tiny"),
        (["runs/x/best"], "runs/x/best does not exist"),
        (["."], "holds no config.json"),
        (["--forms", "onnx"], "invalid choice 'onnx'"),
        (["--dtypes", "int8"], "invalid choice 'int8'"),
        (["--device", "tpu"], "invalid choice 'tpu'"),
        (["--batch-sizes", "0"], "--batch-sizes, --rounds and --threads must be 1 or more"),
        (["--threads", "0"], "must be 1 or more"),
        (["--rounds", "0"], "must be 1 or more"),
        (["--seconds", "0"], "--seconds is 0.0: it must be more than 0"),
        (["--image-size", "16"], "--image-size is 16"),
        (["--batch-sizes"], "at least one"),
        (["--baseline", "van_b9"], "unknown baseline 'van_b9'"),
        (["--baseline", "dmformer_s/fusd"], "did you mean dmformer_s"),
        (["--csv", "nowhere/a.csv"], "--csv nowhere/a.csv: a file cannot be written there"),
        (["--csv", "."], "--csv .: a file cannot be written there"),
        (["--plot", "a.pdf"], "ends in .svg or .png"),
        (["--mode", "training", "--forms", "fused"], "no form to measure"),
        (["--mode", "training", "van_b0"], "names come first"),
        (["--form", "eager"], "unknown option '--form': did you mean --forms"),
    ],
)
def test_mistakes_are_reported_in_one_line_before_any_work(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmformer.bench.variants.Forms", None)
    code, out, err = run(capsys, "bench", *arguments)
    assert code == 2
    assert out == ""
    assert words in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_and_devices_are_reported(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch finds no CUDA device" in run(capsys, "bench", "--device", "cuda")[2]
    monkeypatch.setattr("dmformer.bench.rounds.find_spec", lambda package: None)
    err = run(capsys, "bench", "--forms", "openvino")[2]
    assert err == "dmformer: the form openvino needs the package onnx: pip install 'dmformer[export]'.\n"


@pytest.mark.slow
def test_help_and_mistakes_do_not_import_torch():
    code = (
        "import sys, dmformer_command\n"
        "for arguments in (['--help'], ['dmformer_z'], ['--csv', 'nowhere/a.csv'], ['--rounds', '0']):\n"
        "    sys.argv = ['dmformer', 'bench', *arguments]\n"
        "    try:\n        dmformer_command.main()\n    except SystemExit:\n        pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'onnx', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.export
@pytest.mark.slow
def test_plot_of_models_without_figures(measured, tmp_path):
    assert plot(measured[0], tmp_path / "none.png") == ["dmformer_n"]
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")
    assert as_csv(measured[0]).count("\n") == 1 + len(measured[0])


class Driver:
    """Stands for nvidia-ml-py on a machine with one GPU, which has used 7.25 J."""

    class NVMLError(Exception):
        pass

    nvmlInit = staticmethod(lambda: None)  # noqa: N815
    nvmlDeviceGetTotalEnergyConsumption = staticmethod(lambda handle: 7250)  # noqa: N815

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-12ab":
            raise self.NVMLError("Not Found")
        return uuid


def test_the_energy_of_a_gpu_is_that_of_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    assert gpu_joules("GPU-12ab") == 7.25
    assert gpu_joules("GPU-other") is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    assert energy_counter(torch.device("cuda", 0))() == 7.25
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_joules("GPU-12ab") is None
    assert energy_counter(torch.device("cpu")) is energy_joules


def test_joules_of_a_call():
    used = [10.0]
    calls = []

    def call() -> None:
        calls.append(1)
        used[0] += 3.0

    assert joules(call, 1e-4, lambda: used[0]) == pytest.approx(3.0)
    assert calls
    assert joules(lambda: None, 0.0, lambda: None) is None
    assert joules(lambda: None, 0.0, lambda: 5.0) is None  # the counter has not moved


def test_the_table_has_a_column_for_energy_if_there_is_any(capsys):
    facts = {field.name: 1.0 if field.type == "float" else 1 for field in fields(Row)}
    names = {"model": "dmformer_n", "form": "eager", "dtype": "float32", "batch_size": 8, "baseline": None}
    row = Row(**{**facts, **names, "ratio": None, "energy_j": 0.51234})
    print_speeds([row])
    assert capsys.readouterr().out.split().count("0.512") == 1
    print_speeds([replace(row, energy_j=None)])
    assert "J/image" not in capsys.readouterr().out
