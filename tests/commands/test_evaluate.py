"""The options of scripts/evaluate.py are the fields of the request."""

import dataclasses

from imagen_jax.commands.evaluate import parser
from imagen_jax.evaluation.request import EvaluationRequest


def test_each_option_is_a_field_of_the_request():
    options = {action.dest for action in parser()._actions} - {"help", "folders"}
    assert options == {field.name for field in dataclasses.fields(EvaluationRequest)}
    assert EvaluationRequest(**vars(parser().parse_args([]))) == EvaluationRequest()


def test_values_by_point_and_by_stage():
    options = parser().parse_args(
        ["--guidance", "1", "2,8", "--metrics", "fid, clip", "--steps", "4,2"]
    )
    assert options.guidance == [1.0, (2.0, 8.0)]
    assert (options.metrics, options.steps) == (("fid", "clip"), [4, 2])
