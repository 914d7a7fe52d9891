"""Files of models: whole, half fetched, pinned; and the variables that keep them from being fetched."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from milr import hub
from milr.backbones import load
from milr.critics import naming
from milr.drafts import UserError

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def snapshot(cache, source=None, commit=COMMIT, name="owner/model"):
    home = cache / f"models--{name.replace('/', '--')}"
    folder = home / "snapshots" / commit
    if source is None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "janus"}')
    else:
        shutil.copytree(source, folder)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    (home / "blobs").mkdir(exist_ok=True)
    return folder


def numbers(count=4):
    return np.zeros(count, "float32")


# --- files that are not whole -----------------------------------------------------------------------------------


def no_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"half")


def no_shard(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}})
    )


def lost_link(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/none")


@pytest.mark.parametrize("spoil", [no_weights, no_shard, lost_link])
def test_a_half_fetched_model_names_the_command(spoil, cache, tiny_checkpoint):
    spoil(snapshot(cache, tiny_checkpoint))
    again = rf"owner/model is not complete .*missing.; fetch it again: hf download owner/model --revision {COMMIT}"
    for door in (lambda: load("owner/model", "cpu"), lambda: naming.make("clip,model=owner/model,device=cpu", None)):
        with pytest.raises(UserError, match=again) as caught:
            door()
        assert "\n" not in str(caught.value)


def pointer(file):
    return lambda folder: (folder / file).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
    )


def empty(file):
    return lambda folder: (folder / file).write_bytes(b"")


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def wrong_index(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"none": "model.safetensors"}}))


def no_index(text):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pointer("tokenizer.json"), "tokenizer.json of copy is a git-LFS pointer and not the file itself"),
        (pointer("model.safetensors"), "model.safetensors of copy is a git-LFS pointer"),
        (pointer("config.json"), "config.json of copy is a git-LFS pointer"),
        (empty("tokenizer.json"), "tokenizer.json of copy is empty"),
        (empty("model.safetensors"), "model.safetensors of copy is empty"),
        (empty("config.json"), "config.json of copy is empty"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer is among them: tokenizer.json is missing"),
        (cut, "weights of copy cannot be read .model.safetensors is cut or broken"),
        (wrong_index, "index.json of copy says that model.safetensors holds none, which it does not"),
        (no_index("[]"), "is no table of shards"),
        (no_index("{}"), "is no table of shards"),
        (no_index('{"weight_map": {"x": "../model.safetensors"}}'), "copy is not complete"),
    ],
)
def test_a_folder_that_is_not_whole_names_the_file(spoil, message, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(UserError, match=message) as caught:
        load(str(copy), "cpu")
    assert "\n" not in str(caught.value)
    if "tokenizer is among" not in message:  # a critic meets the same
        with pytest.raises(UserError, match=message):
            naming.make(f"clip,model={copy},device=cpu", None)


def test_lfs_in_a_clone_is_pulled(tmp_path):
    (tmp_path / ".git").mkdir()
    pointer("config.json")(tmp_path)
    with pytest.raises(UserError, match="run 'git lfs pull' there"):
        hub.check_files(str(tmp_path))


def test_whole_files_pass(tmp_path):
    save_file({"a": numbers()}, tmp_path / "one.safetensors")
    save_file({"b": numbers()}, tmp_path / "two.safetensors")
    places = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
    (tmp_path / "requirements.txt").write_text("")
    hub.check_files(str(tmp_path), weights=True)


# --- which commit -----------------------------------------------------------------------------------------------


def test_a_model_stays_what_it_was_when_it_was_fetched_first(cache, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append(options["revision"]))
    monkeypatch.setattr(hub, "check_files", lambda folder: None)
    hub.fetch("owner/model")
    snapshot(cache)
    hub.fetch("owner/model")
    hub.fetch(f"owner/model@{OTHER}")
    hub.fetch("owner/model@v1.0")
    assert asked == [None, COMMIT, OTHER, "v1.0"]


def test_a_revision_is_part_of_a_name(cache):
    snapshot(cache)
    assert hub.is_repository(f"owner/model@{COMMIT}")
    assert hub.is_repository("owner/model@refs/pr/1")
    assert not hub.is_repository("owner/model@")
    assert hub.fetch("owner/model") == hub.fetch(f"owner/model@{COMMIT}")
    assert hub.commit_of("owner/model") == COMMIT
    assert hub.commit_of(f"owner/model@{OTHER}") == OTHER
    with pytest.raises(UserError, match="not on this machine"):
        hub.fetch(f"owner/model@{OTHER}")


# --- variables of the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ALL_PROXY": "socks5://user:geheim@127.0.0.1:1"}, "variable ALL_PROXY is a SOCKS proxy"),
        ({"https_proxy": "ftp://geheim:1"}, "variable https_proxy is no address"),
        ({"HTTPS_PROXY": "http://geheim:port"}, "variable HTTPS_PROXY is no address"),
        ({"SSL_CERT_FILE": "/nowhere/certs.pem"}, "variable SSL_CERT_FILE names /nowhere/certs.pem, which is no file"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "could not be fetched from the Hugging Face hub"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "fd00::/8,10.0.0.0/8"}, "could.* be fetched"),
    ],
)
def test_a_variable_that_keeps_the_hub_away_is_named(variables, message, tmp_path, monkeypatch):
    from huggingface_hub import close_session

    for name in [name for name in os.environ if "proxy" in name.lower() or "SSL_CERT" in name]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, kept in (("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path)), ("ENDPOINT", "https://hub.invalid")):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", kept)
    close_session()  # a client keeps the proxies of when it was made
    try:
        with pytest.raises(UserError, match=message) as caught:
            hub.fetch("owner/model")
    finally:
        close_session()
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_doctor_tells_of_both(cache, tiny_checkpoint, monkeypatch):
    from milr import doctor

    folder = snapshot(cache, tiny_checkpoint, name="openai/clip-vit-large-patch14")
    assert doctor.examine_critic("clip").works
    cut(folder)
    found = doctor.examine_critic("clip")
    assert found.works is False
    assert "hf download openai/clip-vit-large-patch14" in found.text
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.delenv("https_proxy", raising=False)
    with pytest.raises(UserError, match="HTTPS_PROXY is a SOCKS proxy"):
        doctor._network()


# --- Devices -------------------------------------------------------------------------------------------------------


class Kind:
    """A kind of device as torch has it: torch.xpu, torch.mps."""

    def __init__(self, count):
        self.device_count = lambda: count
        self.is_available = lambda: count > 0


@pytest.fixture
def other_devices(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "cuda", Kind(0))
    monkeypatch.setattr(torch, "xpu", Kind(2))
    monkeypatch.setattr(torch, "mps", Kind(1))


def test_every_device_that_torch_reports_is_taken(other_devices):
    assert hub.devices() == ("cpu", "xpu:0", "xpu:1", "mps")
    for name in ("cpu", "xpu", "xpu:0", "xpu:1", "mps", "mps:0"):
        assert str(hub.device_of(name)) == name
    assert str(hub.device_of("auto")) == "cpu"  # what nobody has tried is not chosen for you


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("xpu:2", "There is no device 'xpu:2' on this machine; torch reports cpu, xpu:0, xpu:1, mps."),
        ("cuda", "There is no device 'cuda' on this machine; torch reports cpu, xpu:0, xpu:1, mps."),
        ("npu:1", "There is no device 'npu:1' on this machine; torch reports cpu, xpu:0, xpu:1, mps."),
        ("meta", "Unknown device 'meta'; give auto"),
        ("cpu:0", "There is no device 'cpu:0' on this machine; torch reports cpu, xpu:0, xpu:1, mps."),
        ("tpu", "Unknown device 'tpu'; give auto, cpu, or what torch has here: cuda, cuda:N, mps, xpu or another."),
        ("cuda:x", "Unknown device 'cuda:x'; give auto"),
        ("cuda:", "Unknown device 'cuda:'; give auto"),
        ("", "Unknown device ''; give auto"),
        ("CPU", "Unknown device 'CPU'; give auto"),
        ("x\n" * 100, "Unknown device 'x\\nx"),
    ],
)
def test_a_device_that_is_not_there_names_those_that_are(other_devices, device, message):
    with pytest.raises(UserError) as caught:
        hub.device_of(device)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_number_formats_that_a_device_lacks_are_told(monkeypatch):
    import torch

    mps = torch.device("mps")
    monkeypatch.setattr(hub, "_holds", lambda device, dtype: dtype not in ("float64", "bfloat16"))
    with pytest.raises(UserError, match="mps does not compute in bfloat16; use float32 or float16"):
        hub.dtype_of("bfloat16", mps)
    assert hub.auto_dtype(mps, is_small=True) == "float32"
    assert hub.auto_dtype(mps, is_small=False) == "float16"
    monkeypatch.undo()
    assert hub.auto_dtype(torch.device("cpu"), is_small=False) == "bfloat16"
    assert hub._holds(torch.device("cpu"), "float64")
    assert not hub._holds(torch.device("mps"), "float32")  # torch raises here: there is none


def test_the_doctor_marks_what_nobody_has_tried(other_devices):
    from milr import doctor

    assert doctor._devices() == "cpu; xpu:0 (untested); xpu:1 (untested); mps (untested)"


def test_a_pipeline_is_there_where_its_parts_are(cache):
    """Only diffusers' pipelines hold their weights a folder deeper; elsewhere such files are something else."""
    folder = snapshot(cache)
    (folder / "vae").mkdir()
    save_file({"x": numbers()}, folder / "vae" / "model.safetensors")
    assert hub.cached("owner/model") is None
    (folder / hub.PIPELINE).write_text("{}")
    assert hub.cached("owner/model") == str(folder)
    assert hub.name_of(str(folder / "vae")) == "owner/model/vae"
    assert (
        hub.again(str(folder / "vae"))
        == f"fetch it again: hf download owner/model --revision {COMMIT} --force-download"
    )
    before = hub.content_of(str(folder))
    save_file({"x": numbers() + 1}, folder / "vae" / "model.safetensors")
    assert hub.content_of(str(folder)) != before
