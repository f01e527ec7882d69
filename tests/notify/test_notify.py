"""People and programs are told: real web and mail servers, real TLS, a real kill. All synthetic."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import factories
import pytest
import sqlalchemy as sa
import trustme
from factories import CLEAR, CRYSTALS, utc
from lab import Site
from pydantic import SecretStr
from receivers import Hook, Request, dripping_server, hung_host, mail_server, web_server

from marcod.database.engine import Database
from marcod.errors import StoreError
from marcod.notify import mail, render, webhook
from marcod.notify.connection import Connection
from marcod.notify.notifier import Notifier, NotifyCounts
from marcod.service import periodic
from marcod.settings import MailSettings, NotifySettings, loading
from marcod.settings.environment import child_environment
from marcod.store import outbox
from marcod.store.outbox import DeliveryResult, Event, Message, More, NewEvent

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a shared secret"
TOKEN = "token-in-the-path"
sqlite_alone = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
RENDERED = render.render(Message("m1", "hook", "", 1, (Event("test:1", "test", utc(), {"target": "hook"}),)))


@dataclass
class Clock:
    """A time that stands until it is moved."""

    seconds: float = 0.0

    def __call__(self) -> datetime:
        return utc(self.seconds)


def at_noon() -> datetime:
    return utc()


def target(site: Site, name: str, **values: Any) -> None:
    """Add a target that is told at once; the same way TOML is written for sources."""
    site.lines.append(f"[notify.{name}]")
    site.lines += [f"{key} = {json.dumps(value)}" for key, value in {"every_s": 0, **values}.items()]


def notifier(site: Site, db: Database, clock: Clock) -> Notifier:
    return Notifier(db, loading.load(site.config), worker="w", clock=clock)


def plate_with_a_hit(db: Database, barcode: str = "BC1") -> None:
    """Three drops, one of them with crystals: two events."""
    champion = factories.register(db)
    factories.promote(db, champion)
    source_id = factories.register_source(db, "minstrel", expected_drops=3)
    factories.record(db, source_id, factories.sightings(3, barcode=barcode), utc(1))
    factories.drain(db, champion, utc(2), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)


def happen(db: Database, *subjects: str) -> None:
    """Events of an image each."""
    source_id = db.read(lambda c: c.execute(sa.text("select min(id) from source")).scalar_one())
    source_id = source_id or factories.register_source(db, "minstrel")
    place = {"source": "minstrel", "plate": "P1", "barcode": None, "project": None, "inspection": "1"}
    image = {"well": "A01", "drop": 1, "path": "P1/a.jpg", "reason": "it is truncated"}
    db.write(outbox.put, [NewEvent("quarantine", s, source_id, None, place | image) for s in subjects], utc())


def told(request: Request) -> list[str]:
    return [event["id"] for event in json.loads(request.body)["events"]]


def documented_check() -> Callable[..., bool]:
    """The function that the documentation shows to receivers."""
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notify.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    return names["genuine"]  # type: ignore[no-any-return]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with web_server() as running:
        yield running


def test_a_webhook_gets_each_event_once_signed(site: Site, hook: Hook) -> None:
    url = f"http://us%20er:pa%3Ass@127.0.0.1:{hook.port}/{TOKEN}?a=b"
    target(site, "lims", url=url, secret=SECRET)
    target(site, "chat", url=f"http://127.0.0.1:{hook.port}/chat", format="text", events=["hits"])
    site.write()
    with closing(Database(site.url)) as db:
        sending = notifier(site, db, Clock())
        plate_with_a_hit(db)
        assert sending.turn() == NotifyCounts(dispatched=2, sent=2)
        assert sending.turn() == NotifyCounts()
    chat, lims = sorted(hook.requests, key=lambda request: len(request.body))
    document = json.loads(lims.body)
    assert (lims.path, document["id"]) == (f"/{TOKEN}?a=b", lims.headers["X-Marcod-Message"])
    assert lims.headers["Idempotency-Key"] == document["id"]
    assert lims.headers["Authorization"] == "Basic dXMgZXI6cGE6c3M="
    hits, complete = sorted(document["events"], key=lambda event: event["kind"], reverse=True)
    assert (hits["kind"], hits["plate"], hits["new_hits"]) == ("hits", "P1", 1)
    assert hits["wells"] == [{"well": "A02", "drop": 1, "p_crystals": 0.9}]
    assert (complete["kind"], complete["scored"], complete["at"]) == ("complete", 3, utc(2).isoformat())
    sentence = "minstrel: plate BC1, inspection 1: 1 new hit (crystals >= 0.5): A02.1 0.90."
    assert hits["text"] == sentence
    assert (
        "minstrel: plate BC1, inspection 1 is complete: 3 of 3 drops are scored; 1 hit (crystals >= 0.5), best: "
        in document["text"]
    )
    text = chat.body.decode()
    assert text.splitlines()[0] == sentence
    assert "rendered drops alone" in text
    assert "X-Marcod-Signature" not in chat.headers

    genuine, signature = documented_check(), lims.headers["X-Marcod-Signature"]
    assert genuine(SECRET, signature, lims.body, now=utc().timestamp())
    assert not genuine("another", signature, lims.body, now=utc().timestamp())
    assert not genuine(SECRET, signature, lims.body + b" ", now=utc().timestamp())
    assert not genuine(SECRET, signature, lims.body, now=utc(400).timestamp())
    assert not genuine(SECRET, "nonsense", lims.body)


REDIRECT = "http://127.0.0.1:{port}/elsewhere"


@pytest.mark.parametrize(
    ("status", "headers", "final", "wait_s", "said"),
    [
        (200, {}, None, 0, None),
        (503, {}, False, 0, "answers 503 Service Unavailable"),
        (429, {"Retry-After": "120"}, False, 120, "answers 429"),
        (503, {"Retry-After": "Thu, 01 Jan 2026 12:00:50 GMT"}, False, 50, "answers 503"),
        (503, {"Retry-After": "soon"}, False, 0, "answers 503"),
        (404, {"Retry-After": "5"}, False, 5, "answers 404 Not Found"),
        (307, {"Location": REDIRECT}, False, 0, "redirects are not followed"),
        *((status, {}, False, 0, f"answers {status}") for status in (401, 403, 407, 423)),
        *((status, {}, True, 0, f"answers {status}") for status in (400, 410, 413, 415, 422)),
        (799, {}, False, 0, "answers 799"),
    ],
)
def test_answers(
    hook: Hook, status: int, headers: dict[str, str], final: bool | None, wait_s: float, said: str
) -> None:
    hook.answers = [(status, {name: value.format(port=hook.port) for name, value in headers.items()})]
    target = NotifySettings.model_validate({"url": f"http://127.0.0.1:{hook.port}/{TOKEN}", "secret": SECRET})
    outcome = webhook.post(target, RENDERED, "m1", at_noon)
    assert (outcome.sent, outcome.final, outcome.wait_s) == (final is None, bool(final), wait_s)
    assert said in outcome.error if outcome.error else said is None
    assert TOKEN not in str(outcome)
    assert len(hook.requests) == 1


def test_a_receiver_that_dribbles_hangs_or_is_offline_costs_little(hook: Hook) -> None:
    target = NotifySettings.model_validate({"url": f"http://127.0.0.1:{hook.port}/{TOKEN}"})
    hook.dribbling = True
    assert "did not answer" in str(webhook.post(target, RENDERED, "m1", at_noon, timeout_s=0.3).error)
    hook.released.clear()
    outcome = webhook.post(target, RENDERED, "m1", at_noon, timeout_s=0.2)
    assert (outcome.final, "did not answer" in str(outcome.error)) == (False, True)
    away = NotifySettings.model_validate({"url": "http://127.0.0.1:1/"})
    outcome = webhook.post(away, RENDERED, "m1", at_noon)
    assert (outcome.final, outcome.error) == (False, "127.0.0.1 cannot be reached: Connection refused")


HANDSHAKE = b"\x16\x03\x03\x40\x00"
"""The head of a record of TLS that is to have 16 kB (RFC 8446, section 5.1)."""
STARTTLS = (
    (b"", b"220 hi\r\n"),
    (b"ehlo", b"250-hi\r\n250 STARTTLS\r\n"),
    (b"STARTTLS\r\n", b"220 go\r\n"),
    (HANDSHAKE[:1], HANDSHAKE),
)


@pytest.mark.parametrize(
    ("security", "script"),
    [("none", ()), ("none", ((b"", b"220 hi\r\n"),)), ("tls", ((b"", HANDSHAKE),)), ("starttls", STARTTLS)],
)
def test_a_mail_server_that_drips_is_left(security: str, script: tuple[tuple[bytes, bytes], ...]) -> None:
    with dripping_server(*script) as port:
        server = MailSettings.model_validate({"host": "127.0.0.1", "port": port, "security": security})
        outcome = mail.send(server, ["ann@lab.test"], RENDERED, "m1", at_noon, timeout_s=0.1)
    assert outcome == DeliveryResult(False, "127.0.0.1 did not answer in time")


def test_a_web_server_that_drips_its_tls_is_left() -> None:
    with dripping_server((b"", HANDSHAKE)) as port:
        target = NotifySettings.model_validate({"url": f"https://127.0.0.1:{port}/"})
        assert "did not answer" in str(webhook.post(target, RENDERED, "m1", at_noon, timeout_s=0.2).error)


def test_a_mail_that_was_taken_is_sent_however_long_the_farewell_is() -> None:
    ok = b"250 OK\r\n"
    script = [(b"", b"220 hi\r\n"), (b"ehlo", ok), (b"mail", ok), (b"rcpt", ok), (b"data", b"354 go\r\n")]
    script.append((b"\r\n.\r\n", ok))
    with dripping_server(*script) as port:
        server = MailSettings(host="127.0.0.1", port=port)
        assert mail.send(server, ["ann@lab.test"], RENDERED, "m1", at_noon) == DeliveryResult(True)


def test_all_addresses_of_a_name_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*hosts: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    with hung_host() as port, socket.create_server(("127.0.0.2", port)):
        resolved("127.0.0.1", "127.0.0.2")
        with closing(Connection("many.test", port, 0.4)) as line:
            assert line.socket.getpeername() == ("127.0.0.2", port)
        resolved(*["127.0.0.1"] * 1000)
        with pytest.raises(TimeoutError):
            Connection("many.test", port, 0.2)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def own_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side with a certificate that no system knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_tls_is_verified(
    own_tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server(own_tls) as hook:
        named = NotifySettings.model_validate({"url": f"https://localhost:{hook.port}/{TOKEN}"})
        misnamed = NotifySettings.model_validate({"url": f"https://127.0.0.1:{hook.port}/{TOKEN}"})
        outcome = webhook.post(named, RENDERED, "m1", at_noon)
        assert (outcome.sent, "certificate of localhost is not trusted" in str(outcome.error)) == (False, True)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert webhook.post(named, RENDERED, "m1", at_noon).sent
        assert "is not trusted" in str(webhook.post(misnamed, RENDERED, "m1", at_noon).error)
        assert len(hook.requests) == 1


def test_mail(own_tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = ["Ann <ann@lab.test>", "bob@lab.test"]
    with mail_server() as post:
        server = MailSettings(host="127.0.0.1", port=post.port, sender="marcod@lab.test")
        send = lambda to: mail.send(server, to, RENDERED, "m1", at_noon)  # noqa: E731
        assert send(people) == DeliveryResult(True)
        [(recipients, written)] = post.mails
        assert recipients == ["ann@lab.test", "bob@lab.test"]
        assert (written["Message-ID"], written["Subject"]) == ("<m1@lab.test>", "marcod: 1 test")
        assert written["X-Marcod-Message"] == "m1"
        assert written.get_content_type() == "text/plain"
        assert "test of marcod's notifications to hook" in written.get_content()
        for hostile in ("ann@lab.test\r\nBcc: eve@evil.test", "ann@lab.test\nX: y", "nobody"):
            outcome = send([hostile])
            assert (outcome.final, outcome.error) == (True, "an address in notify or mail.sender cannot be used")
        post.refused = {"bob@lab.test": "550 no such person"}
        assert send(people) == DeliveryResult(True, "127.0.0.1 refused bob@lab.test (550 no such person)")
        assert send(["bob@lab.test"]).final
        for answer in ("450 come again", "554 not today"):
            post.refused = {"bob@lab.test": answer}
            outcome = send(["bob@lab.test"])
            assert (outcome.sent, outcome.final) == (False, False)
        for answer, final in (("530 log in first", False), ("454 come again", False), ("553 no such sender", True)):
            post.refused = {"marcod@lab.test": answer}
            assert send(people) == DeliveryResult(False, f"127.0.0.1 answers {answer}", final=final)
        post.refused = {}
        post.answer = "452 full"
        assert send(["ann@lab.test"]) == DeliveryResult(False, "127.0.0.1 answers 452 full")
        assert len(post.mails) == 2
    assert "cannot be reached" in str(send(people).error)
    with mail_server(own_tls) as post:
        guarded = MailSettings(host="localhost", port=post.port, security="starttls")
        outcome = mail.send(guarded, people, RENDERED, "m1", at_noon)
        assert outcome.error == "the certificate of localhost is not trusted: unable to get local issuer certificate"
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert mail.send(guarded, people, RENDERED, "m1", at_noon).sent
        misnamed = guarded.model_copy(update={"host": "127.0.0.1"})
        assert "is not trusted" in str(mail.send(misnamed, people, RENDERED, "m1", at_noon).error)
        stranger = guarded.model_copy(update={"user": "marcod", "password": SecretStr("the former one")})
        outcome = mail.send(stranger, people, RENDERED, "m1", at_noon)
        assert (outcome.final, "answers 535" in str(outcome.error)) == (False, True), "it is being changed"
        assert len(post.mails) == 1
    with mail_server(own_tls, greets_over_tls=True) as post:
        guarded = MailSettings(host="localhost", port=post.port, security="tls")
        assert mail.send(guarded, people, RENDERED, "m1", at_noon).sent
        misnamed = guarded.model_copy(update={"host": "127.0.0.1"})
        assert "is not trusted" in str(mail.send(misnamed, people, RENDERED, "m1", at_noon).error)
        assert len(post.mails) == 1


@sqlite_alone
def test_hostile_names_stay_text(site: Site) -> None:
    with mail_server() as post, closing(Database(site.url)) as db:
        target(site, "people", to=["ann@lab.test"])
        site.write(mail={"host": "127.0.0.1", "port": post.port})
        plate_with_a_hit(db, "B\x1b[2J\r\nBcc: eve@evil.test" + "x" * 1000)
        assert notifier(site, db, Clock()).turn().sent == 1
    [(recipients, written)] = post.mails
    assert (recipients, written["Bcc"]) == (["ann@lab.test"], None)
    assert written["Subject"] == "marcod: 1 plate with new hits, 1 inspection complete"
    assert "\x1b" not in written.get_content()
    assert max(map(len, written.get_content().splitlines())) < 600


_CHILD = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from marcod.settings import loading
from marcod.database.engine import Database
from marcod.notify.notifier import Notifier
from marcod.settings import loading
configured = loading.load(Path(sys.argv[1]))
now = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(seconds=float(sys.argv[2]))
Notifier(Database(configured.store.url.get_secret_value()), configured, worker="child", clock=lambda: now).turn()
"""


