"""What happened, who can mend it, what milr does: each row of the table in docs/critics.md, seen."""

import json
import re
import ssl
import types

import pytest
import tenacity.nap
from safetensors.torch import load_file, save_file
from stub_judge import gray, stub_judge, token_of

from command import ROOT
from milr import hub
from milr.critics import naming
from milr.critics.base import Place, judge
from milr.critics.remote import chat
from milr.critics.remote.chat import Chat, ChatSettings, Purse
from milr.critics.self_critic import SelfCritic
from milr.drafts import Score, Task, UserError
from milr.runs.recipes import read_recipe

FOX = Task("a red fox")
VARIABLES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
GREY = "body-" + json.dumps({"choices": [{"message": {"content": "It is grey."}}]})


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No proxy, no waiting, a purse and a key of one's own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "MILR_CANARY_key_of_ours")
    monkeypatch.setattr(chat, "PURSE", Purse())
    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=lambda seconds: None))


def critic_at(url, *settings, name="judge:general"):
    return naming.make(",".join((name, f"url={url}", "concurrency=1", *settings)), None)


def scores(plan, *settings, before=0, pictures=3, name="judge:general"):
    """A round of pictures at a judge that answers so, after `before` good replies; and how often it was asked."""
    with stub_judge(lambda number: "" if number < before else plan(number - before)) as stub:
        critic = critic_at(stub.url, "timeout=0.3", *settings, name=name)
        for number in range(before):
            assert judge(critic, [gray(number)], [FOX])[0].value is not None
        asked = len(stub.seen)
        found = judge(critic, [gray(100 + number) for number in range(pictures)], [FOX] * pictures)
        return found, len(stub.seen) - asked


def ends(message, plan, *settings, **more):
    with pytest.raises(UserError, match=message) as caught:
        scores(plan, *settings, **more)
    assert "\n" not in str(caught.value)
    assert "MILR_CANARY" not in str(caught.value)


def abstains(message, plan, *settings, outage=False, requests=None, **more):
    """The first picture is abstained from, the others are judged."""
    found, asked = scores(plan, *settings, **more)
    assert (found[0].value, found[0].outage) == (None, outage)
    assert re.search(message, found[0].reason), found[0].reason
    assert all(score.value is not None for score in found[1:])
    assert requests in (None, asked)


def first(fault):
    """This fault once, then none."""
    return lambda number: fault if number == 0 else ""


def always(fault):
    return lambda number: fault


def alone(fault):
    """This fault for the only picture, none for a grey square."""
    return lambda number: fault if number == 0 else GREY


# --- one function a row -----------------------------------------------------------------------------------------


def nobody_answers():
    with stub_judge() as stub:
        critic = critic_at(stub.url, "attempts=2")
    with pytest.raises(UserError, match=r"does not answer .cannot reach 127.* .Connection refused.*start its server"):
        judge(critic, [gray(1)], [FOX])


def wrong_key():
    for fault in ("401", "refuse-403-Incorrect API key provided", "refuse-403-Project does not have access"):
        for before in (0, 1):
            ends("refused the key .* check the variable OPENAI_API_KEY", always(fault), before=before)
    ends("refused the key .403: Your account", always("refuse-403-Your account was suspended: policy violation"))


def no_credit():
    for fault in ("402", "quota", "refuse-400-Your credit balance is too low", "refuse-429-Insufficient Balance"):
        ends("has no credit left", always(fault), before=1)


def unknown_model():
    ends("knows no such model or address .404: this is 404.; check 'model' and 'url'", always("404"))


def all_refused():
    for fault in ("refuse-400-unknown field response_format", "422", "refuse-403-"):
        for pictures in (1, 3):
            ends("refuses every question .* correct its settings", always(fault), pictures=pictures)


def moderation():
    for words in ("your input was flagged by moderation", "content_filter: sexual", "violates our usage policies"):
        for status in (400, 403, 422):
            fault = f"refuse-{status}-{words}"
            abstains(f"answered {status}: {words}", first(fault), before=1)
            abstains(words, alone(fault), pictures=1)  # the very first picture
    abstains("answered 400: this is 400", alone("400"), pictures=1)  # a grey square is taken, so it was the picture
    held = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]})
    abstains("a content filter held its reply back", first(f"body-{held}"), before=1)
    within = json.dumps({"error": {"code": 403, "message": "flagged by moderation"}})
    abstains("flagged by moderation", first(f"body-{within}"), before=1)


