"""The benchmark: its cases, what it does with sides that fail, and its table."""

import asyncio
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.benchmark import cases, input, runner, table, trace
from imagen_jax.benchmark.ours import Watch, make_stage
from imagen_jax.commands import benchmark
from imagen_jax.models.t5 import T5_V1_1, T5Config

# A side that needs no library of ours: each call takes as long as `spec` says.
SIDE = """
import os, sys, time
from imagen_jax.benchmark.child import Work, serve

def build(spec):
    print("a library's greeting")
    if spec["does"] == "fails":
        raise ValueError("there is no such network\\nand a dump follows")
    if spec["does"] == "crashes":
        os.write(2, b"Fatal: out of luck\\n")
        os._exit(7)
    if spec["does"] == "hangs":
        time.sleep(60)
    facts = {"batch": 4, "parameters": spec.get("parameters", 10)}
    facts |= {"flops_per_image": 3.0} if spec["side"] == "imagen_jax" else {}
    return Work(lambda: time.sleep(0.4), 4, facts, phases=lambda: {"trace": 0.5, "compile": 0.25})

serve(build)
"""


@pytest.fixture
def side(tmp_path, monkeypatch) -> str:
    """The name of a module that is a side."""
    (tmp_path / "a_side.py").write_text(SIDE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_side"


def measure(module: str, tmp_path: Path, turns: bool, limit: float, **does: str) -> list[dict]:
    """The results of sides of one case."""
    plan = runner.Plan(rounds=2, limit=limit, parallel=3, turns=turns, caches=tmp_path)
    jobs = [
        runner.Job("if_train", name, sys.executable, module, {"does": what, "side": name})
        for name, what in does.items()
    ]

    async def collect() -> list[dict]:
        return [result async for result in runner.measure(jobs, plan)]

    return asyncio.run(collect())


def test_sides_that_fail_are_lines_and_end_nothing(side, tmp_path):
    does = {"first": "fails", "second": "crashes", "imagen_jax": "works"}
    failed, crashed, worked = measure(side, tmp_path, True, 30.0, **does)
    assert failed["error"] == "ValueError: there is no such network"
    assert crashed["error"] == "its process ended with 7 (setting up): Fatal: out of luck"
    assert 0 < worked["images_per_second"] < 4 / 0.4
    assert len(worked["rounds"]) == 2
    first = worked["first"]
    assert first["total"] == pytest.approx(sum(first.values()) - first["total"])
    assert "error: ValueError" in table.line(failed)
    assert "images/s" in table.line(worked)


def test_a_side_that_hangs_is_ended_at_its_limit(side, tmp_path):
    hung, worked = measure(side, tmp_path, False, 10.0, hangs="hangs", imagen_jax="works")
    assert hung["error"] == "not done within 10 s (setting up)"
    assert "error" not in worked


def test_peers_are_compared_with_our_side():
    first = {"case": "if_train", "side": "imagen_jax", "parameters": 100, "flops_per_image": 2e9}
    first |= {"peak_flops": 1e12, "images_per_second": 100.0}
    peer = {"case": "if_train", "side": "diffusers", "parameters": 100, "images_per_second": 50.0}
    other = peer | {"parameters": 101}
    for result in (first, peer, other):
        runner.complete(result, first)
    assert (first["mfu"], peer["mfu"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert other["error"] == "101 parameters; imagen_jax has 100"
    loose = [each | {"case": "unet_32"} for each in (other, first)]
    loose[0].pop("error")
    runner.complete(*loose)
    assert "error" not in loose[0]


def test_reports_of_several_runs_are_one_table():
    ours = [{"case": name, "side": "imagen_jax", "parameters": 7} for name in ("if_train", "sr256")]
    ours[0] |= {"flops_per_image": 3e9, "peak_flops": 1e12, "images_per_second": 8.0}
    peer = {"case": "if_train", "side": "diffusers", "parameters": 7, "images_per_second": 4.0}
    failed = {"case": "if_sample", "side": "diffusers", "error": "a | b"}
    reports = [{"about": {"device": "GPU"}, "results": each} for each in (ours, [failed, peer])]
    shown = table.markdown(benchmark.merged(reports)).splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in shown if row[:1] == "|"]
    assert {len(row) for row in rows} == {11}
    assert [row[:2] for row in rows[2:]] == [
        ["if_train", "imagen_jax"],
        ["if_train", "diffusers"],
        ["sr256", "imagen_jax"],
        ["if_sample", "diffusers"],
    ]
    assert rows[3][4:7] == ["4.0", "0.50", "12 GFLOP/s, 1.2% MFU"]
    assert rows[5][2] == "a / b"


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"plan.json is not what imagen-jax benchmark --out"):
        benchmark.main(["--table", str(tmp_path / "plan.json")])


def test_a_side_that_no_case_has_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit, match="no case has a side diffusers; peers run with --peers"):
        benchmark.main(["--tiny", "--case", "if_train", "--side", "diffusers"])


