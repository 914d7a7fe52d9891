"""A folder that cannot be drawn with gives one sentence, before a weight is read; one that can is read as it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import torch
from flow_pipelines import KINDS, Kind
from safetensors.torch import load_file, save_file

from command import ROOT
from milr import hub
from milr.backbones.flow import folder as folders
from milr.backbones.flow.drawer import Drawer
from milr.backbones.flow.families import FAMILIES, KLEIN, QWEN_IMAGE, Z_IMAGE
from milr.backbones.flow.random_pipeline import main, make_pipeline
from milr.drafts import UserError

ROOT_SRC = str(ROOT / "src")


@pytest.fixture
def spoilt(folder_of, tmp_path):
    """A folder of one's own to spoil."""

    def copy(family=KLEIN):
        return shutil.copytree(folder_of(Kind(family)), tmp_path / "my-flow")

    return copy


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def drop(path, field):
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != field}))


def index(**fields):
    return lambda at: change(at / "model_index.json", **fields)


def config(part, file="config.json", **fields):
    return lambda at: change(at / part / file, **fields)


def own(**fields):
    return lambda at: (at / "milr.json").write_text(json.dumps(fields))


def pickled(at):
    torch.save({}, at / "transformer" / "diffusion_pytorch_model.bin")
    (at / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def weights_of(part, name, keep):
    def spoil(at):
        file = at / part / name
        kept = {key: value for key, value in load_file(file).items() if keep(key)}
        save_file(kept, file, metadata={"format": "pt"})

    return spoil


NO_CODE = "no code of a repository is run"
WRONG = {
    "no index": (lambda at: (at / "model_index.json").unlink(), "my-flow is no pipeline of diffusers"),
    "index no JSON": (
        lambda at: (at / "model_index.json").write_text("{"),
        "model_index.json of my-flow cannot be read",
    ),
    "index a list": (lambda at: (at / "model_index.json").write_text("[]"), "no JSON object"),
    "another pipeline": (index(_class_name="StableDiffusionPipeline"), "'StableDiffusionPipeline', which is not drawn"),
    "a pipeline of its own": (index(_class_name=["pipeline", "Mine"]), NO_CODE),
    "no class": (index(_class_name=None), NO_CODE),
    "a part of its own code": (index(transformer=["my_net", "Net"]), "The transformer of my-flow is a my_net.Net"),
    "another autoencoder": (index(vae=["diffusers", "AutoencoderKL"]), "vae of my-flow is a diffusers.AutoencoderKL"),
    "an encoder from elsewhere": (index(text_encoder=["mine", "LM"]), "drawn with transformers alone"),
    "an unknown encoder": (index(text_encoder=["transformers", "NoSuchLM"]), "knows no NoSuchLM"),
    "another scheduler": (index(scheduler=["diffusers", "DDIMScheduler"]), "FlowMatchEulerDiscreteScheduler alone"),
    "no part": (index(vae=None), "does not say which class its vae is"),
    "noise at every step": (
        config("scheduler", "scheduler_config.json", stochastic_sampling=True),
        "not that of a plain rectified flow",
    ),
    "a folder less": (lambda at: shutil.rmtree(at / "vae"), "its folder vae is missing"),
    "a config less": (lambda at: (at / "vae" / "config.json").unlink(), "vae/config.json is missing"),
    "pickled weights": (pickled, "diffusion_pytorch_model.bin, from which nothing is read"),
    "no weights": (
        lambda at: (at / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "my-flow/vae has no weights as safetensors",
    ),
    "cut weights": (
        lambda at: (at / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08"),
        "The weights of my-flow/transformer cannot be read",
    ),
    "a pointer": (
        lambda at: (at / "text_encoder" / "model.safetensors").write_bytes(hub.POINTER + b".github.com/spec/v1"),
        "model.safetensors of my-flow/text_encoder is a git-LFS pointer",
    ),
    "weights missing in a file": (
        weights_of("transformer", "diffusion_pytorch_model.safetensors", lambda key: "proj_out" not in key),
        "1 weights of its transformer are missing, the first is proj_out.weight",
    ),
    "an encoder's weights missing": (
        weights_of("text_encoder", "model.safetensors", lambda key: "layers.0.mlp" not in key),
        "3 weights of its text_encoder are missing",
    ),
    "no tokenizer": (lambda at: (at / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer is among them"),
    "a network that does not fit": (
        config("transformer", joint_attention_dim=128),
        "do not fit: its transformer reads 128",
    ),
    "layers that are not there": (own(text_layers=[1, 2, 5]), "to see layer 5 of its text encoder, which has 4"),
    "the makers' layers of a small encoder": (lambda at: (at / "milr.json").unlink(), "to see layer 27"),
    "a field less": (lambda at: drop(at / "transformer" / "config.json", "in_channels"), "no 'in_channels'"),
    "a field of another kind": (config("vae", block_out_channels=8), "is not that of a Flux2KleinPipeline"),
    "an unknown word": (own(image_sise=32), "says 'image_sise', which is unknown; known are image_size, steps"),
    "a size that is none": (own(image_size=True), "image_size is True, not a whole number from 1 to 4096"),
    "guidance that is none": (own(guidance=float("inf")), "guidance is inf, not a number from 0"),
    "no list": (own(text_layers="all"), "text_layers is 'all', not a list"),
    "a size between cells": (
        own(image_size=30, text_layers=[1, 2, 3]),
        "a multiple of 4 pixels a side, which 30 is not",
    ),
}


@pytest.mark.parametrize("spoil", WRONG)
def test_a_wrong_folder_gives_one_sentence(spoil, spoilt):
    directory = spoilt()
    WRONG[spoil][0](directory)
    with pytest.raises(UserError) as told:
        Drawer.load(str(directory), device="cpu")
    sentence = str(told.value)
    assert WRONG[spoil][1] in sentence
    assert str(directory.parent) not in sentence
    assert "\n" not in sentence


def test_those_that_are_known_are_named(spoilt, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError) as told:
        Drawer.load(str(tmp_path / "nothing"))
    assert all(family.name in str(told.value) and family.pipeline in str(told.value) for family in FAMILIES.values())
    with pytest.raises(UserError, match="directory of any flow pipeline"):
        Drawer.load("no-such-model")


def test_layers_are_chosen_only_where_a_pipeline_can(spoilt):
    directory = spoilt(Z_IMAGE)
    own(text_layers=[1])(directory)
    with pytest.raises(UserError, match="which a ZImagePipeline does not choose"):
        Drawer.load(str(directory))


def test_too_little_memory_is_told_before_loading(folder_of, monkeypatch):
    monkeypatch.setattr(folders, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match=r"at 32 pixels needs .* smaller pictures"):
        Drawer.load(str(folder_of(Kind(KLEIN))), device="cpu")


def test_without_diffusers_the_extra_is_named(folder_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(folders, "fetch", lambda *anything: pytest.fail("downloads before it knows"))
    for name in (str(folder_of(Kind(KLEIN))), "owner/flow"):
        with pytest.raises(UserError, match=r"pip install 'milr\[flow\]'"):
            Drawer.load(name)


def test_nothing_loads_diffusers_before_it_is_needed():
    code = (
        "import sys, milr, milr.backbones.flow\n"
        "from milr.cli import main\n"
        "sys.argv = ['milr', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'diffusers', 'torch'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ROOT_SRC}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_loading_says_nothing(folder_of, capfd):
    """And leaves the libraries' logs and progress bars as they were."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for kind in KINDS:
        drawer = Drawer.load(str(folder_of(kind)), device="cpu")
        capfd.readouterr()
        Drawer.load(str(folder_of(kind)), device="cpu")
        drawer.decode([torch.zeros(drawer.channels, drawer.grid, drawer.grid)])
        assert capfd.readouterr() == ("", "")
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before


def test_what_a_folder_says_is_drawn(spoilt):
    directory = spoilt()
    own(image_size=48, steps=7, guidance=2.5, text_tokens=40, text_layers=[0, 2, 4])(directory)
    drawer = Drawer.load(str(directory), device="cpu", dtype="float32")
    assert (drawer.image_size, drawer.grid, drawer.steps, drawer.guidance) == (48, 12, 7, 2.5)
    assert drawer.encode(["a fox"])[0].states.shape == (40, 96)
    assert Drawer.load(str(directory), device="cpu", image_size=16).grid == 4
    with pytest.raises(UserError, match="image_size is 0, not a whole number"):
        Drawer.load(str(directory), image_size=0)


def test_a_llama_may_be_the_encoder(spoilt):
    """As in the embedded model's own pipeline: any causal model with states of the right width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = spoilt()
    shutil.rmtree(directory / "text_encoder")
    llama = LlamaConfig(
        vocab_size=408, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2
    )
    LlamaForCausalLM(llama).save_pretrained(directory / "text_encoder")
    index(text_encoder=["transformers", "LlamaForCausalLM"])(directory)
    drawer = Drawer.load(str(directory), device="cpu")
    assert drawer.writes
    assert drawer.encode(["a fox"])[0].states.shape == (64, 96)


@pytest.mark.parametrize("tied", [True, False])
def test_a_body_without_its_head_stays_one(tied, spoilt):
    directory = spoilt(Z_IMAGE)
    config("text_encoder", tie_word_embeddings=tied)(directory)
    assert Drawer.load(str(directory), device="cpu").writes == tied


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_weights_in_shards_are_whole_or_refused(family, folder_of, spoilt):
    """As the published folders hold them: a table of shards beside the shards, and copies in a smaller format."""
    import diffusers

    whole, directory = folder_of(Kind(family)), spoilt(family)
    pipe = getattr(diffusers, family.pipeline).from_pretrained(whole)
    for part in ("transformer", "text_encoder"):
        shutil.rmtree(directory / part)
        getattr(pipe, part).save_pretrained(directory / part, max_shard_size="60KB")
    shards = sorted((directory / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    (directory / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(
        (directory / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    drawer, other = (Drawer.load(str(at), device="cpu") for at in (directory, whole))
    assert drawer.parameters == other.parameters
    for part in ("transformer", "text_encoder"):
        mine, theirs = (getattr(each.pipe, part).state_dict() for each in (drawer, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    shards[-1].unlink()
    with pytest.raises(UserError, match=f"my-flow/transformer is not complete \\({shards[-1].name} is missing"):
        Drawer.load(str(directory), device="cpu")


# --- the hub ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_hub_id_loads_from_the_cache(kind, folder_of, cache):
    home = cache / "models--owner--flow"
    snapshot = shutil.copytree(folder_of(kind), home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    assert hub.cached("owner/flow") == str(snapshot)
    assert Drawer.load("owner/flow", device="cpu").name == "owner/flow"
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=f"hf download owner/flow --revision {'a' * 40}"):
        Drawer.load("owner/flow", device="cpu")


def test_only_what_is_read_is_fetched(monkeypatch, folder_of):
    """klein's repository holds its network a second time, as one file beside the folders."""
    asked, ignored = [], []

    def fetch(name, patterns, ignore=()):
        asked.append(patterns)
        ignored.extend(ignore)
        return str(folder_of(Kind(KLEIN)))

    monkeypatch.setattr(folders, "fetch", fetch)
    Drawer.load("owner/flow", device="cpu")
    first, second = asked
    assert first == ["model_index.json", "milr.json"]
    assert {pattern.partition("/")[0] for pattern in second if "/" in pattern} == set(folders.PARTS)
    assert not [pattern for pattern in second if pattern.startswith("*")]
    assert any(fnmatch("vae/diffusion_pytorch_model.fp16.safetensors", pattern) for pattern in ignored)
    assert not any(fnmatch("vae/diffusion_pytorch_model.safetensors", pattern) for pattern in ignored)


def test_other_weights_are_another_model(spoilt):
    directory = spoilt()
    before = hub.content_of(str(directory))
    file = directory / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert hub.content_of(str(directory)) != before


# --- the command -----------------------------------------------------------------------------------------------


def test_a_random_pipeline_is_made_by_a_command(tmp_path, capsys):
    assert main(["Qwen-Image", "--out", str(tmp_path / "q")]) == 0
    assert Drawer.load(str(tmp_path / "q"), device="cpu").family is QWEN_IMAGE
    assert main(["Qwen-Image", "--out", str(tmp_path / "q")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_seed_is_a_pipeline(tmp_path):
    folders = [make_pipeline(KLEIN, tmp_path / str(at), seed) for at, seed in enumerate((1, 1, 2))]
    contents = [hub.content_of(str(folder)) for folder in folders]
    assert contents[0] == contents[1] != contents[2]