def rate_limit():
    abstains("answered 429: slow down", lambda number: "429" if number < 2 else "", "attempts=2", outage=True, before=1)
    assert scores(first("429"))[1] == 4  # asked again
    ends("cannot be asked any more .*429.* goes on where it stopped", always("429"), before=1)


def server_error():
    abstains("answered 500", lambda number: "500" if number < 2 else "", "attempts=2", outage=True, before=1)
    assert scores(first("503"))[1] == 4
    ends("cannot be asked any more .*answered 500", always("500"), "attempts=2", before=1)
    abstains("answered 500", alone("500"), "attempts=1", pictures=1, before=1)  # over this picture alone: for good


def timeout():
    abstains("no answer .* within 0.3 s", first("hang"), "attempts=1", outage=True, before=1)
    ends("cannot be asked any more .*no answer", always("hang"), "attempts=1", before=1, pictures=1)


def cut_connection():
    abstains("the connection .* broke", first("torn"), "attempts=1", outage=True, before=1)
    assert scores(first("torn"))[1] == 4


def no_completion():
    for body in ("<html>", "{", "", "[]", '{"choices": []}'):
        abstains("no chat completion|an empty body", first(f"body-{body}"), "attempts=1", outage=True, before=1)
    ends("does not answer .*no chat completion", always("body-<html>"), "attempts=1")


def cut_reply():
    half = 'short-{"request": "TOKEN", "alignment": 1'
    ends(r"was cut after 70 tokens: the limit is too small. .*max_tokens=280", always(half), "max_tokens=70")
    abstains("was cut after 70 tokens; raise max_tokens", first(half), "max_tokens=70", before=1, requests=3)
    ends("the limit is too small", always("short-"), name="unified-reward")
    # A verdict that was whole before the cut is one.
    with stub_judge(lambda number: "") as stub:
        whole = '{"alignment": 8, "quality": 6, "request": '
        stub.plan = lambda number: f'short-{whole}"{token_of(stub.seen[-1])}"}} and'
        assert judge(critic_at(stub.url), [gray(1)], [FOX])[0].value == pytest.approx(0.74)


def refusal():
    body = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot look at this."}}]})
    abstains("would not answer: I cannot look at this", first(f"body-{body}"), before=1, requests=3)


def no_verdict():
    abstains("no valid verdict in 3 replies", lambda number: "says-fine" if number in (0, 3, 4) else "", requests=5)


def wrong_proxy():
    with pytest.MonkeyPatch.context() as patch:
        for name, value, message in (
            (
                "ALL_PROXY",
                "socks5://127.0.0.1:1",
                "variable ALL_PROXY is a SOCKS proxy, which needs the package socksio",
            ),
            ("HTTPS_PROXY", "ftp://proxy:1", "variable HTTPS_PROXY is no address such as http://HOST:PORT"),
            ("https_proxy", "http://proxy:port", "variable https_proxy is no address"),
            ("HTTPS_PROXY", "http://", "variable HTTPS_PROXY is no address"),
        ):
            patch.setenv(name, value)
            for critic in ("judge:general", "vqa-score", "unified-reward"):
                with pytest.raises(UserError, match=message):
                    naming.make(f"{critic},url=https://judge.invalid/v1,key=none", None)
            with pytest.raises(UserError, match=message):
                naming.make("https://judge.invalid", None)
            assert scores(always(""))[0][0].value is not None  # this machine is asked as ever
            patch.setenv("NO_PROXY", "fd00::/8, .invalid")
            naming.make("judge:general,url=https://judge.invalid/v1,key=none", None)
            for used in (name, "NO_PROXY"):
                patch.delenv(used)


def proxy_that_fails():
    with pytest.MonkeyPatch.context() as patch, stub_judge(always("503")) as proxy:
        patch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        critic = critic_at("http://judge.invalid/v1", "key=none", "attempts=1")
        with pytest.raises(UserError, match=r"does not answer .*503.* through the proxy in the variable HTTP_PROXY"):
            judge(critic, [gray(1)], [FOX])
        asked = len(proxy.seen)
        assert scores(always(""))[0][0].value is not None  # a proxy for the world is not asked for this machine
        assert len(proxy.seen) == asked
        proxy.plan = always("407")
        with pytest.raises(UserError, match=r"proxy in the variable HTTP_PROXY wants a name and a password .407"):
            judge(critic, [gray(1)], [FOX])


