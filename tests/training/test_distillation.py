"""What a student is taught, and runs that teach it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fine_tuning import images, save, tiny_model
from tiny_cascade import CASCADE, random_conditions

from imagen_jax import load_model
from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.cascade.sample import InjectedNoise, sample_stage
from imagen_jax.cascade.stage import Conditions, apply_network
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.diffusion.flow_map import jump
from imagen_jax.diffusion.process import convert
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models import TrainingParams
from imagen_jax.pipeline.joining import add_guides
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.codec import to_dict
from imagen_jax.storage.trees import flatten
from imagen_jax.training import batches, build, inherit, start
from imagen_jax.training.distillation import make_target, step_times
from imagen_jax.training.loop import train
from imagen_jax.training.metrics import read_losses
from imagen_jax.training.run_config import DistillConfig, read_config
from imagen_jax.training.workdir import held
from tests.training.test_config import tiny

SAMPLING = Sampling("ddim", steps=8, guidance=2.5, threshold="static")
STEPS = {"guidance": [], "progressive": [1], "flow_map": [1, 2, 4]}
ROWS, SHAPE = 3, (3, 8, 8, 3)


@pytest.fixture(scope="module")
def teacher():
    model = tiny_model()
    return Pipeline(replace(model.cascade, sampling=(SAMPLING,)), model.params, name="tiny")


@pytest.fixture(scope="module")
def directory(teacher, tmp_path_factory) -> str:
    return save(teacher, tmp_path_factory.mktemp("teacher"))


def student_config(directory: str, kind: str = "flow_map", distill=None, **overrides):
    """The raw config of a student that leaves its network to its teacher."""
    distill = {"teacher": directory, "kind": kind, "steps": STEPS[kind]} | (distill or {})
    overrides = {"num_steps": "6", "text__trainable": "False"} | overrides
    raw = to_dict(tiny(data__source="memory", **overrides))
    raw |= {"stage": {"name": "tiny"}, "distill": distill}
    return inherit.completed(raw, lambda source: load_model(source).cascade)


def fresh(config):
    """A student's parameters at the start of its run."""
    return start.read_start(config, None, make_mesh(MeshConfig(1), jax.devices()[:1]))["network"]


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    rng = np.random.default_rng(4)
    given = random_conditions(ROWS)
    values = rng.normal(size=given.text.values.shape).astype(np.float32)
    null = jax.tree.map(lambda leaf: np.repeat(leaf, ROWS, 0), given.null)
    return jax.tree.map(jnp.asarray, Conditions(given.text._replace(values=values), null))


def taught(config, teacher, own, conditions, x_t, t, s):
    target = make_target(config.distill, config.stage)

    @jax.jit
    def called(own, weights, x_t, times):
        null = jax.tree.map(lambda leaf: leaf[:1], conditions.null)  # one for all, as a run has it
        return target(TrainingParams(own), weights, x_t, times, {"text": conditions.text}, null)

    times = tuple(jnp.full(ROWS, time, jnp.float32) for time in (t, s))
    return called(own, teacher.params["tiny"], x_t, times)


def noise(seed: int = 0):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def relative(found, wanted) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.4, 0.9])
def test_steps_are_of_one_length_and_longer_ones_come_later(progress):
    config = DistillConfig("teacher", steps=(1, 2, 4))
    drawn = set()
    for seed in range(40):
        key = jax.random.key(seed)
        times = jax.random.uniform(key, (16,))
        t, s = step_times(config, key, times, jnp.float32(progress))
        (count,) = set(np.round(1 / np.asarray(t - s), 4))
        drawn.add(int(count))
        assert np.all((np.asarray(s) <= times) & (times < np.asarray(t)))
        np.testing.assert_allclose(t * count, np.round(t * count), atol=1e-5)
    assert drawn == {0.0: {4}, 0.2: {4, 2}, 0.4: {4, 2, 1}, 0.9: {4, 2, 1}}[progress]


