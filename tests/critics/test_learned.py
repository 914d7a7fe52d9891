import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import milr
from milr.critics import naming
from milr.critics.learned import read_head, shipped_head
from milr.drafts import Ask, Order, Sample, Task, UserError
from milr.lab import train_critic as training
from milr.lab.curriculum import is_test_prompt, training_items, unseen_items
from milr.lab.train_critic import CriticRecipe, train_critic
from milr.statistics import auc
from rounding import of_model


@pytest.fixture(scope="module")
def lab():
    return milr.load("lab")


@pytest.fixture(scope="module")
def drafts(lab):
    items = unseen_items(96, 953)
    orders = [Order(item.prompt, Ask(Sample(), Sample()), number) for number, item in enumerate(items)]
    return [drawn.image for drawn in lab.draw(orders)], [Task(item.prompt) for item in items]


def test_training_prompts_are_not_test_prompts():
    assert not any(is_test_prompt(item.prompt) for item in training_items(40, 1))


def test_the_logistic_fit_finds_the_direction_that_decides():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2000, 6, generator=generator) * torch.tensor([1, 10, 1, 1, 1, 0.1]) + 3
    truth = (states - 3) @ torch.tensor([1.0, -0.2, 0, 0, 0, 0]) + 0.5
    right = torch.rand(2000, generator=generator) < truth.sigmoid()
    weight, bias = training._fit(states, right, 1e-4)
    assert torch.allclose(weight[:5], torch.tensor([1.0, -0.2, 0, 0, 0]), atol=0.15)
    assert abs(float(weight @ torch.full((6,), 3.0) + bias) - 0.5) < 0.2


def test_a_head_is_trained_killed_and_resumed(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PART", 8)
    recipe, out, told = CriticRecipe(prompts=16, drafts=2, seed=5), tmp_path / "head.safetensors", []
    real, drawn = training._draw, []

    def killed(jobs, *rest):
        drawn.append(jobs)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(jobs, *rest)

    monkeypatch.setattr(training, "_draw", killed)
    with pytest.raises(KeyboardInterrupt):
        train_critic(lab, out, recipe, told.append)
    assert not out.exists()
    card = train_critic(lab, out, recipe, told.append)
    assert [len(jobs) for jobs in drawn] == [8] * 5  # the first part was not drawn again
    assert card["drafts_judged"] == 32
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["card"]) == card
    again = train_critic(lab, tmp_path / "again" / "head.safetensors", recipe, told.append)
    assert again["auc_held_back"] == card["auc_held_back"]
    with pytest.raises(UserError, match="drafts of other settings"):
        train_critic(lab, out, CriticRecipe(prompts=16, drafts=2, seed=6), told.append)
    critic = naming.make(f"learned:{out}", lab)
    assert critic.name == f"learned:{out}"


def test_scores_are_those_of_the_head_alone_and_in_batches(lab, drafts, tmp_path):
    weight, bias = torch.linspace(-1, 1, 256), torch.tensor(0.25)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    images, tasks = drafts[0][:5], drafts[1][:5]
    critic = naming.make(f"learned:{tmp_path / 'head.safetensors'}", lab)
    scores = [score.value for score in critic.score(images, tasks)]
    alone = [critic.score([image], [task])[0].value for image, task in zip(images, tasks, strict=True)]
    assert scores == pytest.approx(alone, abs=1e-4)
    states = lab.understand(images, [f"Does this picture show {task.prompt}?" for task in tasks])
    assert scores == pytest.approx((states @ weight + bias).sigmoid().tolist(), abs=1e-4)


def test_the_states_are_those_that_answer(lab, drafts):
    images, questions = drafts[0][:3], ["Is there a fox?", "Does this picture show a red car?", "Are there two dogs?"]
    chances = lab.text_logits(lab.understand(images, questions)).softmax(-1)
    yes, no = (chances[:, sorted(words)].sum(-1) for words in (lab.prompts.yes, lab.prompts.no))
    assert (yes / (yes + no)).tolist() == pytest.approx(lab.answer(images, questions), abs=of_model(lab, chances))
    assert lab.understand([], []).shape == (0, 256)


@pytest.mark.parametrize("content", [None, b"no head", "shape"])
def test_what_is_no_head_is_refused(lab, tmp_path, content):
    file = tmp_path / "head.safetensors"
    if content == "shape":
        save_file({"weight": torch.zeros(7), "bias": torch.zeros(())}, file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="states of 7 numbers" if content == "shape" else "is no head"):
        naming.make(f"learned:{file}", lab)


def test_the_shipped_head_ranks_better_than_the_models_own_answer(lab, drafts):
    from milr.critics.scene import SceneCritic
    from milr.critics.self_critic import SelfCritic

    images, tasks = drafts
    right = np.array([score.value == 1 for score in SceneCritic().score(images, tasks)])
    rank = {
        name: auc(np.array([score.value for score in critic.score(images, tasks)]), right)
        for name, critic in (("learned", naming.make("learned", lab)), ("self", SelfCritic(lab)))
    }
    assert read_head(shipped_head())[0].shape == (256,)
    assert rank["learned"] > max(0.8, rank["self"])
