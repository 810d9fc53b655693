"""What chats have read is kept for the latest readers, and in a Space for nobody."""

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui.openai import answers, requests, runs
from mlpmem.ui.request.limits import Deadline
from mlpmem.ui.service.prefixes import Prefixes, sessions_of


def test_the_latest_readers_have_one_each():
    prefixes = Prefixes(2)
    first, second = prefixes.of("a"), prefixes.of("b")
    assert first is not second and prefixes.of("a") is first
    prefixes.of("c")
    assert prefixes.of("a") is first, "it was asked for later than b"
    assert prefixes.of("b") is not second
    assert prefixes.of(None) is None and prefixes.of("") is None
    assert Prefixes(0).of("a") is None


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 2),
        ({"SPACE_ID": "me/page"}, 0),
        ({"SPACE_ID": "me/page", "MLPMEM_PREFIXES": "3"}, 3),
        ({"MLPMEM_PREFIXES": "0"}, 0),
        ({"MLPMEM_PREFIXES": " "}, 2),
    ],
)
def test_a_space_keeps_nothing_unless_it_is_told_to(environment, count):
    assert sessions_of(environment) == count


@pytest.mark.parametrize("setting", ["-1", "two", "1.5", "99999"])
def test_a_wrong_setting_is_named(setting):
    with pytest.raises(MlpMemError, match="MLPMEM_PREFIXES must be a whole number"):
        sessions_of({"MLPMEM_PREFIXES": setting})


def test_a_client_that_sends_its_chat_again_reads_what_is_new(service):
    prefix = Prefixes(1).of("client")

    def asked(prompt, **fields):
        body = {"model": "tiny", "temperature": 0, "max_tokens": 4, "prompt": prompt, **fields}
        run = runs.run(service, requests.parse(body, False), Deadline(), prefix)
        return answers.whole(run)

    first = asked("The capital of Peru is")
    assert "prompt_tokens_details" not in first["usage"]
    longer = "The capital of Peru is near the sea, and"
    again = asked(longer)
    read = service.model.decoder.encode("The capital of Peru is")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(read) - 1
    alone = runs.run(
        service,
        requests.parse(
            {"model": "tiny", "temperature": 0, "max_tokens": 4, "prompt": longer}, False
        ),
        Deadline(),
    )
    assert again["choices"] == answers.whole(alone)["choices"]
    several = asked([longer, "Lima is"], n=2)
    assert [choice["text"] for choice in several["choices"][:2]] == [
        again["choices"][0]["text"]
    ] * 2
