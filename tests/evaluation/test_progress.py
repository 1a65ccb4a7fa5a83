"""Progress in a log: whole lines, now and then."""

from imagen_jax.evaluation.progress import image_bar


def test_a_log_gets_whole_lines(capsys):
    with image_bar("features", 4) as bar:
        for _ in range(4):
            bar.update(1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line[:13] for line in lines] == ["features: 0/4", "features: 4/4"]
    with image_bar("nothing", 0):
        pass
    assert not capsys.readouterr().err
