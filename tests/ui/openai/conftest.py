"""A service whose model is there, without a page."""

from types import SimpleNamespace

import pytest

from mlpmem.ui.service.offers import Extras


@pytest.fixture
def service(tiny_model):
    """Return what the protocol needs of a page's service: the tiny model, loaded."""
    status = SimpleNamespace(settled=True, line="")
    return SimpleNamespace(model=tiny_model, name="", extras=Extras(mixed=True), status=status)


@pytest.fixture
def ask(service):
    """Return ask(chat, **body) -> the whole answer, computed here."""
    from mlpmem.ui.openai import answers, requests, runs
    from mlpmem.ui.request.limits import Deadline

    def asked(chat=False, **body):
        body = {"model": "tiny", "temperature": 0, **body}
        return answers.whole(runs.run(service, requests.parse(body, chat), Deadline()))

    return asked
