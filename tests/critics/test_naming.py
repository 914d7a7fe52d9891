import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from milr.critics import judge, learned, mix, naming, vqa_score
from milr.critics.base import Place, mean
from milr.critics.rules.t2i_compbench import numeracy
from milr.drafts import Check, Score, Task, UserError


class Says:
    """A critic that always says this."""

    def __init__(self, name, *values):
        self.name, self.values, self.places = name, values, []

    def score(self, images, tasks):
        return [Score(value, (Check(f"{self.name} checked", value == 1),), "as told") for value in self.values]

    def settle(self, place):
        self.places.append(place)


def test_a_plain_name_a_formula_and_an_address():
    assert naming.find(" scene ").text == "scene"
    assert naming.find("mix:0.5*scene+0.5*self").settings == {"formula": "0.5*scene+0.5*self"}
    assert naming.find("mix:min(scene,self)").settings == {"formula": "min(scene,self)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scen", "Did you mean 'scene'"),
        ("scene:x", "takes no word after a colon"),
        ("scene,a=1", "has no settings"),
        ("scene,a", "is not SETTING=VALUE"),
        ("mix:0.5*[scene+self", "brackets in .* do not match"),
        ("mix", "no formula"),
        ("mix:", "no formula"),
        ("mix:scene", "is no formula of critics"),
        ("mix:min(scene)", "takes two or more"),
        ("mix:0.5*scene+x*self", "'x' in .* is no number"),
        ("mix:nan*scene+1*self", "is no number"),
        ("mix:0*scene+0*self", "must be positive"),
        ("mix:2*scene+-1*self", "must be positive"),
        ("mix:0.5*scene+0.5*slef", "Did you mean 'self'"),
        ("mix:gate(scene,self)", "is no gate"),
        ("mix:gate(scene>=2,self)", "bar of a gate"),
        ("mix:0.5*[scene,a=1]+0.5*self", "has no settings"),
    ],
)
def test_wrong_names_say_what_to_write(text, message):
    with pytest.raises(UserError, match=message):
        naming.make(text, None)


@pytest.mark.parametrize(
    ("formula", "values", "expected"),
    [
        ("1*scene+3*self", (1.0, 0.2), 0.4),
        ("scene+self", (1.0, 0.2), 0.6),
        ("0.2*scene+0.3*self+0.5*noise", (1.0, 0.0, 0.5), 0.45),
        ("min(scene,self)", (0.7, 0.2), 0.2),
        ("product(scene,self,noise)", (0.5, 0.5, 0.2), 0.05),
        ("gate(scene>=0.5,self)", (0.4, 1.0), 0.4),
        ("gate(scene>=0.5,self)", (0.5, 0.4), 0.7),
        ("gate(scene>=0.5,self)", (1.0, 1.0), 1.0),
    ],
)
def test_worked_mixes(formula, values, expected):
    read = mix.read(formula)
    critic = mix.MixCritic(read, [Says(name, value) for name, value in zip(read.parts, values, strict=True)])
    (score,) = critic.score(["image"], [Task("a fox")])
    assert score.value == pytest.approx(expected)
    assert len(score.checks) == len(values)


WEIGHTS = st.lists(st.floats(0.01, 1000), min_size=2, max_size=6)


@given(WEIGHTS)
def test_a_mix_of_ones_is_one_and_of_equal_values_that_value(weights):
    parts = ("scene", "noise", "self", "scene-lite", "scene-blind", "scene-noisy")[: len(weights)]
    form = mix.read("+".join(f"{weight!r}*{part}" for weight, part in zip(weights, parts, strict=True)))
    for value in (0.0, 0.1, 0.3, 0.7, 0.9999999999999999, 1.0):
        assert form.value([value] * len(weights)) == value
    mixed = form.value([0.2 * number for number in range(len(weights))])
    assert 0 <= mixed <= 0.2 * (len(weights) - 1)


def test_every_mix_of_two_tenths_is_solved_where_its_parts_are():
    tenths = [number / 10 for number in range(1, 31)]
    for one in tenths:
        for other in tenths:
            assert mix.read(f"{one}*scene+{other}*self").value((1.0, 1.0)) == 1
        assert mix.read(f"gate(scene>={min(one, 1.0)},self)").value((1.0, 1.0)) == 1


@given(WEIGHTS)
def test_a_rubric_of_best_marks_is_one(weights):
    fields = [judge.Field(f"f{n}", -0.1 * n, 0.3 + 0.1 * n, weight, False, "") for n, weight in enumerate(weights)]
    rubric = judge.Rubric("r", tuple(fields), "", "", "")
    assert rubric.value({field.name: field.high for field in fields}) == 1
    assert rubric.value({field.name: field.low for field in fields}) == 0


@pytest.mark.parametrize("count", range(1, 9))
def test_all_right_is_one_for_any_number_of_things(count):
    seen = [{"label": f"thing{n}", "score": 0.9, "box": (50.0 * n, 0.0, 50.0 * n + 20, 20.0)} for n in range(count)]
    assert numeracy([(one["label"], 1) for one in seen], seen) == 1
    assert mean([1.0] * count) == mean([1.0] * count, [0.1] * count) == 1
    assert vqa_score.combine([1.0] * count, "geometric") == vqa_score.combine([1.0] * count, "arithmetic") == 1


