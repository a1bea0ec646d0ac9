"""Choosing a backbone: limits, bounds, race and ranking by hand; the command from photos to an exported file."""

import json
import math
import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_cli import run

from dmformer.choose import process, race
from dmformer.choose.candidates import Candidate, Entrant, Question, entrants
from dmformer.choose.limits import Limits, lower_bounds, none_meets, parse_limits
from dmformer.choose.report import and_so, certainty, named, verdict
from dmformer.choose.run import Choice, Fallen, _Choosing
from dmformer.choose.state import State, read_state, save_state
from dmformer.cli.choose import ChooseOptions
from dmformer.cli.parsing import parse
from dmformer.tasks.detection.recipes import detect
from dmformer.tasks.recipes import RECIPES
from dmformer.tasks.segmentation.recipes import camvid, segment
from dmformer.tasks.table import TASKS
from dmformer.utils.errors import UserError
from dmformer.utils.intervals import Score, wilson
from dmformer.utils.machine import energy_joules
from dmformer.utils.model_names import model_names

DOCS = Path(__file__).parents[1] / "docs" / "choose.md"


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ((None, None, None, None), Limits()),
        (("20ms", "300MB", "20mb", "50mJ"), Limits(20, 300, 20, 0.05)),
        (("0.5 s", "1.5GiB", "512 KB", "2 J"), Limits(500, 1536, 0.5, 2.0)),
        (("250us", None, ".5MB", "0.5GMAC"), Limits(0.25, None, 0.5, None, 0.5)),
        ((None, None, None, "300mmac"), Limits(gmacs=0.3)),
    ],
)
def test_limits_are_read_with_their_units(given, limits):
    assert parse_limits(*given) == limits
    assert bool(limits) == any(given)


def test_lower_bounds_by_hand():
    # 2 images of 0.5 GMACs at 2 x 50 GMACs/s are 10 ms; 10 M weights of 4 bytes are 38.1 MB of 2^20 bytes
    whole = lower_bounds(10, 0.5, int8=False, batch_size=2, gmacs_per_second=50)
    assert whole == pytest.approx({"latency_ms": 10, "memory_mb": 38.1470, "disk_mb": 38.1470, "gmacs": 1})
    small = lower_bounds(10, 0.5, int8=True, batch_size=2, gmacs_per_second=50)
    assert small == pytest.approx({"latency_ms": 1.25, "memory_mb": 9.53674, "disk_mb": 9.53674, "gmacs": 1})


def test_limits_say_what_exceeds_them_and_what_is_closest():
    limits = Limits(latency_ms=20, disk_mb=10)
    assert limits.exceeded({"latency_ms": 20, "memory_mb": 1e6, "disk_mb": None}) == ""
    told = limits.exceeded({"latency_ms": 25.13, "disk_mb": 40})
    assert told == "latency 25.1 ms above 20 ms, disk 40 MB above 10 MB"
    error = none_meets(limits, [("a", {"latency_ms": 15, "disk_mb": 40}), ("b", {"latency_ms": 25, "disk_mb": 9})])
    assert "none of the 2 candidates meets the limits. The closest is b: latency 25 ms above 20 ms." in str(error)


@pytest.mark.parametrize(
    ("entrants", "sizes"), [(1, [1]), (3, [3]), (4, [4, 3]), (5, [5, 3]), (16, [16, 8, 4, 3]), (24, [24, 12, 6, 3])]
)
def test_half_of_the_models_go_on(entrants, sizes):
    assert race.sizes_of_rounds(entrants) == sizes


