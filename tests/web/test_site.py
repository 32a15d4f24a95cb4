"""The page without a browser: who is answered what, on WSGI and ASGI servers, alone and beside an application."""

import asyncio
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import urllib.parse
from importlib.resources import files
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from conftest import output, wait_for

from pgdbpool.web import asgi, wsgi
from pgdbpool.web.guard import Guard, is_local
from pgdbpool.web.serve import MOST_REQUESTS, make

from .conftest import TOKEN

Answer = tuple[int, dict[str, str], bytes]


def ask(url: str, path: str = "/", method: str = "GET", body: str | None = None, **headers: str) -> Answer:
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    try:
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def call(app: Any, path: str, **environ: Any) -> Answer:
    """Ask a WSGI application."""
    found: list[Any] = []
    whole: dict[str, Any] = {
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
    } | environ
    setup_testing_defaults(whole)
    body = b"".join(app(whole, lambda status, headers: found.extend([status, headers])))
    return int(found[0].split()[0]), {key.lower(): value for key, value in found[1]}, body


def call_asgi(app: Any, path: str, **scope: Any) -> Answer:
    """Ask an ASGI application."""

    async def main() -> Answer:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": scope.pop("body", b"")}

        async def send(message: Any) -> None:
            sent.append(message)

        usual = {
            "type": "http",
            "method": "GET",
            "path": path,
            "http_version": "1.1",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "query_string": b"",
        }
        await app(usual | scope, receive, send)
        headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return sent[0]["status"], headers, sent[1]["body"]

    return asyncio.run(main())


# -- what there is to see -------------------------------------------------------------------------------------


def test_the_page_and_all_it_consists_of_are_served(page):
    url = page()
    status, headers, body = ask(url)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name in ["style.css", "uPlot.css", "uPlot.js", "format.js", "charts.js", "page.js", "icon.svg"]:
        assert f'"{name}"'.encode() in body
        assert ask(url, f"/{name}")[0] == 200


def test_nothing_else_is_served(page):
    url = page()
    for path in ["/login.html", "/nothing.js", "/../site.py", "/static/page.js", "/uPlot.LICENSE.txt"]:
        assert ask(url, path)[0] == 404, path


@pytest.mark.parametrize(
    "path",
    [
        "/%00.html",
        "/" + "x" * 5000 + ".css",
        "/%ff.js",
        "/..%2fguard.html",
        "/.html",
        "/%2e%2e/site.css",
        "/\\.js",
        "//.js",
    ],
)
def test_a_path_of_any_kind_is_answered(page, path):
    status, _, body = ask(page(), path)
    assert (status, body) == (404, b"There is no such page.\n")


def test_where_the_page_is_mounted_cannot_add_a_header(folder):
    root = "/shop\r\nSet-Cookie: a=b; Domain=x"
    app = wsgi(directory=str(folder), token=TOKEN)
    form = {"wsgi.input": io.BytesIO(f"token={urllib.parse.quote(TOKEN)}".encode()), "CONTENT_LENGTH": "100"}
    status, headers, _ = call(app, "/login", SCRIPT_NAME=root, REQUEST_METHOD="POST", **form)
    assert status == 303
    assert headers["location"] == "/shop%0D%0ASet-Cookie:%20a=b%3B%20Domain=x/"
    assert "; Path=/shop%0D%0ASet-Cookie:%20a=b%3B%20Domain=x/; HttpOnly" in headers["set-cookie"]
    status, headers, _ = call(app, "", SCRIPT_NAME="//elsewhere.example")
    assert (status, headers["location"]) == (308, "/elsewhere.example/")


def test_clients_that_say_nothing_neither_take_all_threads_nor_keep_others_out(page):
    url = page()
    address = urllib.parse.urlsplit(url)
    before = threading.active_count()
    silent = []
    try:
        for _ in range(3 * MOST_REQUESTS):
            client = socket.create_connection((address.hostname, address.port), timeout=30)
            client.sendall(b"GET / HTTP/1.1\r\n")
            silent.append(client)
        assert ask(url, "/style.css")[0] == 200
        wait_for(lambda: threading.active_count() - before <= MOST_REQUESTS + 2)
        assert silent[0].recv(1) == b"", "the oldest have made room"
    finally:
        for client in silent:
            client.close()