def test_cases_suit_the_device_and_the_peers():
    on_cpu, on_gpu = (cases.default_cases(*device) for device in (("cpu", 1), ("gpu", 1)))
    assert "if_train" in on_cpu
    assert "if_train" in on_gpu
    assert "t5_xl" not in on_cpu
    assert not {"features", "devices"} & set(on_gpu)
    assert "devices" in cases.default_cases("gpu", 8)
    sides = [
        [job.side for job in runner.make_jobs(name, "full", *given)]
        for name, *given in (
            ("if_train", "gpu", "python"),
            ("if_train", "gpu", None),
            ("unet_32", "gpu", "python"),
            ("unet_32", "cpu", "python"),
        )
    ]
    assert sides == [
        ["imagen_jax", "diffusers", "diffusers compiled"],
        ["imagen_jax"],
        ["imagen_jax"],
        ["imagen_jax", "imagen-pytorch"],
    ]


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("size", cases.SIZES)
def test_every_case_describes_work_that_exists(name: str, size: str):
    case = cases.CASES[name]
    for own in case.sides.values():
        spec = json.loads(json.dumps(case.values(size) | own))
        assert spec["batch"] >= 1 if case.kind != "generate" else spec["images"] >= 1
        if "text" in spec:
            assert make_stage(spec).text_width == spec["text"][1]


def test_the_encoders_are_those_of_t5():
    for name in ("small", "base", "xl"):
        assert T5Config(**cases.CASES[f"t5_{name}"].values("full")["encoder"]) == T5_V1_1[name]


@pytest.mark.parametrize("side", ["sent", "on the device"])
def test_a_set_in_memory_is_taken_by_the_trainers_own_iterator(side: str):
    case = cases.CASES["memory"]
    work = input.memory(case.values("tiny") | case.sides[side])
    assert work.images == input.BATCHES * 16
    assert work.timed()["seconds"] > 0


def test_time_is_counted_once_where_one_phase_is_in_another():
    heard = (
        (3.0, "/jax/core/compile/jaxpr_trace_duration", 1.0),  # 2 to 3, within the next one
        (4.0, "/jax/core/compile/jaxpr_trace_duration", 4.0),
        (6.0, "/jax/core/compile/backend_compile_duration", 2.0),
        (8.0, "/jax/core/compile/jaxpr_to_mlir_module_duration", 3.0),  # 5 to 8
        (9.0, "/another/event", 5.0),
    )
    clock = iter([ends for ends, _, _ in heard])
    watch = Watch(lambda: next(clock))
    for _, event, seconds in heard:
        watch.heard(event, seconds)
    assert watch.phases() == {"trace": 4.0, "lower": 2.0, "compile": 2.0}


def test_a_trace_is_summed_by_kind(tmp_path):
    def event(name: str, dur: float, tid: int = 1, pid: int = 1, **args):
        return {"ph": "X", "name": name, "dur": dur, "pid": pid, "tid": tid, "args": args}

    named = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "/host:CPU"}},
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "Stream #1"}},
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": 2, "args": {"name": "XLA Modules"}},
    ]
    events = [
        event("loop_convert_fusion.12", 1.0),
        event("cudnn_conv_fprop_7", 5.0),
        event("flash_fprop_sm90", 2.0),
        event("jit_step", 8.0, tid=2),
        event("dot.3", 2.0, pid=2, hlo_op="dot.3"),
        event("while.1", 9.0, pid=2, hlo_op="while.1"),
        event("python", 9.0, pid=2),
    ]
    with gzip.open(tmp_path / "a.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": named + events}, file)
    found = trace.top(tmp_path)
    kinds = {"convolution": 0.5, "attention": 0.2, "matrix product": 0.2, "fusion": 0.1}
    assert found["kinds"] == pytest.approx(kinds)
    assert found["seconds"] == pytest.approx(10e-6)
    assert "50.0%  convolution" in table.profile(found)
    with pytest.raises(ValueError, match="no profiler trace"):
        trace.top(tmp_path / "empty")


def test_the_networks_are_measured_where_only_what_they_need_is_installed():
    absent = dict.fromkeys(("grain", "tensorboardX", "tensorflow", "portpicker", "matplotlib"))
    code = f"import sys; sys.modules.update({absent}); import imagen_jax.benchmark.ours"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_case_end_to_end_its_file_and_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "speed.json"
    given = ["--tiny", "--case", "devices", "--side", "1 device"]
    given += ["--rounds", "1", "--profile", str(tmp_path / "trace"), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        benchmark.main(given)
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    report = json.loads(out.read_text())
    (result,) = report["results"]
    first = result["first"]
    assert first["compile"] > 0
    assert first["total"] == pytest.approx(sum(first.values()) - first["total"])
    speed = result["flops_per_image"] * result["images_per_second"]
    assert result["flops_per_second"] == pytest.approx(speed)
    assert sum(result["profile"]["kinds"].values()) == pytest.approx(1)
    benchmark.main(["--table", str(out)])
    shown = capsys.readouterr().out
    assert "| devices | 1 device |" in shown
    heads, *rows = (line for line in shown.splitlines() if line.startswith("|"))
    assert {row.count("|") for row in rows} == {heads.count("|")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "library"),
    [("if_train", "diffusers"), ("if_sample", "diffusers"), ("t5_base", "transformers")],
)
def test_peers_have_the_same_network(case, library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "speed.json"
    given = ["--tiny", "--case", case, "--side", "imagen_jax", "--side", library]
    with pytest.raises(SystemExit) as ended:
        benchmark.main([*given, "--peers", sys.executable, "--rounds", "1", "--out", str(out)])
    ours, theirs = json.loads(out.read_text())["results"]
    assert ended.value.code == 0, (ours, theirs)
    assert ours["parameters"] == theirs["parameters"]
    assert ours["flops_per_image"] == theirs["flops_per_image"]