def test_rounds_fit_into_their_time():
    seconds = {"a": 10.0, "c": 30.0, "b": 20.0}
    assert race.plan_round(seconds, 130, 20) == race.Round(["a", "c", "b"], 2, 1, [])
    assert race.plan_round(seconds, 1e6, 20).epochs == 20
    assert race.plan_round(seconds, 35, 20) == race.Round(["a", "b"], 1, 1, ["c"])
    assert race.plan_round(seconds, 0, 20) == race.Round(["a"], 1, 1, ["c", "b"])
    assert race.plan_round(seconds, 35, 20, favoured={"c"}) == race.Round(["c"], 1, 1, ["a", "b"])
    assert race.plan_round(seconds, 45, 20, favoured={"c"}) == race.Round(["a", "c"], 1, 1, ["b"])
    # a third of the time is enough for one epoch, but not for two; less than an epoch may take all of it
    assert race.plan_round(seconds, 300, 20, part=1 / 3) == race.Round(["a", "c", "b"], 1, 1, [])
    assert race.plan_round(seconds, 60, 20, part=1 / 3) == race.Round(["a", "c", "b"], 1, 1, [])
    # a final: 60 seconds an epoch; after rounds of 2 epochs, three seeds need 360 seconds and two 240
    assert race.plan_round(seconds, 370, 20, least_epochs=2, seeds=3) == race.Round(["a", "c", "b"], 2, 3, [])
    assert race.plan_round(seconds, 350, 20, least_epochs=2, seeds=3) == race.Round(["a", "c", "b"], 2, 2, [])
    # with less time, the runs of the round before count again, and nobody is left out
    for budget in (100, 0):
        plan = race.plan_round(seconds, budget, 20, least_epochs=2, seeds=3)
        assert plan == race.Round(["a", "c", "b"], 2, 1, [])


def test_the_forecast_gives_every_round_a_part_of_the_time():
    told = race.forecast(dict.fromkeys("abcdefgh", 1.0), 96, 50, seeds=2)
    # rounds of 8 and 4 models in 24 seconds each, and a final of 3 in twice as many
    assert [(len(plan.names), plan.epochs, plan.seeds, length) for plan, length in told] == [
        (8, 3, 1, 24),
        (4, 6, 1, 24),
        (3, 8, 2, 48),
    ]
    # one epoch of all takes all the time: it decides every round, with one seed
    short = race.forecast(dict.fromkeys("abcdefgh", 1.0), 8, 50, seeds=2)
    assert [(len(plan.names), plan.epochs, plan.seeds, length) for plan, length in short] == [
        (8, 1, 1, 8),
        (4, 1, 1, 0),
        (3, 1, 1, 0),
    ]


POINTS = {"slow": (0.90, 50.0), "middle": (0.85, 20.0), "beaten": (0.84, 30.0), "fast": (0.60, 5.0), "bad": (0.5, 60.0)}


def test_front_and_who_goes_on():
    assert race.front(POINTS) == ["fast", "middle", "slow"]
    assert race.front({"a": (0.5, 1.0), "b": (0.5, 1.0)}) == ["a", "b"]
    assert race.going_on(POINTS, 3, by_front=False) == ["slow", "middle", "beaten"]
    assert race.going_on(POINTS, 3, by_front=True) == ["slow", "middle", "fast"]
    assert race.going_on(POINTS, 4, by_front=True) == ["slow", "middle", "fast", "beaten"]
    assert race.going_on(POINTS, 2, by_front=True) == ["slow", "middle"]


def test_ranking_and_what_is_level():
    first = race.standing("a", [Score(0.75, 0.65, 0.85), Score(0.85, 0.77, 0.91)])
    assert (first.score, first.low, first.high) == pytest.approx((0.80, 0.71, 0.88))
    spread = race.standing("b", [wilson(50, 100), wilson(90, 100)])
    assert (spread.low, spread.high) == (0.50, 0.90)
    worse, close = race.standing("c", [wilson(55, 100)]), race.standing("d", [wilson(80, 100)])
    assert race.level_with(first, [first, spread, worse, close]) == [spread, close]
    assert [s.name for s in race.ranking([worse, first, close], {"a": 9, "c": 1, "d": 8})] == ["d", "a", "c"]


def test_default_models_are_known():
    for task in TASKS.values():
        if task.contest is not None:
            assert set(task.contest.models) <= {*model_names(), *model_names("timm")}