def no_certificates():
    with pytest.MonkeyPatch.context() as patch:
        for name, value, message in (
            ("SSL_CERT_FILE", "/nowhere/certs.pem", "SSL_CERT_FILE names /nowhere/certs.pem, which is no file"),
            ("SSL_CERT_FILE", __file__, "which holds no certificates"),
            ("SSL_CERT_DIR", "/nowhere", "SSL_CERT_DIR names /nowhere, which is no folder"),
        ):
            patch.setenv(name, value)
            for asks in (
                lambda: naming.make("judge:general,url=https://judge.invalid/v1,key=none", None),
                lambda: naming.make("https://judge.invalid", None),
            ):
                with pytest.raises(UserError, match=message):
                    judge(asks(), [gray(1)], [FOX])
            assert scores(always(""))[0][0].value is not None  # plain http needs none
            patch.delenv(name)


def bad_certificate():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ROOT / "tests/critics/self_signed.pem")
    with stub_judge() as stub:
        stub.socket = context.wrap_socket(stub.socket, server_side=True)
        for made in (
            critic_at(stub.url.replace("http:", "https:")),
            naming.make(f"https://127.0.0.1:{stub.server_port}", None),
        ):
            with pytest.raises(UserError, match=r"certificate of 127.* cannot be verified .self.signed.*SSL_CERT_FILE"):
                judge(made, [gray(1)], [FOX])
    with stub_judge() as stub, pytest.raises(UserError, match="does not speak https; write http://"):
        judge(critic_at(stub.url.replace("http:", "https:")), [gray(1)], [FOX])


def redirect():
    ends("redirects .307., which is not followed: give the final url", always("redirect"))
    abstains("redirects", first("redirect"), outage=True, before=1)


def dies_in_the_middle():
    with stub_judge() as stub:
        critic = critic_at(stub.url, "attempts=2")
        assert judge(critic, [gray(1)], [FOX])[0].value is not None
        stub.plan = always("500")
        with pytest.raises(UserError, match=r"cannot be asked any more .*run the same command again: it goes on"):
            judge(critic, [gray(2), gray(3)], [FOX] * 2)
        stub.plan = always("")
        assert judge(critic, [gray(2)], [FOX])[0].value is not None


def one_outage():
    """Marked, so that a resumed run knows which pictures to show again; and only where it could not be asked."""

    class Elsewhere:
        name = "elsewhere"

        def score(self, images, tasks):
            if len(images) > 1:
                raise RuntimeError("one at a time")
            raise images[0] if isinstance(images[0], Exception) else ValueError("broken picture")

    found = judge(Elsewhere(), [ConnectionResetError("gone"), TimeoutError("late"), None], [FOX] * 3)
    assert [score.outage for score in found] == [True, True, False]
    abstains("answered 502", first("502"), "attempts=1", outage=True, before=1)
    assert Score(None, (), "as before").outage is False


def little_yes():
    class Backbone:
        def answer_and_share(self, images, questions):
            return [(0.95, 2e-6), (0.5, 0.9)]

    bad, good = judge(SelfCritic(Backbone()), [None, None], [FOX] * 2)
    assert (bad.value, bad.outage, good.value) == (None, False, 0.5)
    assert bad.reason == "yes and no hold 2e-06 of the probability together, less than least_share=0.05"
    spoken = {"token": "So", "logprob": -0.001, "top_logprobs": [{"token": "yes", "logprob": -13.0}]}
    body = json.dumps({"choices": [{"message": {"content": "So"}, "logprobs": {"content": [spoken]}}]})
    with stub_judge(always(f"body-{body}")) as stub:
        (score,) = judge(critic_at(stub.url, name="vqa-score"), [gray(1)], [FOX])
        assert score.value is None
        assert "yes and no hold 2e-06" in score.reason
        (asked,) = judge(critic_at(stub.url, "least_share=0", name="vqa-score"), [gray(1)], [FOX])
        assert asked.value == 1