@sqlite_alone
def test_a_kill_while_a_message_is_on_its_way_repeats_it_under_its_name(site: Site, hook: Hook) -> None:
    target(site, "lims", url=f"http://127.0.0.1:{hook.port}/")
    site.write()
    with closing(Database(site.url)) as db:
        happen(db, "a", "b")
        hook.released.clear()
        with subprocess.Popen([sys.executable, "-c", _CHILD, str(site.config), "0"], env=child_environment()) as child:
            assert hook.came.acquire(timeout=100), "the message did not come"
            os.kill(child.pid, signal.SIGKILL)
        hook.released.set()
        happen(db, "c")
        clock = Clock(1.0)
        sending = notifier(site, db, clock)
        assert sending.turn() == NotifyCounts(dispatched=1, sent=1), "what the dead one held is still its"
        clock.seconds = 10_000.0
        assert sending.turn() == NotifyCounts(sent=1)
        clock.seconds = 1e6
        assert sending.turn() == NotifyCounts()
    first, other, again = hook.requests
    assert (told(first), told(other), told(again)) == (["a", "b"], ["c"], ["a", "b"])
    assert (first.body, first.headers["X-Marcod-Message"]) == (again.body, again.headers["X-Marcod-Message"])


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_an_acknowledgement_outlives_a_database_that_is_offline(site: Site, hook: Hook, postgres: Any) -> None:
    target(site, "lims", url=f"http://127.0.0.1:{hook.port}/")
    site.write()
    with closing(Database(site.url)) as setting_up:
        happen(setting_up, "a")
        name = setting_up.url.database
    away = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    answer = hook.answer

    def answer_when_it_is_away(handler: Any) -> None:
        postgres.do(f"alter database {name} allow_connections false")
        postgres.do(away)
        answer(handler)

    hook.answer = answer_when_it_is_away  # type: ignore[method-assign]
    with closing(Database(site.url, patience_s=0.1)) as db:
        sending = notifier(site, db, Clock())
        with pytest.raises((StoreError, sa.exc.DBAPIError)):
            sending.turn()
        postgres.do(f"alter database {name} allow_connections true")
        assert sending.turn() == NotifyCounts()
        [standing] = db.read(outbox.target_statuses)
    assert (standing.sent, len(hook.requests)) == (1, 1)


