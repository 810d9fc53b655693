"""Connections: slow headers and too many idle ones are closed; requests in progress never are."""

from types import SimpleNamespace

import pytest

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.connections import Connections


class Request:
    """A request of a connection."""


class Connection:
    """A connection of uvicorn, in the part that is read."""

    def __init__(self, address="203.0.113.1"):
        self.client, self.cycle, self.calls = (address, 5000), None, []
        self.transport = SimpleNamespace(
            close=lambda: self.calls.append("close"), abort=lambda: self.calls.append("abort"),
            is_closing=lambda: bool(self.calls),
        )  # fmt: skip

    def answer(self, complete):
        self.cycle = Request()
        self.cycle.response_complete = complete


@pytest.fixture
def now():
    return [0.0]


def connections(now, proxied=False, **bounds) -> Connections:
    return Connections(Bounds(**bounds), proxied, lambda: now[0])


@pytest.mark.parametrize("proxied", [False, True])
def test_a_connection_without_a_request_is_closed_in_time_and_cut_if_it_stays(now, proxied):
    swept, silent, again = connections(now, proxied, body_seconds=5), Connection(), Connection()
    again.answer(True)
    for seconds in (0.0, 5.0):
        now[0] = seconds
        swept.sweep([silent, again])
        assert silent.calls == again.calls == []
    now[0] = 5.1
    swept.sweep([silent, again])
    assert silent.calls == again.calls == ["close"]
    swept.sweep([silent])
    assert silent.calls == ["close", "abort"]


def test_every_request_starts_the_time_again_and_an_answer_in_progress_stops_it(now):
    swept, polling, streaming = connections(now, body_seconds=5), Connection(), Connection()
    for seconds in range(0, 40, 2):
        now[0] = float(seconds)
        polling.answer(True)
        streaming.answer(False)
        swept.sweep([polling, streaming])
    streaming.cycle.response_complete = True
    now[0] += 100
    swept.sweep([streaming])
    assert polling.calls == streaming.calls == [], "its time begins with the end of the answer"


def test_the_oldest_idle_connections_of_one_address_are_closed_beyond_the_bound(now):
    swept, own = connections(now, body_seconds=100, connections=3), []
    other = Connection("203.0.113.2")
    for seconds in range(5):
        now[0] = float(seconds)
        own.append(Connection())
        swept.sweep([other, *own])
    busy = [Connection() for _ in range(9)]
    for one in busy:
        one.answer(False)
    swept.sweep([other, *busy, *own[2:]])
    assert [one.calls[:1] for one in own] == [["close"]] * 2 + [[]] * 3
    assert other.calls == [] and not any(one.calls for one in busy)
    behind = connections(now, proxied=True, body_seconds=100, connections=3)
    behind.sweep(own[2:] + busy + [Connection() for _ in range(9)])
    assert not any(one.calls for one in own[2:]), "a proxy has one address for all visitors"


def test_what_is_not_a_connection_of_uvicorn_is_closed_like_a_silent_one(now):
    swept, odd = connections(now, body_seconds=5), Connection(address=None)
    odd.client = None
    del odd.cycle
    swept.sweep([odd])
    now[0] = 6.0
    swept.sweep([odd])
    assert odd.calls == ["close"]
