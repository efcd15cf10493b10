"""A CLI whose provider is this very server: the loop is cut at its first turn."""

import json

import openai
import pytest

from conftest import Start
from harness.chat import ask, stream
from harness.standin import Standin
from harness.waiting import wait_until


def test_a_subscription_that_leads_back_to_the_server_is_no_loop(start: Start, standin: Standin) -> None:
    rules = [{"type": "runaway", "channels": ["log"]}]
    proxy = start(subscriptions=2, notifications={"rules": rules})
    ask(proxy.openai(), "Hello")
    before = proxy.wait_idle()["processes"]["started"]
    asked = len(standin.requests())
    # Where it listens is known only now.
    config = json.loads(proxy.config_path.read_text())
    for member in config["subscriptions"]:
        member["env"]["ANTHROPIC_BASE_URL"] = proxy.url
    proxy.replace_config(config)
    wait_until(lambda: "the changed configuration is in force" in proxy.daemon.log(), "the reload")

    for number in range(3):
        with pytest.raises(openai.RateLimitError) as caught:
            ask(proxy.openai(), f"Round and round {number}")
        assert caught.value.code == "runaway_guard"
    with pytest.raises(openai.RateLimitError):
        stream(proxy.openai(), "Round and round, streamed")
    # One process for each, and no second one of another subscription.
    debug = proxy.wait_idle()
    assert debug["processes"]["started"] == before + 4
    assert debug["totals"]["inFlight"] == 0
    assert len(standin.requests()) == asked, "nothing has reached the provider"
    log = proxy.daemon.log()
    assert log.count("requests of this server that come back to it") == 1, "the operator is told once"

    # And out again.
    for member in config["subscriptions"]:
        member["env"]["ANTHROPIC_BASE_URL"] = standin.url
    proxy.replace_config(config)
    wait_until(lambda: proxy.daemon.log().count("the changed configuration is in force") == 2, "the second reload")
    assert ask(proxy.openai(), "Well?").choices[0].message.content == "You said: Well?. (turn 1)"
