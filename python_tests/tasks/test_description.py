import re

import pytest

from glm_ext.tasks import Description


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pattern": "no blank"},
            r"t: pattern: expected one of \[MASK\], \[sMASK\], \[gMASK\], got 'no blank'",
        ),
        ({"pattern": "[MASK] [MASK]"}, "t: pattern: expected one of"),
        ({"verbalizer": {}}, "t: verbalizer, choices: expected one of them, got []"),
        ({"choices": ["{a}"]}, "t: verbalizer, choices: expected one of them"),
        ({"verbalizer": {"x": " "}}, r"t: verbalizer\[x\]: expected a text"),
        ({"metrics": ["acuracy"]}, "t: metrics: expected some of accuracy, .* got 'acuracy'"),
        ({"metrics": []}, "t: metrics: expected at least one"),
        (
            {"metrics": ["f1"], "verbalizer": {"x": "1", "y": "2", "z": "3"}},
            "t: metrics: expected one for more",
        ),
        ({"metrics": ["f1"], "verbalizer": {}, "choices": ["*a"]}, "t: metrics: expected one for more"),
        ({"metrics": ["spans"], "primary": "f1a"}, "t: primary: expected one of f1, em, got 'f1a'"),
        ({"verbalizer": {0: "bad"}}, "t: verbalizer: expected labels that are texts, got 0"),
        ({"verbalizer": {}, "choices": ["*a", "{b}"]}, r't: choices: expected \["\*field"\] alone'),
        ({"verbalizer": {}, "choices": ["{a!s}", "{b}"]}, "pattern: expected {a} or {a:form}, got a!s"),
        ({"shorten": ["b"]}, "t: shorten: expected fields of the pattern, got 'b'"),
    ],
)
def test_descriptions_are_checked(changes, message):
    settings = {"name": "t", "pattern": "{a} [MASK]", "verbalizer": {"x": "y"}}
    with pytest.raises(ValueError, match=message.replace("[]", r"\[\]")):
        Description(**(settings | changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patern: x", "there is no key 'patern'; did you mean 'pattern'?"),
        ("- 1", "expected keys and values, got list"),
        ("name: x", "expected a pattern"),
        ("{", "not YAML"),
        ("pattern: no", "pattern: expected one of"),
        ('pattern: "[MASK]"\nchoices: "*a"', "choices: expected a list of texts, got '*a'"),
        ("pattern: x\nmetrics: [[accuracy]]", "metrics: expected a list of texts, got [['accuracy']]"),
        ("pattern: x\nshorten: [[text]]", "shorten: expected a list of texts, got [['text']]"),
        ("pattern: x\nlabel: [label]", "label: expected a text, got ['label']"),
        ("pattern: x\ngroup: [label]", "group: expected a text, got ['label']"),
        ("pattern: x\nprimary: [f1]", "primary: expected a text, got ['f1']"),
        ('pattern: x\nchoices: [["{a}"]]', "choices: expected a list of texts, got [['{a}']]"),
        ("pattern: x\nchoices: [{a: b}]", "choices: expected a list of texts, got [{'a': 'b'}]"),
        ("[" * 100_000, "YAML that nests too deep"),
    ],
)
def test_bad_descriptions_are_named(write, text, message):
    with pytest.raises(ValueError, match=f"t.yaml: .*{re.escape(message)}"):
        Description.load(write("t.yaml", text))


@pytest.mark.parametrize(("metric", "primary"), [("answer_sets", "f1a"), ("spans", "f1"), ("f1", "f1")])
def test_the_first_value_of_the_first_metric_decides(metric, primary):
    settings = {"name": "t", "pattern": "[MASK]", "verbalizer": {"x": "1", "y": "2"}}
    assert Description(**settings, metrics=[metric, "accuracy"]).primary == primary
    assert Description(**settings, metrics=[metric, "accuracy"], primary="accuracy").primary == "accuracy"


def test_a_description_is_named_where_it_is_not_utf8(tmp_path):
    (tmp_path / "t.yaml").write_bytes(b'name: x\npattern: "\xff [MASK]"')
    with pytest.raises(ValueError, match=r"t.yaml, line 2: not UTF-8"):
        Description.load(tmp_path / "t.yaml")