def test_a_question_survives_json():
    question = Question("d", "classify", Limits(20), 1, 1.0, ("a", "b"), (), (32, 64), ("fused",), (1,), None, 3, 0)
    assert Question.of_values(json.loads(json.dumps(question.to_dict()))) == question
    assert [e.name for e in entrants(question)] == ["a-32", "a-64", "b-32", "b-64"]
    with_heads = replace(question, heads=("fpn", "upernet"), models=("a",), image_sizes=(64,))
    assert [e.name for e in entrants(with_heads)] == ["a-fpn-64", "a-upernet-64"]


def test_a_tie_is_in_the_verdict():
    candidate = Candidate(Entrant("van_b0", "atss", 320), "openvino", 2)
    test = {"value": 0.5, "low": 0.4, "high": 0.6}
    winner = {
        "entrant": candidate.entrant.name,
        "candidate": candidate.name,
        "test": test,
        "split": "test",
        "count": 72,
    }
    state = State({}, measured={candidate.name: {"latency_ms": 12.34}}, winner={**winner, "level": ["a", "b"]})
    question: Any = None
    choice = Choice(question, state, "AP", (1, 1, 1), [], forms={candidate.entrant.name: [candidate]})
    assert verdict(choice) == (
        "van_b0 with atss at 320 px in openvino, 2 threads: AP 50.0% on 72 test photos (95 % interval 40.0% to 60.0%), "
        "12.3 ms a call. It is a tie: the validation photos do not tell it from a and b."
    )
    state.winner["level"] = []
    assert verdict(choice).endswith("12.3 ms a call.")


def test_models_that_fell_out_by_chance_are_named():
    stood = race.standing("a-32", [Score(0.70, 0.68, 0.72), Score(0.60, 0.58, 0.62)])
    question: Any = SimpleNamespace(seeds=2)
    winner = {"entrant": "a-32", "split": "test", "epochs": 12, "validation": 0.8}
    choice = Choice(question, State({}, rounds=[{"epochs": 3}], winner=winner), "AP", (9, 9, 9), [])
    choice.finalists = [stood]
    choice.fallen = [
        Fallen("near", "round 1", "", 0.09),  # nearer than the seeds are to each other
        Fallen("level", "round 1", "", 0.2, True),
        Fallen("far", "round 1", "", 0.11),
        Fallen("slow", "limits", ""),
    ]
    (told,) = [sentence for sentence in certainty(choice) if "earlier round" in sentence]
    assert told.startswith("near and level fell out in an earlier round although no farther behind")
    assert any("a-32 was trained for 12 epochs and reached 80.0%" in sentence for sentence in certainty(choice))
    winner["epochs"] = 3
    assert not any("was trained for" in sentence for sentence in certainty(choice))


def test_an_earlier_versions_state_is_refused(tmp_path):
    save_state(State({}), tmp_path)
    assert read_state(tmp_path).question == {}
    (tmp_path / "choose.json").write_text('{"question": {}}')
    with pytest.raises(UserError, match="another version of this package wrote it"):
        read_state(tmp_path)


def test_the_command_that_trains_the_winner_to_the_end():
    contest = TASKS["segmentation"].contest
    question = SimpleNamespace(recipe="segment", data="a b")
    choosing: Any = SimpleNamespace(contest=contest, recipe=segment(), question=question)
    recipe = replace(contest.trial(segment(), 192, 100), model="van_b0")
    told = _Choosing._longer(choosing, recipe)
    assert told == "dmformer train segment --data 'a b' --model van_b0 --image-size 192 --resize 240"