def test_the_page_asks_nobody_else(page):
    _, headers, body = ask(page())
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert b"http://" not in body
    assert b"https://" not in body
    assert b"style=" not in body
    assert b"onclick" not in body


def test_a_file_that_has_not_changed_is_not_sent_again(page):
    url = page()
    _, headers, _ = ask(url, "/page.js")
    status, _, body = ask(url, "/page.js", if_none_match=headers["etag"])
    assert (status, body) == (304, b"")


def test_the_news_are_json(page, shop):
    status, headers, body = ask(page(), "/data")
    answer = json.loads(body)
    assert (status, headers["content-type"], headers["cache-control"]) == (
        200,
        "application/json; charset=utf-8",
        "no-store",
    )
    assert (answer["name"], answer["names"], answer["summary"]["workers"]) == ("shop", ["shop"], 1)
    assert list(answer["summary"]["groups"]) == ["default"]


def test_old_samples_are_left_out_on_request(page, shop):
    url = page()
    samples = wait_for(lambda: json.loads(ask(url, "/data")[2])["summary"]["samples"])
    assert json.loads(ask(url, f"/data?since={samples[-1][0] + 1000}")[2])["summary"]["samples"] == []
    for nonsense in ["nan", "inf", "x", ""]:
        assert ask(url, f"/data?since={nonsense}")[0] == 200


def test_where_nobody_publishes_there_is_nobody(page):
    answer = json.loads(ask(page(), "/data?app=shop")[2])
    assert answer["summary"]["workers"] == 0


def test_a_page_for_one_application_shows_no_other(page, shop):
    answer = json.loads(ask(page(name="cart"), "/data?app=shop")[2])
    assert (answer["name"], answer["names"], answer["summary"]["workers"]) == ("cart", ["cart"], 0)


