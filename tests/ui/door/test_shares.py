"""Who a client is; a client above its limits is refused while others are not."""

import asyncio

import pytest

from mlpmem.ui.door import shares
from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import ROUTES, RefusedError, Route

PAGE = next(route for route in ROUTES if route.name == "page")
FILE = Route("file", ("GET",), "/x", file=True)


def scope(peer: str, *named: str) -> dict:
    return {"client": (peer, 1), "headers": [(b"x-forwarded-for", n.encode()) for n in named]}


@pytest.mark.parametrize(
    ("peer", "named", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["8.8.8.8, 203.0.113.9"], "203.0.113.9"),  # the left one was forged
        ("10.0.0.1", ["8.8.8.8", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.1.2.3, 127.0.0.1"], "203.0.113.9"),  # proxies within
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8:1:2:3::4]:4711, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["2001:db8:1:2:ffff::4"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["unknown, , x" * 50], "10.0.0.1"),
        ("10.0.0.1", ["192.168.1.7"], "192.168.1.7"),
    ],
)
def test_a_client_is_the_address_that_the_proxy_names(peer, named, client):
    assert shares.address(scope(peer, *named), trusted=True) == client
    assert shares.address(scope(peer, *named), trusted=False) == peer


def test_with_n_proxies_the_nth_address_from_the_right_is_the_client():
    behind = scope("10.0.0.1", "8.8.8.8, 203.0.113.9, 10.1.2.3")
    assert shares.address(behind, True, 2) == "203.0.113.9"
    assert shares.address(behind, True, 1) == "10.1.2.3"
    assert shares.address(behind, True, 9) == "10.0.0.1"


def test_a_proxy_is_trusted_by_setting_or_in_a_space():
    assert not shares.trusts_proxy({})
    assert shares.trusts_proxy({"MLPMEM_TRUST_PROXY": "1"})
    assert shares.trusts_proxy({"SPACE_ID": "a/b"})
    assert not shares.trusts_proxy({"SPACE_ID": "a/b", "MLPMEM_TRUST_PROXY": "0"})


def refused(call, *args) -> int:
    try:
        call(*args)
    except RefusedError as error:
        return error.status
    return 0


def test_requests_above_a_clients_rate_are_refused_and_other_clients_are_not():
    now = [0.0]
    table = shares.Shares(Bounds(rate=5), clock=lambda: now[0])
    answers = [refused(table.count, "a", PAGE) for _ in range(15)]
    assert answers == [0] * 10 + [429] * 5
    assert refused(table.count, "b", PAGE) == 0
    assert refused(table.count, "a", FILE) == 0, "a page's own files are counted separately"
    now[0] += 1.0
    assert [refused(table.count, "a", PAGE) for _ in range(7)] == [0] * 5 + [429] * 2


def test_the_number_of_stored_rates_is_bounded(monkeypatch):
    monkeypatch.setattr(shares, "MOST_CLIENTS", 10)
    table = shares.Shares(Bounds())
    for i in range(100):
        table.count(str(i), PAGE)
    assert len(table._rates) == 10


def test_open_requests_are_limited_per_client_and_in_total():
    table = shares.Shares(Bounds(open=2, all_open=3))

    def enter(client):
        with table.opened(client):
            pass

    with table.opened("a"), table.opened("a"):
        assert refused(enter, "a") == 429 and refused(enter, "b") == 0
        with table.opened("b"):
            assert refused(enter, "c") == 503
    assert refused(enter, "a") == 0 and not table.open


def test_held_bodies_are_limited_per_client_and_large_ones_in_total():
    table = shares.Shares(Bounds(held_bytes=100, all_held_bytes=150, small_body=10))

    def enter(client, size):
        with table.holding(client, size):
            pass

    with table.holding("a", 90):
        assert refused(enter, "a", 20) == 429 and refused(enter, "a", 10) == 0
        with table.holding("b", 60):
            assert refused(enter, "c", 20) == 503 and refused(enter, "c", 10) == 0
    assert not table.held


def test_a_request_that_bypassed_the_door_has_no_client():
    assert shares.client_of(None) == "" == shares.client_of(object())


def test_posts_of_one_client_run_a_few_at_a_time(run):
    table, most, now = shares.Shares(Bounds(at_once=2)), {"a": 0, "b": 0}, {"a": 0, "b": 0}

    async def post(client):
        async with table.turn(client):
            now[client] += 1
            most[client] = max(most[client], now[client])
            await asyncio.sleep(0.01)
            now[client] -= 1

    async def posts():
        await asyncio.gather(*(post(client) for client in "aaaaaab"))

    run(posts())
    assert most == {"a": 2, "b": 1} and not table._turns and not table._wanted


def test_bytes_above_a_clients_rate_are_refused_before_they_are_read():
    now = [0.0]
    shared = shares.Shares(Bounds(byte_rate=10), clock=lambda: now[0])
    assert [refused(shared.weigh, "a", 90) for _ in range(3)] == [0, 0, 429]
    assert refused(shared.weigh, "a", 20) == 0 and refused(shared.weigh, "b", 200) == 0
    now[0] += 2.0
    assert refused(shared.weigh, "a", 20) == 0 and refused(shared.weigh, "a", 1) == 429