def computes_nan():
    import tiny_models

    folder = tiny_models.tiny_clip(_Folder.path / "clip")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith("visual_projection"))
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="critic's model clip computes NaN even in float32: its weights are broken"):
        judge(naming.make(f"clip,model={folder},device=cpu", None), [gray(1)], [FOX])
    assert "use dtype=bfloat16 or dtype=float32" in hub.other_dtype("float16", "dtype=")


def spent_budget():
    with stub_judge() as stub:
        critic = critic_at(stub.url, "price_in=1", "price_out=1")
        critic.settle(Place(_Folder.path, 0.0))
        with pytest.raises(UserError, match="give more with --max-judge-cost"):
            judge(critic, [gray(1)], [FOX])


def half_a_model():
    folder = _Folder.path / "half"
    folder.mkdir()
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"config.json of half is a git-LFS pointer"):
        naming.make(f"clip,model={folder},device=cpu", None)


def open_key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", "0123456789")
        asks = Chat(ChatSettings(url="http://judge.invalid/v1", key="MY_KEY"))
        with pytest.raises(UserError, match=r"key in MY_KEY would go to judge.invalid unencrypted"):
            asks.ask_all([chat.Question("?")])
        patch.setenv("MILR_CRITIC_TOKEN", "0123456789")
        critic = naming.make("service,url=http://critic.invalid,insecure=true", None)
        with pytest.raises(UserError, match=r"key in MILR_CRITIC_TOKEN would go to critic.invalid unencrypted"):
            judge(critic, [gray(1)], [FOX])


def secret_of_a_recipe():
    file = _Folder.path / "recipe.yaml"
    critic = "judge:general,url=https://judge.invalid/v1,key=GITHUB_TOKEN"
    run = {"for": "lab", "name": "a", "benchmark": "scenes", "searches": ["single"], "reward": critic}
    file.write_text(json.dumps({"runs": [run]}))
    with pytest.raises(UserError, match="add --allow-key GITHUB_TOKEN"):
        read_recipe(file)


class _Folder:
    path = None


ROWS = {
    "no server answers": nobody_answers,
    "the key is wrong, or not set (401; 403 that speaks of keys or accounts)": wrong_key,
    "no credit is left (402; words such as `insufficient_quota`)": no_credit,
    "the model or the address is unknown (404)": unknown_model,
    "every question is refused (400, 403, 422; a grey square too)": all_refused,
    "one picture is refused, by moderation or otherwise": moderation,
    "too many requests (429, 408, 409, 425)": rate_limit,
    "the server fails (5xx)": server_error,
    "no answer in time": timeout,
    "the connection is cut": cut_connection,
    "no chat completion (half a JSON, a page of HTML)": no_completion,
    "a reply is cut by `max_tokens`": cut_reply,
    "the model refuses to answer": refusal,
    "no verdict in a reply": no_verdict,
    "a proxy variable is wrong": wrong_proxy,
    "a proxy fails, or wants a password": proxy_that_fails,
    "`SSL_CERT_FILE` or `SSL_CERT_DIR` is wrong": no_certificates,
    "a certificate cannot be verified; https to a port without": bad_certificate,
    "a redirect": redirect,
    "a critic that answered before cannot be asked for a whole round": dies_in_the_middle,
    "one picture of a round could not be asked about": one_outage,
    "yes and no hold less than `least_share`": little_yes,
    "a model computes NaN": computes_nan,
    "`--max-judge-cost` is spent": spent_budget,
    "a model is half fetched, a file of it empty, cut or a git-LFS pointer": half_a_model,
    "a key or token would go over plain http to another machine": open_key,
    "a recipe names another variable than `*_API_KEY` and `MILR_*`": secret_of_a_recipe,
}


@pytest.mark.parametrize("row", ROWS)
def test_what_milr_does(row, tmp_path, monkeypatch):
    monkeypatch.setattr(_Folder, "path", tmp_path)
    ROWS[row]()


def test_the_table_of_the_docs_is_what_was_tested():
    text = (ROOT / "docs/critics.md").read_text("utf-8")
    table = text[text.index("| what happened | who can mend it | what milr does |") :].partition("\n\n")[0]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]] == list(ROWS)