def test_a_folder_that_cannot_be_trusted_is_said(page, folder):
    folder.chmod(0o777)
    status, _, body = ask(page(), "/data")
    assert status == 500
    assert b"may be written to by other users" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(page, method):
    status, headers, _ = ask(page(), "/", method, "x")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_the_body(page):
    status, headers, body = ask(page(), "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 1000


def test_the_licence_of_what_is_not_ours_ships_with_it():
    static = files("pgdbpool.web") / "static"
    assert "MIT License" in (static / "uPlot.LICENSE.txt").read_text()
    assert "uPlot (v1.6.32)" in (static / "uPlot.js").read_text()[:100]


# -- who may look ---------------------------------------------------------------------------------------------


def test_without_a_token_only_this_machine_is_answered():
    host = {"host": "localhost:8642"}
    assert is_local("127.0.0.1", "1.1", host)
    assert is_local("::1", "1.1", {"host": "[::1]:8642"})
    assert is_local("::ffff:127.0.0.1", "1.1", host)
    assert not is_local("::ffff:10.0.0.7", "1.1", host)
    assert not is_local("10.0.0.7", "1.1", host)
    assert not is_local("", "1.1", host), "a socket file may be anybody's"
    assert not is_local("127.0.0.1", "1.1", {}), "a browser always says whom it asks"


@pytest.mark.parametrize("header", ["forwarded", "via", "x-forwarded-for", "x-real-ip", "x-forwarded-host"])
def test_what_comes_through_a_proxy_is_not_local(header):
    assert not is_local("127.0.0.1", "1.1", {"host": "localhost", header: "10.0.0.7"})


def test_what_a_proxy_that_says_nothing_sends_is_not_local():
    assert not is_local("127.0.0.1", "1.0", {"host": "127.0.0.1:8000"})


def test_a_name_that_was_made_to_lead_here_is_not_local(page):
    status, _, body = ask(page(), "/data", host="rebound.example")
    assert status == 403
    assert b"this machine only" in body


def test_a_token_is_needed_for_everything_but_the_form(page, shop):
    url = page(token=TOKEN)
    for path in ["/data", "/page.js", "/nothing"]:
        assert ask(url, path)[0] == 401
    status, headers, body = ask(url)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert b'type="password"' in body
    assert ask(url, "/style.css")[0] == 200


def test_a_program_shows_its_token_in_a_header(page, shop):
    url = page(token=TOKEN)
    assert ask(url, "/data", authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(url, "/data", authorization=f"bearer {TOKEN}", x_forwarded_for="10.0.0.7", host="shop.example")[0] == 200
    for wrong in [f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", ""]:
        assert ask(url, "/data", authorization=wrong)[0] == 401


@pytest.mark.parametrize(
    "others",
    ['prefs={"a":1}', "flag", "name=J\xf6rg", "=", ";;", "pgdbpool-status=old", "a=" + "x" * 8000, 'q="; b=\\'],
)
def test_cookies_of_other_applications_do_not_hide_ours(page, shop, others):
    url = page(token=TOKEN)
    cookie = ask(url, "/login", "POST", f"token={urllib.parse.quote(TOKEN)}")[1]["set-cookie"].partition(";")[0]
    for header in (f"{others}; {cookie}", f"{cookie}; {others}"):
        assert ask(url, "/data", cookie=header)[0] == 200, header


def test_each_cookie_may_come_in_a_header_of_its_own(folder):
    app = asgi(directory=str(folder), token=TOKEN)
    ours = f"pgdbpool-status={Guard(TOKEN).ticket}".encode()
    for cookies in ([ours, b"other=1"], [b"other=1", ours], [b"a=1", ours, b"b=2"]):  # as over HTTP/2
        headers = [(b"host", b"localhost"), *((b"cookie", each) for each in cookies)]
        assert call_asgi(app, "/data", headers=headers, http_version="2")[0] == 200, cookies


def test_a_cookie_of_any_size_is_no_ticket(page):
    guard = Guard(TOKEN)
    for header in (
        "a=" + "\\" * 2**16,
        "pgdbpool-status=x;" * 2**12,
        'a="' + "\\1" * 2**15,
    ):  # half a minute each, once
        assert not guard.admits("127.0.0.1", "1.1", {"cookie": header})


def test_a_token_in_the_address_is_not_heeded(page):
    assert ask(page(token=TOKEN), f"/data?token={urllib.parse.quote(TOKEN)}")[0] == 401


def test_a_person_types_the_token_once_and_gets_a_cookie(page, shop):
    url = page(token=TOKEN)
    status, headers, body = ask(url, "/login", "POST", "token=not+the+one")
    assert (status, "set-cookie" in headers) == (401, False)
    assert b"That is not the token." in body
    status, headers, _ = ask(url, "/login", "POST", urllib.parse.urlencode({"token": TOKEN}))
    assert (status, headers["location"]) == (303, "/")
    cookie, *flags = headers["set-cookie"].split("; ")
    assert set(flags) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert TOKEN not in urllib.parse.unquote_plus(cookie)
    assert ask(url, "/data", cookie=cookie)[0] == 200
    assert ask(url, "/data", cookie=cookie[:-1])[0] == 401
    assert ask(page(token=TOKEN + "2"), "/data", cookie=cookie)[0] == 401


@pytest.mark.parametrize("body", ["", "token", "token=", "a=b&" * 20, "\xff", "token=%ff%00"])
def test_what_is_no_token_is_not_accepted(page, body):
    assert ask(page(token=TOKEN), "/login", "POST", body)[0] == 401


def test_where_there_is_no_token_there_is_nothing_to_log_in_to(page):
    assert ask(page(), "/login", "POST", "token=x")[0] == 404


def test_a_token_must_be_long_and_is_never_shown():
    with pytest.raises(ValueError, match="token: expected 16 characters or more, got 6") as raised:
        Guard("hunter")
    assert "hunter" not in str(raised.value)
    assert TOKEN not in repr(Guard(TOKEN))


def test_others_are_not_served_without_a_token(folder):
    with pytest.raises(ValueError, match=r"a token is needed on 0\.0\.0\.0"):
        make("0.0.0.0", 0, name=None, directory=str(folder), token=None)


def test_a_secure_page_has_a_secure_cookie(folder):
    from io import BytesIO

    app = wsgi(directory=str(folder), token=TOKEN)
    body = urllib.parse.urlencode({"token": TOKEN}).encode()
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body)}
    _, headers, _ = call(app, "/login", **environ, **{"wsgi.url_scheme": "https", "SCRIPT_NAME": "/status"})
    assert headers["location"] == "/status/"
    assert headers["set-cookie"].endswith("; Path=/status/; HttpOnly; SameSite=Strict; Secure")


def test_a_length_of_thousands_of_digits_is_too_long_for_a_form_and_no_more(folder):
    from io import BytesIO

    app = wsgi(directory=str(folder), token=TOKEN)
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "9" * 5000, "wsgi.input": BytesIO(b"token=wrong")}
    assert call(app, "/login", **environ)[0] == 401