@sqlite_alone
def test_people_see_what_did_not_arrive_and_send_it_again(site: Site, hook: Hook) -> None:
    site.write()
    assert "no target is configured" in site.ok("notify", "list")
    target(site, "lims", url=f"http://127.0.0.1:{hook.port}/{TOKEN}", secret=SECRET)
    site.write()
    assert site.ok("notify", "test", "lims") == "lims: sent\n"
    [tested] = hook.requests
    assert json.loads(tested.body)["events"][0]["kind"] == "test"
    hook.answers = [(410, {})] * 2
    failed = site.call("notify", "test", "lims")
    assert (failed.exit_code, "lims: 127.0.0.1 answers 410 Gone" in failed.stderr) == (1, True)
    with closing(Database(site.url)) as db:
        happen(db, "a")
        assert notifier(site, db, Clock()).turn() == NotifyCounts(dispatched=1, failed=1)
    shown = site.call("notify", "list")
    assert shown.exit_code == 3, "a person should look at this"
    assert "127.0.0.1 answers 410 Gone" in shown.stdout
    assert TOKEN not in shown.output
    assert SECRET not in shown.output
    listed = json.loads(site.call("notify", "list", "--json").stdout)
    assert [(t["target"], t["way"], t["failed"]) for t in listed["targets"]] == [("lims", "webhook", 1)]
    [message] = listed["messages"]
    assert (message["attempts"], message["events"], message["next_at"]) == (1, 1, None)
    assert "1 event is to be sent again" in site.ok("notify", "retry", "lims")
    with closing(Database(site.url)) as db:
        now = datetime.now(tz=utc().tzinfo)
        assert Notifier(db, loading.load(site.config), worker="w", clock=lambda: now).turn() == NotifyCounts(sent=1)
    assert hook.requests[-1].headers["X-Marcod-Message"] == message["message"]
    assert site.call("notify", "list").exit_code == 0
    for command in ("test", "retry"):
        unknown = site.call("notify", command, "nobody")
        assert (unknown.exit_code, "'nobody'" in unknown.stderr) == (2, True)