def test_guidance_is_taught_in_one_evaluation(teacher, directory, conditions):
    config = read_config(student_config(directory, "guidance"))
    assert config.stage == teacher.cascade.stages[0]
    stage, x_t, t = config.stage, noise(), jnp.full(ROWS, 0.6)
    with_text, without = (
        apply_network(stage, teacher.params["tiny"], x_t, t, text=text)
        for text in (conditions.text, conditions.null)
    )
    guided = SAMPLING.guidance * with_text + (1 - SAMPLING.guidance) * without
    x0 = convert(guided, x_t, stage.schedule.logsnr(t), "v", "x0", stage.schedule)
    found = taught(config, teacher, teacher.params["tiny"], conditions, x_t, 0.6, 0.6)
    assert relative(found, jnp.clip(x0, -1, 1)) < 1e-5


@pytest.mark.parametrize("kind", ["progressive", "flow_map"])
def test_a_step_lands_where_shorter_ones_do(teacher, directory, conditions, kind):
    distill = {"teacher_steps": 3} if kind == "progressive" else {"steps": [1, 2]}
    config = read_config(student_config(directory, kind, distill))
    own = fresh(config)
    own = jax.tree.map(lambda leaf: leaf + 0.1, own)  # so that the target time counts
    stage, x_t = config.stage, noise()
    x0 = taught(config, teacher, own, conditions, x_t, 1.0, 0.0)
    logsnrs = (stage.schedule.logsnr(jnp.full(ROWS, time)) for time in (1.0, 0.0))
    found = jump(x_t, x0, *logsnrs, stage.schedule)
    # Three steps of the guided teacher, or two of the student, by the samplers of the pipeline.
    by, params, changes = teacher.cascade.stages[0], teacher.params["tiny"], {"steps": 3}
    if kind == "flow_map":
        by, params, changes = stage, own, {"steps": 2, "guidance": 1.0}
    wanted = sample_stage(
        by, params, InjectedNoise(x_t[None]), conditions, replace(SAMPLING, **changes)
    )
    assert relative(np.clip(found, -1, 1), wanted) < 1e-4


def test_no_gradient_passes_into_what_is_taught(teacher, directory, conditions):
    config = read_config(student_config(directory))
    own = fresh(config)
    total = lambda own: taught(config, teacher, own, conditions, noise(), 1.0, 0.5).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(total)(own)
    assert np.isfinite(value)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_student_starts_as_its_teacher(teacher, directory, conditions):
    config = read_config(student_config(directory))
    own = fresh(config)
    added = flatten(own).keys() - flatten(teacher.params["tiny"]).keys()
    assert {path.split("/")[-2] for path in added} == {"target_in", "target_out"}
    x_t, t = noise(), jnp.full(ROWS, 0.7)
    found = apply_network(config.stage, own, x_t, t, t / 2, text=conditions.text)
    plain = teacher.cascade.stages[0]
    wanted = apply_network(plain, teacher.params["tiny"], x_t, t, text=conditions.text)
    assert relative(found, wanted) < 1e-6


def run(raw, workdir, shape: tuple[int, int, int] = (1, 1, 1)) -> None:
    raw = raw | {"mesh": dict(zip(("data", "fsdp", "tensor"), shape, strict=True))}
    devices = jax.devices()[: int(np.prod(shape))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args: devices)
        patch.setattr(batches, "make_source", lambda config: images())
        with held(workdir):
            plan = start.make_plan(raw)
            train(plan.config, start.open_run(plan, workdir))


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device(directory, tmp_path):
    raw = student_config(directory, distill={"steps": [1, 2]})
    run(raw, tmp_path / "one")
    run(raw, tmp_path / "all", (2, 2, 2))
    losses = read_losses(tmp_path / "one")
    assert len(losses) == 6
    assert load_model(tmp_path / "one").cascade.stages[0].is_flow_map
    for step, loss in read_losses(tmp_path / "all").items():
        np.testing.assert_allclose(loss, losses[step], rtol=1e-3)


