import json

import pytest
import torch

from glm_ext.tasks import Description, load_task
from glm_ext.tasks.head import ClassificationHead, Head


def records(n=8):
    words = [("cat", "entailment"), ("dog", "not_entailment")]
    return [
        {"premise": "the " * (i % 3), "hypothesis": w, "label": label}
        for i in range(n // 2)
        for w, label in words
    ]


def test_part_a_is_the_fields(tokenizer):
    task = load_task("head", tokenizer, description="rte", hidden_size=32)
    question = task.question({"premise": "the dog", "hypothesis": "the cat [SEP].", "label": "entailment"})
    ids = tokenizer.ids
    assert question.context == [
        ids.cls, *tokenizer.encode("the cat [SEP]"), ids.sep, *tokenizer.encode("the dog"), ids.eos,
    ]  # fmt: skip
    assert question.gold == {1} and task.name == "rte-head"


def test_logits_are_those_of_the_class_token_alone(glm, tokenizer):
    task = load_task("head", tokenizer, description="rte", model_config=glm.config)
    glm.eval(), task.module.eval()
    questions = [task.question(record) for record in records()]
    together = task.log_probs(glm, questions)
    for row, question in zip(together, questions, strict=True):
        n = len(question.context)
        positions = torch.tensor([[[*range(n)], [0] * n]])
        state = glm.hidden(torch.tensor([question.context]), positions, n)[:, 0]
        dense, output = task.module.dense, task.module.output
        expected = output(torch.tanh(dense(state))).log_softmax(1)[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_a_head_learns_with_its_model(glm, tokenizer, tmp_path):
    task = load_task("head", tokenizer, description="rte", model_config=glm.config)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    examples = task.examples(tmp_path / "a.jsonl")
    before = task.metrics(glm, examples)["accuracy"]
    optimizer = torch.optim.AdamW([*glm.parameters(), *task.module.parameters()], lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(glm, examples).backward()
        optimizer.step()
    assert before < 100 and task.metrics(glm, examples) == {"accuracy": 100.0}
    assert task.module.training and glm.training


def test_a_task_without_common_labels_has_no_head(tokenizer):
    with pytest.raises(ValueError, match="copa: a head needs labels that all examples share"):
        load_task("head", tokenizer, description="copa", hidden_size=32)
    with pytest.raises(ValueError, match="head: expected the option hidden_size"):
        load_task("head", tokenizer, description="rte")
    own = Description(name="t", pattern="{a} [MASK]", verbalizer={"x": "y", "z": "w"})
    assert Head(tokenizer, own, hidden_size=8).module.output.out_features == 2


def test_a_head_knows_its_labels():
    head = ClassificationHead(8, ["no", "maybe", "yes"])
    twin = ClassificationHead(8, ["no", "maybe", "yes"])
    state = head.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    twin.load_state_dict(state)
    torch.testing.assert_close(twin.output.weight, head.output.weight)
    for labels in (["yes", "maybe", "no"], ["no", "yes"]):
        message = f"labels of the head are no, maybe, yes, .* those of the task are {', '.join(labels)}"
        with pytest.raises(ValueError, match=message):
            ClassificationHead(8, labels).load_state_dict(state)


def test_a_head_that_does_not_know_its_labels_is_loaded_with_a_warning():
    head = ClassificationHead(8, ["no", "yes"])
    old = {name: value for name, value in head.state_dict().items() if name != "_extra_state"}
    twin = ClassificationHead(8, ["no", "yes"])
    with pytest.warns(UserWarning, match="does not tell its labels; taken to be no, yes, in this order"):
        twin.load_state_dict(old)
    torch.testing.assert_close(twin.dense.weight, head.dense.weight)
    assert "_extra_state" not in old