def test_the_winner_is_trained_as_long_as_there_is_time():
    trials = {
        "a-0": {"entrant": "a", "epochs": 2, "seed": 0, "score": [0.60, 0.5, 0.7]},
        "a-1": {"entrant": "a", "epochs": 2, "seed": 1, "score": (0.65, 0.5, 0.7)},
        "b-0": {"entrant": "b", "epochs": 2, "seed": 0, "score": [0.50, 0.4, 0.6]},
    }
    asked = []

    def train(score: float, left: float, longest: dict[str, int] | None = None) -> dict[str, Any]:
        def trial(name: str, epochs: int, seed: int) -> dict[str, Any]:
            asked.append((name, epochs, seed))
            return {"entrant": name, "epochs": epochs, "seed": seed, "score": [score, 0.0, 1.0]}

        choosing: Any = SimpleNamespace(
            state=State({}, rounds=[{"epochs": 2}], trials=trials, longest=longest or {}),
            most_epochs=20,
            question=SimpleNamespace(seed=0),
            display=SimpleNamespace(say=lambda line: None),
        )
        choosing._is_final = partial(_Choosing._is_final, choosing)
        choosing._trial, choosing._seconds_left, choosing._epoch_seconds = trial, lambda: left, lambda name: 10.0
        return _Choosing._best_trial(choosing, race.standing("a", [Score(0.6, 0.5, 0.7)]))

    assert train(0.8, left=95.0)["epochs"] == 9
    assert train(0.8, left=1e6)["epochs"] == 20
    assert train(0.8, left=0.0, longest={"a": 7})["epochs"] == 7  # begun before it was resumed
    assert asked == [("a", 9, 0), ("a", 20, 0), ("a", 7, 0)]
    assert train(0.8, left=25.0) is trials["a-1"]  # no time for more than the final's two epochs
    assert train(0.62, left=95.0) is trials["a-1"]  # more epochs did not help
    assert len(asked) == 4


def test_time_is_kept_for_the_winners_training():
    choosing: Any = SimpleNamespace(question=SimpleNamespace(hours=1.0), most_epochs=20)
    choosing._seconds_left = lambda: 3400.0
    assert _Choosing._seconds_of_race(choosing, {"a": 10.0, "b": 30.0}) == 3400 - 600
    assert _Choosing._seconds_of_race(choosing, {"a": 10.0, "b": 300.0}) == 3400 - 0.4 * 3600
    choosing._seconds_left = lambda: 100.0
    assert _Choosing._seconds_of_race(choosing, {"a": 300.0}) == 0


def test_names_in_sentences():
    assert named(Entrant("van_b0", "atss", 320)) == "van_b0 with atss at 320 px"
    assert named(Entrant("van_b0", "", 96)) == "van_b0 at 96 px"
    assert [and_so("a"), and_so("ab"), and_so("abc")] == ["a", "a and b", "a, b and c"]


def test_a_trial_of_a_segmenter_is_validated_after_each_pass():
    trial = TASKS["segmentation"].contest.trial
    sized = trial(segment(), 192, 100)  # 12 steps of 8 photos; 2,000 iterations are 166 passes
    assert (sized.image_size, sized.resize, sized.validate_every, sized.validations) == (192, 240, 12, 166)
    assert sized.lasting(3).iterations == 36
    assert trial(camvid(), 192, 100).resize is None
    assert trial(segment(), 256, 5).validate_every == 1
    replace(sized, data="x").check()


def test_a_trial_of_a_detector_is_validated_after_each_pass():
    sized = TASKS["detection"].contest.trial(detect(), 160, 100)
    assert (sized.image_size, sized.sides, sized.max_side) == (160, (128, 160, 192), 320)
    assert (sized.validate_every, sized.validations, sized.lasting(3).epochs) == (1, 40, 3)
    replace(sized, data="x").check()


