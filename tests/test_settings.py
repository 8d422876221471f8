"""What a script's command line may say, and what it is told where it is wrong."""

from __future__ import annotations

import pytest

from keodrift.errors import ArgumentError, OptionError, RunError
from keodrift.settings import exit_status, read_settings

DEFAULTS = {
    "part": "all",
    "parts": ["a", "b"],
    "sizes": [[2, 2]],
    "taus": [0.1],
    "steps": 100,
    "name": None,
    "toy": {"drift": {"tau": 0.1}, "steps": 50},
}
QUICK = {"steps": 5, "toy": {"steps": 2}}
CHOICES = {"part": ["all", "a"], "parts": ["a", "b"]}


def read(*words):
    return read_settings(words, DEFAULTS, quick=QUICK, choices=CHOICES)


def test_words_change_defaults():
    assert read() == DEFAULTS | {"quick": False}
    settings = read("taus=[1,1e-3]", "toy.drift.tau=2", "name=high", "sizes=[[8,2],[2,32]]")
    assert settings.taus == [1.0, 1e-3] and isinstance(settings.taus[0], float)
    assert settings.toy == {"drift": {"tau": 2.0}, "steps": 50}
    assert settings.name == "high" and settings.sizes == [[8, 2], [2, 32]]
    assert DEFAULTS["toy"] == {"drift": {"tau": 0.1}, "steps": 50}


def test_defaults_may_be_a_yaml_file(tmp_path):
    (tmp_path / "defaults.yaml").write_text("name: ???\nfolder: outputs/${name}\nsteps: 10\n")
    settings = read_settings(["name=mine", "steps=3"], tmp_path / "defaults.yaml")
    assert settings.folder == "outputs/mine" and settings.steps == 3


def test_quick_replaces_sizes_and_a_word_replaces_quick():
    settings = read("toy.steps=7", "quick=true")
    assert settings.steps == 5 and settings.toy.steps == 7 and settings.toy.drift.tau == 0.1
    with pytest.raises(OptionError, match="quick: got True, needs another key"):
        read_settings(["quick=true"], DEFAULTS)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quick", "quick: got no value, needs the form key=value."),
        ("--steps", "--steps: got no value"),
        ("=3", "=3: got no value"),
        ("stepz=3", "stepz: got 3, needs another key: part, parts"),
        ("toy.drift.colour=red", "toy.drift.colour: got 'red', needs another key: tau"),
        ("part=magic", "part: got 'magic', needs one of all, a."),
        ("parts=[a,c]", r"parts: got \['a', 'c'\], needs some of a, b."),
        ("steps=many", "steps: got 'many', needs a value like 100."),
        ("steps=true", "steps: got True"),
        ("quick=perhaps", "quick: got 'perhaps'"),
        ("taus=0.1", r"taus: got 0.1, needs a value like \[0.1\]"),
        ("taus=[cold]", "taus: got 'cold', needs a value like 0.1."),
        ("taus=[0.1", "settings: got 'taus="),
        ("steps=${nothing}", "settings: got 'steps="),
        ("toy=3", "toy: got 3"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(word, said):
    with pytest.raises(OptionError, match=said) as caught:
        read(word)
    assert "\n" not in str(caught.value)


def test_the_exit_status_says_whose_mistake_it_was(capsys):
    def fail(error):
        raise error

    assert exit_status("it", lambda: None) == 0 and exit_status("it", lambda: 3) == 3
    assert exit_status("it", lambda: fail(ArgumentError("tau", -1, "more"))) == 2
    assert exit_status("it", lambda: fail(RunError("cell 3: lost"))) == 1
    assert exit_status("it", lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.splitlines() == [
        "it: tau: got -1, needs more.",
        "it: cell 3: lost",
        "it: interrupted; what is finished is kept.",
    ]


def test_what_the_system_refuses_ends_in_one_sentence_with_the_file(tmp_path, capsys):
    missing = tmp_path / "gone"
    assert exit_status("script", lambda: len(missing.read_text())) == 1
    said = capsys.readouterr().err
    assert said.startswith("script: ") and str(missing) in said and said.count("\n") == 1
