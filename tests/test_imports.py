"""What a first picture waits for: nothing heavy that drawing does not use, and whoever uses that has it whole."""

import subprocess
import sys
import types

import pytest

from command import ROOT

# Of these none is needed to draw; together they are most of what transformers imports.
UNUSED = (
    "scipy.optimize", "scipy.stats", "sklearn", "pandas", "sympy", "torch._dynamo", "torch._inductor", "torchvision",
    "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint", "ray", "accelerate",
    "transformers.generation.continuous_batching.cache", "transformers.trainer", "hypothesis", "matplotlib", "IPython",
)  # fmt: skip


def run(code):
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_first_picture_loads_nothing_that_drawing_does_not_use(tmp_path):
    code = (
        "import sys; from milr.cli import main\n"
        f"sys.argv = ['milr', 'generate', 'a red fox', '--budget', '1', '--out', {str(tmp_path / 'o')!r}, '--quiet']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "import transformers, torch\n"
        f"print('loaded:', *[name for name in {UNUSED!r} if name in sys.modules])"
    )
    assert run(code).splitlines()[-1] == "loaded:"
    assert (tmp_path / "o" / "image.png").exists()


def test_help_loads_nothing_but_the_command_line():
    code = (
        "import sys; from milr.cli import main\n"
        "sys.argv = ['milr', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops & {'torch', 'transformers', 'numpy', 'scipy', 'PIL', 'huggingface_hub', 'yaml', 'jinja2',"
        " 'httpx', 'ray', 'safetensors', 'tokenizers', 'asyncio'}))\n"
        "print(len([name for name in sys.modules if name.startswith('milr.')]))"
    )
    *_, heavy, own = run(code).splitlines()
    assert heavy == ""
    assert int(own) < 40  # the commands' own files and what they name


def test_a_model_is_the_same_however_it_was_loaded():
    """Weights, buffers and answers: as transformers loads it by itself."""
    code = (
        "import torch, milr\n"
        "from milr.backbones.janus import load_janus\n"
        "plain = load_janus('lab', 'cpu', 'float32').model\n"
        "light = milr.load('lab', 'cpu', 'float32').model\n"
        "from transformers import JanusForConditionalGeneration\n"
        "assert type(light) is JanusForConditionalGeneration is type(plain)\n"
        "for of in ('named_parameters', 'named_buffers'):\n"
        "    one, other = dict(getattr(plain, of)()), dict(getattr(light, of)())\n"
        "    assert one.keys() == other.keys() and one\n"
        "    for name in one:\n"
        "        assert torch.equal(one[name], other[name]), name\n"
        "        assert (one[name].dtype, one[name].device) == (other[name].dtype, other[name].device), name"
    )
    run(code)
    # The other way round in another process: here the first load decides what transformers has imported.
    lines = code.splitlines()
    run("\n".join([*lines[:2], lines[3], lines[2], *lines[4:]]))


def test_what_was_put_off_is_the_real_thing_when_somebody_needs_it():
    code = (
        "import sys, milr\n"
        "model = milr.load('lab').model\n"
        "assert 'scipy.optimize' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        "from transformers.loss import loss_for_object_detection as losses\n"
        "from milr.imports import Later\n"
        "assert type(losses.linear_sum_assignment) is Later\n"
        "print(losses.linear_sum_assignment([[1, 0], [0, 1]])[1].tolist())\n"
        "import scipy.optimize\n"
        "assert losses.linear_sum_assignment is scipy.optimize.linear_sum_assignment\n"
        # torch's compiler: its marks are there, and it compiles.
        "import torch, torch._dynamo\n"
        "from torch._dynamo import trace_rules\n"
        "from transformers import PreTrainedModel\n"
        "assert id(PreTrainedModel.can_record_outputs.fget) in trace_rules._allowed_callable_ids\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist())\n"
        # Nothing of it stays behind.
        "import builtins\n"
        "assert 'milr' not in builtins.__import__.__module__\n"
        "assert not [finder for finder in sys.meta_path if 'milr' in type(finder).__module__]\n"
        "for made in (torch.arange, torch.nn.init.normal_, torch.compiler.allow_in_graph):\n"
        "    assert 'milr' not in str(getattr(made, '__code__', '')), made\n"
        "with torch.device('meta'): assert torch.arange(3).is_meta\n"
        "model.generation_config.max_new_tokens = 3\n"
        "print(type(model.generate(torch.tensor([[1, 2, 3]]), generation_mode='text', do_sample=False)).__name__)"
    )
    assert run(code).splitlines() == ["[1, 0]", "[2.0, 2.0]", "Tensor"]


def test_others_never_see_a_stand_in():
    from milr import imports

    with imports.lightly(), imports.lightly():
        from scipy.optimize import linear_sum_assignment  # this test is not transformers

        assert not isinstance(linear_sum_assignment, imports.Later)
    assert not imports._undo


@pytest.fixture
def later(tmp_path, monkeypatch):
    """A name of a module that nobody has loaded yet."""
    from milr.imports import Later

    (tmp_path / "put_off.py").write_text("class Thing:\n    kind = 'real'\n    def __init__(self, n): self.n = n\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "put_off", raising=False)
    yield Later("put_off", "Thing")
    sys.modules.pop("put_off", None)


def test_questions_about_instances_load_nothing(later):
    assert not isinstance(3, later)
    assert not isinstance(3, (str, later))
    assert not issubclass(int, later)
    assert later != int  # noqa: E721
    assert later == later
    assert later | None is not None  # an annotation
    assert "put_off" not in sys.modules


@pytest.mark.parametrize(
    "use",
    [
        lambda later: later(3).n == 3,
        lambda later: later.kind == "real",
        lambda later: isinstance(types.new_class("Child", (later,))(1), later),
        lambda later: isinstance(later(1), later | None),
        lambda later: isinstance(None, None | later),
        lambda later: later == __import__("put_off").Thing,
        lambda later: {later: 1}[__import__("put_off").Thing] == 1,
    ],
)
def test_any_use_is_use_of_the_real_thing(later, use):
    assert use(later)
    assert "put_off" in sys.modules