def test_energy_is_the_sum_of_the_packages(tmp_path):
    assert energy_joules(tmp_path) is None
    for name, value in (("intel-rapl:0", 2_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert energy_joules(tmp_path) == 2.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the photos: dmformer choose --data photos/"),
        (["--data", "nowhere"], "unknown data 'nowhere'"),
        (["--data", "elpv", "--latency", "20"], "--latency 20: give a number and a unit, e.g. 20ms or 0.5s"),
        (["--data", "elpv", "--memory", "300ms"], "--memory 300ms: give a number and a unit, e.g. 300MB"),
        (["--data", "elpv", "--disk", "0MB"], "--disk 0MB: it must be more than 0"),
        (["--data", "elpv", "--models", "dmformer_z"], "unknown model 'dmformer_z': did you mean dmformer_"),
        (["--data", "elpv", "--image-sizes", "16"], "--image-sizes 16: the models need 32 pixels or more"),
        (["--data", "elpv", "--batch", "0"], "--batch must be 1 or more"),
        (["--data", "elpv", "--hours", "0"], "--hours is 0: it must be more than 0"),
        (["--data", "elpv", "--forms", "fast"], "invalid choice 'fast'"),
        (["--data", "elpv", "--recipe", "bccd"], "elpv does not exist"),
        (["--data", "elpv", "--recipe", "pretrain"], "--recipe pretrain is for pretraining: `dmformer choose` knows "),
        (["--data", "elpv", "--heads", "fpn"], "--heads fpn: a classifier has no choice of heads"),
        (["--data", "elpv", "--energy", "5W"], "--energy 5W: give a number and a unit, e.g. 50mJ, or 0.5GMAC for op"),
        (["--resume"], "choice holds no choose.json to go on from"),
        (["--latncy", "1ms"], "unknown option '--latncy': did you mean --latency"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "choose", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_page_are_valid():
    lines = re.findall(r"^dmformer choose(.*)$", DOCS.read_text("utf-8"), re.M)
    assert len(lines) > 4
    for line in lines:
        options = parse(ChooseOptions, shlex.split(line, comments=True), "choose")
        parse_limits(options.latency, options.memory, options.disk, options.energy)
    contests = [task.contest for task in TASKS.values() if task.contest is not None]
    assert all(f"`{name}`" in DOCS.read_text("utf-8") for each in contests for name in (*each.models, *each.heads))
    assert all(f"{size} px" in DOCS.read_text("utf-8") for each in contests for size in each.image_sizes)


def test_joules_need_a_counter(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmformer.cli.choose.energy_joules", lambda: None)
    code, _, err = run(capsys, "choose", "--data", "elpv", "--energy", "50mJ")
    assert code == 2
    assert "--energy 50mJ: the energy counters of this machine cannot be read; limit the operations" in err


@pytest.mark.slow
def test_the_pytorch_form_runs_in_a_process_of_its_own(capsys, monkeypatch, trained_classifier):
    task = {
        "form": "fused",
        "source": str(trained_classifier.folder / "best"),
        "shape": (1, 3, 32, 32),
        "threads": torch.get_num_threads(),
    }
    monkeypatch.setattr("sys.argv", ["", json.dumps(task)])
    process.main()
    assert json.loads(capsys.readouterr().out) > 10


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_from_photos_to_an_exported_file(capsys, monkeypatch, photos, tmp_path):
    import dmformer.choose.run as whole

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmformer.choose.measure.SECONDS", 0.01)
    monkeypatch.setattr(race, "FINALISTS", 1)
    forms = ["--forms", "onnxruntime", "onnxruntime-int8", "--threads", 1]
    models = ["--models", "test_resnet", "test_efficientnet", "--image-sizes", 32]
    question = ["--data", photos, *models, *forms, "--epochs", 2, "--seeds", 2, "--hours", 5]

    code, _, err = run(capsys, "choose", *question, "--disk", "1KB")
    assert code == 2
    assert "none of the 4 candidates meets the limits. The closest is test_efficientnet-32/onnxruntime-int8/1" in err
    assert read_state(tmp_path / "choice").measured == {}  # nothing was built

    measured, really = [], whole.measure

    def stopping(job, contest, candidates, *arguments):
        if measured:
            raise KeyboardInterrupt
        measured.append(candidates[0].entrant.name)
        return really(job, contest, candidates, *arguments)

    monkeypatch.setattr(whole, "measure", stopping)
    code, _, _ = run(capsys, "choose", "--resume", "--disk", "20MB")
    assert code == 130
    state = read_state(tmp_path / "choice")
    assert sorted(state.measured) == ["test_resnet-32/onnxruntime-int8/1", "test_resnet-32/onnxruntime/1"]
    figures = state.measured["test_resnet-32/onnxruntime/1"]
    assert figures["latency_low"] <= figures["latency_ms"] <= figures["latency_high"]
    assert 1.2 < figures["disk_mb"] < 2
    assert state.measured["test_resnet-32/onnxruntime-int8/1"]["disk_mb"] < figures["disk_mb"]

    def counting(job, contest, candidates, *arguments):
        measured.append(candidates[0].entrant.name)
        return really(job, contest, candidates, *arguments)

    monkeypatch.setattr(whole, "measure", counting)
    code, out, err = run(capsys, "choose", "--resume", "--format", "json")
    assert code == 0, err
    assert measured == ["test_resnet-32", "test_efficientnet-32"]
    assert "round 1: 2 models, 2 epochs" in err
    assert "final: 1 model, 2 epochs, 2 seeds" in err
    state, answer = read_state(tmp_path / "choice"), json.loads(out)
    assert answer["file"].endswith(".onnx")
    assert Path(answer["file"]).is_file()
    assert answer["split"] == "test"
    assert [(len(r["names"]), r["epochs"], r["seeds"]) for r in state.rounds] == [(2, 2, 1), (1, 2, 2)]
    assert sorted(t["seed"] for t in state.trials.values()) == [0, 0, 1]  # the final goes on from the first seed's run
    scored = [path.parent.name for path in (tmp_path / "choice" / "trials").glob("*/scores.json")]
    assert scored == [Path(answer["run"]).name]  # test photos are for the winner only
    memory = [figures["memory_mb"] for figures in state.measured.values()]
    assert sum(m is not None for m in memory) == 2  # the fastest form of each
    assert all(20 < m < 400 for m in memory if m is not None)
    page = (tmp_path / "choice" / "choice.html").read_text("utf-8")
    loser = ({"test_resnet-32", "test_efficientnet-32"} - {answer["entrant"]}).pop()
    assert re.search(rf"<bdi>{loser}</bdi></td><td>in round 1</td><td>[\d.]+%", page)
    assert "The test photos took no part in the choice" in page
    assert math.isclose(answer["finalists"][0]["score"], sum(answer["finalists"][0]["seeds"]) / 2)
    assert (answer["figure"], answer["level"]) == ("top-1", [])

    code, table, _ = run(capsys, "choose", "--resume")
    assert code == 0
    assert f"use it: {answer['use']}" in table
    assert answer["entrant"] in table.splitlines()[1]
    assert len(measured) == 2
    assert "the training has begun" in run(capsys, "choose", "--resume", "--latency", "1s")[2]
    assert "choice holds a choice already" in run(capsys, "choose", *question)[2]


def test_a_limit_without_a_number_names_the_option():
    with pytest.raises(UserError, match="--disk small"):
        parse_limits(None, None, "small")


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("task", "head"), [("segmentation", "fpn"), ("detection", "atss")])
def test_segmenters_and_detectors(capsys, monkeypatch, request, tmp_path, task, head):
    recipe = request.getfixturevalue({"segmentation": "mask_recipe", "detection": "box_recipe"}[task])
    small = {"batch_size": 2, "workers": 0, "width": 64, "pretrained": "none", TASKS[task].contest.head: head}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmformer.choose.measure.SECONDS", 0.01)
    own = {"segmentation": "segment", "detection": "detect"}[task]
    monkeypatch.setitem(RECIPES, own, lambda: replace(recipe, **small, out="runs", name=None))
    models = ["--models", "test_resnet", "--image-sizes", 32, 64, "--threads", 1]
    arguments = ["--data", recipe.data, *models, "--forms", "fused", "onnxruntime", "--epochs", 1, "--seeds", 1]
    code, out, err = run(capsys, "choose", *arguments, "--hours", 5, "--format", "json")
    assert code == 0, err
    answer, state = json.loads(out), read_state(tmp_path / "choice")
    assert answer["figure"] == TASKS[task].headline
    assert {name.rpartition("-")[0] for name in state.costs} == {f"test_resnet-{head}"}
    assert len(state.measured) == 4
    assert not [figures for figures in state.measured.values() if "failed" in figures]
    assert Path(answer["file"]).exists()
    page = (tmp_path / "choice" / "choice.html").read_text("utf-8")
    assert f"{TASKS[task].headline} (95 % interval)" in page