def test_the_application_may_decide_who_looks(folder):
    app = wsgi(directory=str(folder), protect=False)
    assert call(app, "/data", REMOTE_ADDR="10.0.0.7", HTTP_HOST="shop.example")[0] == 200
    with pytest.raises(ValueError, match="makes no sense with protect=False"):
        wsgi(directory=str(folder), protect=False, token=TOKEN)


# -- mounted --------------------------------------------------------------------------------------------------


def test_mounting_the_page_publishes_the_pools_of_the_process(pg_node, open_pool, folder):
    from conftest import config

    app = wsgi(name="shop", directory=str(folder), protect=False)
    pool = open_pool(config(pg_node))
    with pool.connection() as conn:
        conn.execute("select 1")
    wait_for(lambda: json.loads(call(app, "/data")[2])["summary"]["workers"] == 1)


def test_a_mounted_page_shows_what_the_pools_are_published_as(shop, folder):
    app = wsgi(directory=str(folder), protect=False)
    answer = json.loads(call(app, "/data")[2])
    assert (answer["name"], answer["summary"]["workers"]) == ("shop", 1)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{environ['SCRIPT_NAME']}|{environ['PATH_INFO']}".encode()]


def test_a_page_beside_a_wsgi_application_has_its_own_path_only(folder):
    app = wsgi(beside=hello, at="/status/", directory=str(folder))
    assert call(app, "/")[2] == b"|/"
    assert call(app, "/statusx")[2] == b"|/statusx"
    assert call(app, "/status/")[0] == 200
    status, headers, _ = call(app, "/status", SCRIPT_NAME="/shop")
    assert (status, headers["location"]) == (308, "/shop/status/")
    with pytest.raises(ValueError, match="at: expected a path such as"):
        wsgi(beside=hello, at="status", directory=str(folder))


def test_a_page_beside_an_asgi_application_has_its_own_path_only(folder):
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    app = asgi(beside=other, directory=str(folder))
    assert call_asgi(app, "/x")[2] == b"/x"
    assert call_asgi(app, "/statusx")[2] == b"/statusx"
    assert call_asgi(app, "/status/")[0] == 200
    status, headers, _ = call_asgi(app, "/shop/status", root_path="/shop")
    assert (status, headers["location"]) == (308, "/shop/status/")
    assert call_asgi(app, "/status/data", client=None)[0] == 403


def test_a_token_can_be_typed_in_on_asgi_too(folder):
    app = asgi(directory=str(folder), token=TOKEN)
    body = urllib.parse.urlencode({"token": TOKEN}).encode()
    headers = [(b"host", b"localhost"), (b"content-length", str(len(body)).encode())]
    status, answered, _ = call_asgi(app, "/login", method="POST", headers=headers, body=body)
    assert status == 303
    assert "set-cookie" in answered


SERVED = """
import sys, threading, urllib.request
from pgdbpool.web import asgi, wsgi
folder = sys.argv[1]
{app}
def look(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{{port}}{{path}}", timeout=30) as response:
        return response.url.rpartition(str(port))[2], response.status, response.read().decode()
{serve}
url, status, body = look(port, "/status")
assert (url, status) == ("/status/", 200), (url, status)
assert "page.js" in body
assert look(port, "/status/page.js")[1] == 200
assert '"workers"' in look(port, "/status/data")[2]
assert "hello" in look(port, "/")[2]
print("fine")
{end}
"""

