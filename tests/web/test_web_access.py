"""Who asks: this host's user, whom a proxy names, or who logged in; and that nobody else sees anything."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
from browsing import OnePerson, browser, settings_with
from starlette.routing import Route
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.errors import MarcodError, NotFoundError
from marcod.settings import Settings, WebSettings
from marcod.web import accounts, passwords
from marcod.web.access import COOKIE
from marcod.web.app import OPEN, routes
from marcod.web.people import User, UserRole
from marcod.web.server import Listener, Page

sqlite_alone = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
SECRET = "correct horse battery"
PUBLIC = "https://marcod.example.org"


@sqlite_alone
def test_every_route_without_a_user_is_refused(client: TestClient, person: OnePerson) -> None:
    person.user = None
    asked = 0
    for route in routes():
        assert isinstance(route, Route)
        if route.path.startswith(OPEN):
            continue
        path = re.sub(r"\{[^}]*\}", "1", route.path)
        for method in sorted((route.methods or set()) & {"GET", "POST"}):
            headers = {"Content-Type": "application/json"} if method == "POST" else {}
            answer = client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
            assert answer.status_code == 401, (method, path)
            assert "does not know who you are" in answer.text
            asked += 1
    assert asked >= 2
    assert client.get("/nothing-here").status_code == 401


@sqlite_alone
def test_a_viewer_may_change_nothing(client: TestClient, person: OnePerson) -> None:
    person.user = User("vera", UserRole.VIEWER)
    answer = client.post("/api/labels", json={"labels": []})
    assert answer.status_code == 403
    assert answer.json() == {"error": "vera may look and not label"}
    assert "viewer" in client.get("/").text


@sqlite_alone
def test_labels_of_a_page_that_is_somebody_elses_are_taken_from_nobody(client: TestClient, person: OnePerson) -> None:
    person.user = User("J\u00f6rg b", UserRole.LABELLER)
    for said, status in (("J%C3%B6rg%20b", 404), ("ann", 403), ("", 403), ("%FF", 403)):
        assert client.post("/api/none", json={}, headers={"X-Marcod-Person": said}).status_code == status
    answer = client.post("/api/labels", json={}, headers={"X-Marcod-Person": "ann"})
    assert answer.json() == {"error": "this page is ann's, and you are J\u00f6rg b now"}


# A proxy.


def proxied(settings: Settings, **values: object) -> Settings:
    return settings_with(
        settings, **{"access": "proxy", "public_url": PUBLIC, "trusted_proxies": ["10.0.0.0/24"], **values}
    )


@sqlite_alone
def test_the_header_is_believed_from_the_proxy_alone(web_settings: Settings, db: Database) -> None:
    named = {"X-Remote-User": "ann"}
    settings = proxied(web_settings)
    assert ">ann" in browser(settings, db, client=("10.0.0.5", 1)).get("/", headers=named).text
    assert ">ann" in browser(settings, db, client=("::ffff:10.0.0.5", 1)).get("/", headers=named).text
    for other in ("10.0.1.5", "127.0.0.1", "::1", "testclient"):
        answer = browser(settings, db, client=(other, 1)).get("/", headers=named)
        assert answer.status_code == 401
        assert "ann" not in answer.text
    assert browser(settings, db, client=("10.0.0.5", 1)).get("/").status_code == 401
    # The address of the connection counts, not one that a header names.
    forged = named | {"X-Forwarded-For": "10.0.0.5", "Forwarded": "for=10.0.0.5"}
    assert browser(settings, db, client=("10.0.1.5", 1)).get("/", headers=forged).status_code == 401


@sqlite_alone
@pytest.mark.parametrize("names", [["ann", "eve"], ["ann, eve"], ["a\tnn"], ["x" * 101]])
def test_a_header_without_a_name_is_refused(names: list[str], web_settings: Settings, db: Database) -> None:
    it = browser(proxied(web_settings), db, client=("10.0.0.5", 1))
    answer = it.get("/", headers=[("X-Remote-User", name) for name in names])  # type: ignore[arg-type]
    assert answer.status_code == 400


@sqlite_alone
def test_the_role_is_that_of_the_account_or_else_the_configured_one(web_settings: Settings, db: Database) -> None:
    db.write(accounts.add, "vera", UserRole.VIEWER, "", db.now(), "root")
    it = browser(proxied(web_settings), db, client=("10.0.0.5", 1))
    for name, status in (("ann", 404), ("vera", 403)):
        assert it.post("/api/none", headers={"X-Remote-User": name}, json={}).status_code == status
    strict = browser(proxied(web_settings, role="viewer"), db, client=("10.0.0.5", 1))
    assert strict.post("/api/none", headers={"X-Remote-User": "ann"}, json={}).status_code == 403


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"access": "proxy", "public_url": PUBLIC}, "trusted_proxies or over a socket alone"),
        ({"access": "proxy", "trusted_proxies": ["127.0.0.1"]}, "public_url is needed"),
        ({"access": "accounts", "address": "0.0.0.0"}, "public_url is needed"),
        ({"access": "local", "address": "0.0.0.0"}, "listens on 127.0.0.1 alone"),
        ({"access": "local", "socket": "/run/x"}, "listens on 127.0.0.1 alone"),
        ({"trusted_proxies": ["proxy.example.org"]}, "is no address such as"),
        ({"public_url": "https://example.org/marcod"}, "without a path"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WebSettings(**values)  # type: ignore[arg-type]


# Accounts.


@pytest.fixture
def logging_in(web_settings: Settings, db: Database) -> TestClient:
    db.write(accounts.add, "ann", UserRole.LABELLER, accounts.check_password(SECRET), db.now(), "root")
    return browser(settings_with(web_settings, access="accounts"), db)


def test_who_logs_in_stays_until_the_session_ends(logging_in: TestClient, web_settings: Settings, db: Database) -> None:
    sent = logging_in.get("/?page=2")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/login?next=%2F%3Fpage%3D2")
    assert logging_in.get("/plates.csv").status_code == 401
    assert "Log in" in logging_in.get(sent.headers["Location"]).text
    inside = logging_in.post("/login", data={"name": "ann", "password": SECRET, "next": "/?page=2"})
    assert (inside.status_code, inside.headers["Location"]) == (303, "/?page=2")
    cookie = inside.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert ">ann<" in logging_in.get("/").text
    # A page that was started again knows the session, and the database does not hold the token.
    again = browser(settings_with(web_settings, access="accounts"), db)
    token = logging_in.cookies[COOKIE]
    again.cookies.set(COOKIE, token)
    assert again.get("/").status_code == 200
    assert token not in str(db.read(lambda c: c.exec_driver_sql("select * from web_session").all()))
    assert logging_in.post("/logout").headers["Location"] == "/login"
    assert again.get("/").status_code == 303


def test_sessions_end_when_idle_by_a_new_password_and_with_the_account(db: Database) -> None:
    now = db.now()
    db.write(accounts.add, "ann", UserRole.VIEWER, "", now, "root")

    def opened() -> str:
        return db.write(accounts.open_session, "ann", now)

    def holds(token: str, later: timedelta = timedelta(0)) -> bool:
        return db.read(accounts.session, token, now + later, 12.0) is not None

    first = opened()
    assert holds(first, timedelta(hours=11.9))
    assert not holds(first, timedelta(hours=12))
    assert not holds(first + "x")
    assert [(one.sessions, one.has_password) for one in db.read(accounts.accounts)] == [(1, False)]
    assert db.write(accounts.set_password, "ann", accounts.check_password(SECRET), now, "root") == 1
    assert not holds(first)
    second = opened()
    assert db.write(accounts.log_out_everywhere, "ann", now) == 1
    assert not holds(second)
    third = opened()
    for hours in range(0, 24 * 31, 6):
        db.write(accounts.see, accounts._digest(third), now + timedelta(hours=hours))
    assert not holds(third, timedelta(days=accounts.SESSION_DAYS))
    db.write(accounts.remove, "ann", now, "root")
    assert not holds(third)
    with pytest.raises(NotFoundError, match="there is no account 'ann'"):
        db.write(accounts.log_out_everywhere, "ann", now)


@sqlite_alone
def test_guessing_is_slowed_and_tells_nothing(logging_in: TestClient) -> None:
    said = set()
    for name in ("ann", "nobody"):
        answer = logging_in.post("/login", data={"name": name, "password": "wrong", "next": "/"})
        assert answer.status_code == 403
        said.add(re.sub(r'value="\w+"', "", answer.text))
    assert len(said) == 1
    for _ in range(4):
        logging_in.post("/login", data={"name": "ann", "password": "wrong"})
    answer = logging_in.post("/login", data={"name": "ann", "password": SECRET})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 100


@sqlite_alone
@pytest.mark.parametrize(
    "onward", ["https://elsewhere.example.org", "//elsewhere.example.org", "/\\elsewhere", "x", ""]
)
def test_a_login_never_leads_elsewhere(onward: str, logging_in: TestClient) -> None:
    answer = logging_in.post("/login", data={"name": "ann", "password": SECRET, "next": onward})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")


@sqlite_alone
def test_a_foreign_page_logs_nobody_in(logging_in: TestClient) -> None:
    answer = logging_in.post(
        "/login", data={"name": "ann", "password": SECRET}, headers={"Origin": "https://elsewhere.example.org"}
    )
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


@sqlite_alone
def test_a_cookie_goes_over_https_alone_where_the_page_has_it(web_settings: Settings, db: Database) -> None:
    db.write(accounts.add, "ann", UserRole.LABELLER, accounts.check_password(SECRET), db.now(), "root")
    it = browser(settings_with(web_settings, access="accounts", public_url=PUBLIC), db)
    cookie = it.post("/login", data={"name": "ann", "password": SECRET}).headers["Set-Cookie"]
    assert "; Secure" in cookie


def test_a_password_is_kept_as_a_salted_hash_and_has_a_length() -> None:
    kept = accounts.check_password(SECRET)
    assert SECRET not in kept
    assert kept != accounts.check_password(SECRET)
    assert passwords.matches(SECRET, kept)
    assert not passwords.matches(SECRET + "x", kept)
    assert not passwords.matches("", "")
    for wrong in ("short", "x" * 2000):
        with pytest.raises(MarcodError, match="at least 10 characters"):
            accounts.check_password(wrong)


def test_failures_are_forgotten_in_time() -> None:
    throttle = passwords.Throttle(2, 60.0)
    throttle.fail("ann", 0.0)
    assert throttle.wait_s("ann", 1.0) == 0
    throttle.fail("ann", 10.0)
    assert throttle.wait_s("ann", 20.0) == 40.0
    assert throttle.wait_s("eve", 20.0) == 0
    assert throttle.wait_s("ann", 60.5) == 0
    for number in range(throttle.MOST_KEYS + 5):
        throttle.fail(f"name {number}", 100.0 + number)
    assert len(throttle._failures) <= 70


# This host, and a socket.


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def running(settings: Settings) -> Iterator[None]:
    stop, ready = threading.Event(), threading.Event()
    serving = threading.Thread(target=Page(settings).run, args=(stop, ready.set))
    serving.start()
    assert ready.wait(20)
    yield
    stop.set()
    serving.join(20)
    assert not serving.is_alive()


@sqlite_alone
def test_the_user_of_this_host_is_the_owner_of_the_connection(web_settings: Settings, port: int) -> None:
    import pwd

    me = pwd.getpwuid(os.getuid()).pw_name
    for _ in running(settings_with(web_settings, port=port)):
        with urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert f">{me}<" in answer.read().decode()


@sqlite_alone
def test_a_connection_that_its_owner_left_belongs_to_nobody(web_settings: Settings, db: Database) -> None:
    it = browser(settings_with(web_settings), db, client=("127.0.0.1", 1))
    assert it.get("/").status_code == 401


@sqlite_alone
def test_over_a_socket_the_header_is_believed(web_settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    # A process that died left it there.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    asked = "GET / HTTP/1.1\r\nHost: marcod.example.org\r\nConnection: close\r\nX-Remote-User: ann\r\n\r\n"
    settings = settings_with(web_settings, access="proxy", public_url=PUBLIC, socket=path)
    for _ in running(settings):
        assert path.stat().st_mode & 0o007 == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(asked.encode())
            answer = connection.makefile("rb").read().decode()
        assert answer.startswith("HTTP/1.1 200")
        assert ">ann<" in answer


def test_no_answer_waits_for_a_full_packet(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = Listener(WebSettings(port=port, cache_folder=tmp_path))
    with listener.take() as listening, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
