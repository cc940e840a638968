"""The demo as a user runs it: the program's output, its picture, and its answers to bad options."""

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from rws_jax import RWS
from rws_jax import __main__ as demo


def run(*options, cwd):
    """As a user does, without the flags of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rws_jax", *options]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_demo_learns_and_draws(tmp_path):
    """A fifth of the default steps is enough to leave independent pixels (25.3 nats) far behind."""
    result = run("--steps", "600", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = {line[:28].strip(): line[28:] for line in result.stdout.splitlines()}
    assert float(lines["steps per second"]) > 0
    assert float(lines["held-out NLL"].split()[0]) < 21.0
    assert float(lines["independent pixels"].split()[0]) == pytest.approx(25.26, abs=0.01)
    assert (tmp_path / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert "nats/image, ESS" in result.stderr


def test_speed_leaves_out_what_was_compiled():
    """A first block of 50 steps, and a last one of fewer; of 30 steps, and of 99, nothing else is left."""
    assert demo.speed([9.0, 1.0, 0.5, 9.0], 170) == "67"
    assert demo.speed([9.0, 1.0], 100) == "50"
    for seconds, steps in (([9.0], 30), ([9.0, 8.0], 99)):
        assert demo.speed(seconds, steps) == "not measured, which takes 100 steps at least"


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    """Wherever it comes, the bar stays as it is, and there is no traceback."""

    def block(state, keys):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["rws_jax", "--out", str(tmp_path)])
    monkeypatch.setattr(demo.jax, "jit", lambda function: block)
    monkeypatch.setattr(demo.rws_jax, "make_step", lambda *_, **__: RWS(lambda *_: None, None, None))
    with pytest.raises(SystemExit) as error:
        demo.main()
    assert error.value.code == 130
    bar, *rest = capsys.readouterr().err.split("\n")
    assert "compiling: " in bar
    assert rest == ["python -m rws_jax: interrupted", ""]


def test_split_is_fixed_and_binary():
    train, test = demo.load_digits()
    assert train.shape == (1400, 64)
    assert test.shape == (397, 64)
    assert set(jnp.unique(train).tolist()) == {0.0, 1.0}
    assert float(train.sum()) == 28927.0


BAD = {
    "--steps=0": "argument --steps: expected an integer of at least 1, got '0'",
    "--steps=many": "argument --steps: expected an integer of at least 1, got 'many'",
    "--num-particles=1": "argument --num-particles: expected an integer of at least 2, got '1'",
    "--insomnia=1.5": "argument --insomnia: expected a number from 0 to 1, got '1.5'",
    "--insomnia=nan": "argument --insomnia: expected a number from 0 to 1, got 'nan'",
    "--seed=-1": "argument --seed: expected an integer from 0 to 4294967295, got '-1'",
    "--colour": "unrecognized arguments: --colour",
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_end_with_one_line_and_exit_code_2(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rws_jax", option])
    with pytest.raises(SystemExit) as error:
        demo.main()
    assert error.value.code == 2
    assert capsys.readouterr().err == f"python -m rws_jax: error: {BAD[option]}\n"


def test_an_output_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["rws_jax", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit) as error:
        demo.main()
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m rws_jax: error: argument --out: cannot make the folder")
    assert message.count("\n") == 1