WSGI_SERVER = """
from wsgiref.simple_server import make_server
server = make_server("127.0.0.1", 0, app)
port = server.server_port
threading.Thread(target=server.serve_forever, daemon=True).start()
"""
UVICORN = """
import asyncio, socket, uvicorn
listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
thread.start()
"""
FLASK = """
from flask import Flask
flask = Flask("shop")
flask.route("/")(lambda: "hello")
flask.wsgi_app = wsgi(beside=flask.wsgi_app, directory=folder)
app = flask
"""
DJANGO = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse("hello"))]
settings.configure(ROOT_URLCONF="__main__", ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="x", LOGGING_CONFIG=None)
app = wsgi(beside=get_wsgi_application(), directory=folder)
"""
FASTAPI = """
from fastapi import FastAPI
app = FastAPI()
app.get("/")(lambda: "hello")
app.mount("/status", asgi(directory=folder))
"""
DJANGO_ASGI = (
    DJANGO.replace("get_wsgi_application", "get_asgi_application")
    .replace("core.wsgi", "core.asgi")
    .replace("wsgi(beside", "asgi(beside")
)
UVICORN_END = "server.should_exit = True; thread.join(20)"


@pytest.mark.parametrize(
    ("framework", "app", "serve", "end"),
    [
        ("flask", FLASK, WSGI_SERVER, ""),
        ("django", DJANGO, WSGI_SERVER, ""),
        ("fastapi", FASTAPI, UVICORN, UVICORN_END),
        ("django", DJANGO_ASGI, UVICORN, UVICORN_END),
    ],
    ids=["Flask", "Django", "FastAPI", "Django on ASGI"],
)
def test_it_can_be_mounted_in_frameworks(folder, framework, app, serve, end):
    pytest.importorskip(framework)
    if "uvicorn" in serve:
        pytest.importorskip("uvicorn")
    program = SERVED.format(app=app, serve=serve, end=end)
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


# -- the command ----------------------------------------------------------------------------------------------


def start(*args: Any, **environment: str) -> "subprocess.Popen[str]":
    import os

    return subprocess.Popen(
        [sys.executable, "-c", "from pgdbpool.cli import main; main()", "status", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_the_command_serves_the_page_until_it_is_interrupted(shop, folder):
    with start("--port", 0, "--directory", folder) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert json.loads(ask(url, "/data")[2])["summary"]["workers"] == 1
        finally:
            process.terminate()


def test_the_command_makes_a_token_where_others_could_look(folder):
    with start("--port", 0, "--host", "0.0.0.0", "--directory", folder) as process:
        try:
            port = process.stdout.readline().rpartition(":")[2].strip(" /\n")
            token = process.stdout.readline().split()[-1]
            url = f"http://127.0.0.1:{port}"
            assert ask(url, "/data")[0] == 401
            assert ask(url, "/data", authorization=f"Bearer {token}")[0] == 200
        finally:
            process.terminate()


def test_a_token_that_was_given_is_not_shown(folder):
    with start("--port", 0, "--directory", folder, PGDBPOOL_STATUS_TOKEN=TOKEN) as process:
        url = process.stdout.readline().split()[-1]
        assert ask(url, "/data")[0] == 401
        assert ask(url, "/data", authorization=f"Bearer {TOKEN}")[0] == 200
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert TOKEN not in out + err


def test_the_command_prints_the_numbers_as_json(shop, folder):
    out = output(start("--json", "--directory", folder))
    assert json.loads(out)["shop"]["groups"]["default"]["counters"]["requests"] == 1


def test_a_port_that_is_taken_is_said_in_one_line(page, folder):
    process = start("--port", page().rpartition(":")[2], "--directory", folder)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("pgdbpool status: port ")
    assert err.count("\n") == 1


def test_it_listens_on_the_new_kind_of_addresses_too(folder):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has none")
    server = make("::1", 0, name=None, directory=str(folder), token=None)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        assert ask(f"http://[::1]:{server.server_port}", "/data")[0] == 200
    finally:
        server.shutdown()
        server.server_close()


def test_a_mistake_is_said_in_one_line(folder):
    (folder / "token").write_text("short\n")
    process = start("--port", 0, "--token-file", folder / "token", "--directory", folder)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert "token: expected 16 characters or more, got 5" in err