def test_a_student_of_its_own_network_learns(directory, tmp_path):
    raw = to_dict(tiny(data__source="memory", text__trainable="False", num_steps="30"))
    raw["text"]["init_from"] = directory
    raw["optimizer"]["learning_rate"] = 1e-2
    raw["distill"] = {"teacher": directory, "kind": "guidance"}
    raw = inherit.completed(raw, lambda source: load_model(source).cascade)
    assert raw["init_from"] is None
    run(raw, tmp_path)
    student = load_model(tmp_path)
    assert student.cascade.sampling[0] == replace(SAMPLING, guidance=1.0)
    losses = list(read_losses(tmp_path).values())
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8]), losses


def test_a_flow_map_is_sampled_without_guidance_by_ddim(teacher, directory):
    raw = student_config(directory)
    config = read_config(raw)
    cascade = build.make_cascade(config, build.make_text_encoder(config))
    assert cascade.sampling[0] == replace(SAMPLING, steps=4, guidance=1.0)
    params = {"tiny": fresh(config), TEXT_ENCODER: teacher.params[TEXT_ENCODER]}
    student = Pipeline(cascade, params, name="student")
    settings = {"seed": 1, "num_images": 1, "progress": False}
    assert student.generate_images("no 3", **settings)[0].size == (8, 8)
    with pytest.raises(ValueError, match="negative_prompt 'a' changes nothing"):
        student.generate_images("no 3", negative_prompt="a", **settings)
    with pytest.raises(ValueError, match="spacing must be 'time', not 'karras'"):
        student.generate_images("no 3", spacing="karras", **settings)
    with pytest.raises(ValueError, match="neither guides nor is guided"):
        add_guides(student, [teacher])
    with pytest.raises(ValueError, match=r"guidance is part of the network.*not 3"):
        student.generate_images("no 3", guidance=3, **settings)
    with pytest.raises(ValueError, match="sampler must be ddim or euler with eta 0, not ddpm"):
        student.generate_images("no 3", sampler="ddpm", **settings)


@pytest.mark.parametrize(
    ("kind", "distill", "message"),
    [
        ("flow_map", {"steps": [1, 3]}, r"distill.steps \[1, 3\] do not suit kind 'flow_map'"),
        ("flow_map", {"steps": []}, "numbers of which each is half of the next"),
        ("progressive", {"steps": [2, 4]}, "one number, such as"),
        ("guidance", {"steps": [4]}, "it takes none"),
        ("flow_map", {"teacher_steps": 6}, "teacher_steps 6 must be a multiple"),
        ("flow_map", {"kind": "mean_flow"}, "mean_flow"),
    ],
)
def test_what_makes_no_sense_is_refused(directory, kind, distill, message):
    with pytest.raises(ValueError, match=message):
        read_config(student_config(directory, kind, distill))


def test_a_teachers_grid_is_not_the_students(teacher, tmp_path):
    odd = replace(SAMPLING, spacing="karras", eta=1.0)
    directory = save(Pipeline(replace(teacher.cascade, sampling=(odd,)), teacher.params), tmp_path)
    config = read_config(student_config(directory))
    assert config.distill.sampling == odd
    assert config.sample.sampling == replace(SAMPLING, steps=4, guidance=1.0)


def test_of_several_stages_the_first_is_taught():
    config = {"distill": {"teacher": "there", "steps": [1]}, "stage": {"name": None}}
    found = inherit.completed(config, lambda source: CASCADE)
    assert found["stage"]["name"] == found["distill"]["stage"]["name"] == "base"
    assert found["stage"]["network"]["target_time"] is True


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lora": "{'rank': 2}"}, "lora an adapter alone"),
        ({"optimizer__keep_zeros": "True"}, "would keep network.target_time without effect"),
    ],
)
def test_what_does_not_go_with_distillation_is_refused(directory, overrides, message):
    with pytest.raises(ValueError, match=message):
        read_config(student_config(directory, **overrides))


def test_a_text_encoder_is_not_trained_along(directory):
    with pytest.raises(ValueError, match=r"text\.trainable must be False"):
        read_config(student_config(directory, text__trainable="True"))