def test_a_mix_abstains_by_an_outage_where_nothing_else_stands_in_its_way():
    class Out(Says):
        def score(self, images, tasks):
            return [Score(None, reason="away", outage=value is None) for value in self.values]

    read = mix.read("scene+self")
    away, no = Out("self", None), Out("self", 0)
    images, tasks = ["image", "image"], [Task("a fox")] * 2

    def outages(*parts):
        mixed = mix.MixCritic(read, [Both(*pair) for pair in parts])
        return [score.outage for score in mixed.score(images, tasks)]

    class Both(Says):
        """Its first picture is judged by one, its second by the other."""

        def __init__(self, one, other):
            super().__init__("both")
            self.two = one, other

        def score(self, images, tasks):
            return [part.score([image], [task])[0] for part, image, task in zip(self.two, images, tasks, strict=True)]

    well = Says("scene", 1.0)
    assert outages((well, well), (well, away)) == [False, True]
    assert outages((no, well), (away, well)) == [False, False]


def test_a_part_that_abstains_fails_or_says_nan_makes_the_mix_abstain():
    class Broken(Says):
        def score(self, images, tasks):
            raise RuntimeError("no network")

    read = mix.read("scene+self")
    for part in (Says("self", None), Says("self", float("nan")), Broken("self")):
        (score,) = mix.MixCritic(read, [Says("scene", 1.0), part]).score(["image"], [Task("a fox")])
        assert score.value is None
        assert "self" in score.reason


def test_every_part_is_told_where_it_works(tmp_path):
    part = Says("self", 1.0)
    mix.MixCritic(mix.read("scene+self"), [Says("scene", 1.0), part]).settle(Place(tmp_path, 2.0))
    assert part.places == [Place(tmp_path, 2.0)]


def test_only_a_mix_without_models_stands_alone():
    assert naming.stands_alone("mix:0.5*scene+0.5*scene-lite")
    assert not naming.stands_alone("mix:0.5*scene+0.5*self")


def test_the_name_of_a_critic_is_what_was_asked_for():
    critic = naming.make("mix:0.5*scene+0.5*scene-lite", None)
    assert critic.name == "mix:0.5*scene+0.5*scene-lite"
    assert critic.why_not("the Eiffel tower at night")


def test_the_models_of_a_mix_are_those_of_its_parts():
    assert naming.models_of("scene") == {}
    clip = naming.models_of("clip")
    assert clip
    assert naming.models_of("mix:0.5*scene+0.5*clip") == clip


# --- what lies outside a name -----------------------------------------------------------------------------------


def test_the_content_of_a_critic_is_what_its_name_does_not_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rubric, folder = tmp_path / "my.md", tmp_path / "clip"
    rubric.write_bytes((judge.FOLDER / "general.md").read_bytes())
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(10_000_000))
    (tmp_path / "head.safetensors").write_bytes(learned.shipped_head().read_bytes())
    names = ("judge:./my.md", "learned:head.safetensors", "clip,model=clip")
    mixed = "mix:min(scene,[{}])"
    before = {name: naming.content_of(name) for one in names for name in (one, mixed.format(one))}
    assert all(before.values())
    assert before == {name: naming.content_of(name) for name in before}
    rubric.write_text(rubric.read_text().replace("weight: 0.3", "weight: 0.4"))
    head = load_file(tmp_path / "head.safetensors")
    save_file(head | {"bias": head["bias"] + 1}, tmp_path / "head.safetensors")
    weights = bytearray(10_000_000)
    weights[5_000_000 : 5_000_000 + 200_000] = b"\1" * 200_000  # other numbers, the size as it was
    (folder / "model.safetensors").write_bytes(weights)
    after = {name: naming.content_of(name) for name in before}
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(
    "name", ["scene", "noise", "self", "mix:0.5*scene+0.5*self", "http://127.0.0.1:9", "vqa-score,model=backbone"]
)
def test_a_name_that_says_all_has_no_content(name):
    assert naming.content_of(name) == ""


def test_the_content_of_a_hub_id_is_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--openai--clip-vit-large-patch14"
    (home / "refs").mkdir(parents=True)

    def fetched(commit):
        (home / "refs" / "main").write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True)
        return naming.content_of("clip")

    first, second = fetched("a" * 40), fetched("b" * 40)  # somebody uploaded it anew
    assert first
    assert second not in ("", first)
    pinned = f"clip,model=openai/clip-vit-large-patch14@{'a' * 40}"
    assert naming.content_of(pinned) not in ("", second)
    assert naming.models_of(pinned) == {f"openai/clip-vit-large-patch14@{'a' * 40}": 1_710_540_580}


def test_the_content_of_a_wrong_name_is_an_error_and_not_nothing(tmp_path):
    for name in ("clpi", f"judge:{tmp_path}/none.md", f"learned:{tmp_path}/none.safetensors"):
        with pytest.raises(UserError):
            naming.content_of(name)