@sqlite_alone
def test_the_loop_sends_until_it_is_stopped(site: Site, hook: Hook) -> None:
    target(site, "lims", url=f"http://127.0.0.1:{hook.port}/")
    site.write()
    stop, beats = threading.Event(), threading.Semaphore(0)
    with closing(Database(site.url)) as db:
        happen(db, "a")
        loop = threading.Thread(target=notifier(site, db, Clock()).run, args=(stop, beats.release))
        loop.start()
        assert hook.came.acquire(timeout=60)
        assert beats.acquire(timeout=60)
        stop.set()
        loop.join(60)
        assert not loop.is_alive()
        assert db.read(outbox.target_statuses)[0].sent == 1


@sqlite_alone
def test_a_host_that_tells_nobody_leaves_events_to_those_that_do(site: Site, hook: Hook) -> None:
    site.write()
    with closing(Database(site.url)) as db:
        happen(db, "a")
        periodic.housekeeping(db, loading.load(site.config))
        target(site, "lims", url=f"http://127.0.0.1:{hook.port}/")
        site.write()
        assert notifier(site, db, Clock(60.0)).turn() == NotifyCounts(dispatched=1, sent=1)
    assert [told(request) for request in hook.requests] == [["a"]]


@sqlite_alone
def test_one_that_is_offline_holds_up_nobody(site: Site, hook: Hook) -> None:
    target(site, "away", url="http://127.0.0.1:1/")
    target(site, "lims", url=f"http://127.0.0.1:{hook.port}/")
    site.write()
    with closing(Database(site.url)) as db:
        clock = Clock()
        sending = notifier(site, db, clock)
        happen(db, "a")
        assert sending.turn() == NotifyCounts(dispatched=1, sent=1, postponed=1)
        clock.seconds = 5.0
        happen(db, "b")
        assert sending.turn() == NotifyCounts(dispatched=1, sent=1, postponed=1)
        clock.seconds = 10.0
        assert sending.turn() == NotifyCounts(), "both wait for their next try"
        clock.seconds = 31.0
        assert sending.turn() == NotifyCounts(postponed=1)
    assert [told(request) for request in hook.requests] == [["a"], ["b"]]
    said = "minstrel: plate P1, inspection 1, drop A01.1: P1/a.jpg cannot be scored: it is truncated."
    assert json.loads(hook.requests[0].body)["text"] == said


def test_what_is_only_counted_is_said() -> None:
    more = (More("complete", "minstrel", 1001), More("quarantine", "hwi", 1))
    event = Event("test:1", "test", utc(), {"target": "hook"})
    rendered = render.render(Message("m1", "hook", "", 1, (event,), more))
    assert rendered.subject == "marcod: 1,001 inspections complete, 1 image not readable, 1 test"
    assert rendered.text.splitlines()[1:] == [
        "Besides: 1,001 inspections complete of minstrel.",
        "Besides: 1 image not readable of hwi.",
    ]
    assert json.loads(rendered.document)["more"][0] == {"kind": "complete", "source": "minstrel", "count": 1001}
