"""The page in a real browser, over an application of two processes, under load and through a failover.

With PGDBPOOL_SCREENSHOTS=1 the pictures of the manual are taken on the way.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import config, wait_for
from records import endpoint, group, pool, worker

from pgdbpool.publish import STEP, GroupSample, Sample, alive, names, place, read
from pgdbpool.publish.record import encoded
from pgdbpool.testing import Cluster

from .conftest import TOKEN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
pytest.importorskip("gunicorn", reason="needs gunicorn: pip install gunicorn")

LIMIT = 30_000  # ms
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "_static"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
GROUPS = {
    "read": {"connection_count": 6, "target_session_attrs": "prefer-standby"},
    "write": {"connection_count": 4, "target_session_attrs": "primary"},
    "transaction": {"connection_count": 4, "autocommit": False, "target_session_attrs": "primary"},
    "batch": {"connection_count": 2, "autocommit": False, "target_session_attrs": "primary"},
}


class Shop:
    """The application: two worker processes of gunicorn."""

    def __init__(self, cluster: Cluster, folder: Path, token: str = "") -> None:
        self.cluster = cluster
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/status/"
        config = {"db": cluster.endpoints(ssl="disable"), "groups": GROUPS}
        here = Path(__file__).resolve().parent
        self._log = folder / "gunicorn.log"
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "app:application", "--workers", "2", "--threads", "2"),
                    *("--chdir", str(here), "--bind", self.url.split("/")[2], "--worker-tmp-dir", str(folder)),
                ],
                env={
                    **os.environ,
                    "SHOP_CONFIG": json.dumps(config),
                    "SHOP_FOLDER": str(folder / "run"),
                    "SHOP_TOKEN": token,
                },
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: len(read("shop", folder / "run")) == 2, limit=60.0)

    def close(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def with_sales(cluster: Cluster) -> Cluster:
    cluster.heal()
    cluster.primary.execute("drop table if exists sales")
    cluster.primary.execute("create table sales (at timestamptz default now())")
    cluster.primary.execute("grant all on sales to public")
    cluster.wait_for_replication()
    return cluster


@pytest.fixture(scope="module")
def shop(_pg_cluster_of_the_session: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(with_sales(_pg_cluster_of_the_session), tmp_path_factory.mktemp("shop"))
    yield shop
    shop.close()
    _pg_cluster_of_the_session.heal()
    _pg_cluster_of_the_session.primary.execute("drop table sales")


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, shop: Shop) -> Iterator[Open]:
    """Opens the page, waits until it shows numbers, and in the end sees that it did nothing improper."""
    visits = []

    def open_page(*, width: int = 1280, height: int = 900, url: str = shop.url, ready: bool = True, **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        page = context.new_page()
        page.set_default_timeout(LIMIT)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(url) else None)
        visits.append((context, complaints))
        page.goto(url)
        if ready:
            until(page, "document.querySelectorAll('#endpoints > li').length === 3")
        return page

    yield open_page
    for context, complaints in visits:
        context.close()
        assert [each for each in complaints if not each.startswith("Failed to load resource")] == []


def until(page: Any, expression: str, argument: Any = None) -> None:
    """Wait until the page says so. The browser's own way to wait is forbidden by the page's security policy."""
    wait_for(lambda: page.evaluate(expression, argument))


def card(page: Any, node: Any) -> Any:
    return page.locator("#endpoints > li", has_text=f"{node.host}:{node.port}")


def says(locator: Any, text: str) -> None:
    playwright.expect(locator).to_contain_text(text, timeout=LIMIT)


# -- under load -----------------------------------------------------------------------------------------------


def test_it_shows_all_processes_servers_and_groups_of_an_application_at_work(shop, visit):
    page = visit()
    says(page.locator("#name"), "shop")
    says(page.locator("#facts"), "2 processes · live")
    says(card(page, shop.cluster.primary), "primary")
    for standby in shop.cluster.standbys:
        says(card(page, standby), "standby")
        says(card(page, standby), "lag")
    assert page.locator("#groups h3").all_inner_texts() == list(GROUPS)
    says(page.locator("#groups > li", has_text="read").first, f"of {2 * 2 * 6}")
    until(page, "[...document.querySelectorAll('#endpoints .rate')].every((each) => parseFloat(each.textContent) > 0)")
    shares = [int(each.get_attribute("aria-valuenow")) for each in page.get_by_role("meter").all()]
    assert 95 <= sum(shares) <= 105
    says(page.locator("#verdict"), "All is well")
    says(page.locator("#holders"), "batch customer")


def publish(folder: Path, *groups: Any, **more: Any) -> None:
    """What a process of the shop would write now."""
    record = worker(pool(*groups, **more), at=time.time(), identity=alive.myself())
    with place.opened(folder) as here:
        here.replace(place.file_name("shop", os.getpid(), "00000000"), encoded(record))


def test_a_server_that_is_down_shows_what_it_was_and_neither_rate_nor_share(visit, page, folder):
    now = time.time() // STEP * STEP
    did = {"db1:5432": 60, "db2:5432": 20}  # also in the minutes to come, however long the browser takes
    samples = tuple(
        Sample(now - number * STEP, {"read": GroupSample(requests=80)}, did) for number in range(30, -91, -1)
    )
    gone = endpoint("db1:5432", health="down", role="unknown", last_role="primary", down_for=3.0, share=0.0)
    there = endpoint("db2:5432", role="standby", last_role="standby")
    full = group("read", limit=4, configured_limit=8, leased=4, idle=2, open=6)  # two rest where callers are not sent
    publish(folder, full, endpoints=(gone, there), samples=samples)
    shown = visit(url=page(), ready=False)
    one, two = (shown.locator("#endpoints > li", has_text=label) for label in did)
    says(one.locator(".role"), "was primary")
    says(one.locator(".health"), "down for 3 s")
    for part in (".work", ".share", ".percent"):
        playwright.expect(one.locator(part)).to_be_hidden(timeout=LIMIT)
    assert "answers in" not in one.inner_text()
    says(two.locator(".work"), "10 leases per second")
    says(two.locator(".percent"), "100 % of the work")
    playwright.expect(shown.locator("#groups .numbers")).to_have_text("4 of 4", timeout=LIMIT)
    parts = "[...document.querySelectorAll('#groups .bar i')].map((part) => parseFloat(part.style.flexGrow))"
    assert shown.evaluate(parts) == [1000, 0, 0, 0], "it is full"
    shown.locator("#groups summary").click()
    says(shown.locator("#groups .lanes"), "8 by the configuration")


def test_the_charts_join_no_gaps_and_show_what_stands_alone(visit, page, folder):
    now = time.time() // STEP * STEP
    used = GroupSample(requests=5, prompt=5, use_times=((10, 5),))
    busy = {60, 59, 58, 40, 20, 19}  # samples ago
    samples = tuple(
        Sample(now - number * STEP, {"read": used} if number in busy else {}, {}) for number in range(100, -1, -1)
    )
    publish(folder, group("read"), samples=samples)
    shown = visit(url=page(), ready=False)
    until(shown, "charts.use.plot !== null && charts.use.drawn[1].filter((value) => value !== null).length === 6")
    drawn = """() => {
        const { plot } = charts.use;
        const path = plot.series[1]._paths;
        return { gaps: path.gaps.length, spans: plot.series[1].spanGaps, alone: charts.use.alone(1).length };
    }"""
    found = shown.evaluate(drawn)
    assert found["spans"] is False
    assert found["gaps"] >= 2, "from one stretch to the next there is no line"
    assert found["alone"] == 1


def test_groups_may_have_the_names_of_what_every_object_has(visit, page, folder):
    names = ["constructor", "__proto__", "toString", "hasOwnProperty"]
    now = time.time() // STEP * STEP
    busy = {name: GroupSample(requests=5) for name in names[:3]}
    samples = [Sample(now - number * STEP, busy, {"db1:5432": 5}) for number in range(9, 0, -1)]
    samples.append(Sample(now, {}, {}))
    publish(folder, *(group(name, 45) for name in names), samples=tuple(samples))
    shown = visit(url=page(), ready=False)
    says(shown.locator("#verdict"), "All is well")
    playwright.expect(shown.locator("#groups h3")).to_have_text(names, timeout=LIMIT)
    playwright.expect(shown.locator("#legend-use li")).to_have_count(len(names), timeout=LIMIT)


def test_the_charts_draw_lines_and_say_in_words_what_they_show(visit):
    page = visit()
    for name in ("rate", "wait", "use"):
        until(page, "(id) => /now: .*\\d/.test(document.getElementById(id).ariaLabel)", f"chart-{name}")
        painted = """(id) => {
            const canvas = document.querySelector(`#${id} canvas`);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const colours = new Set();
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) colours.add(data.slice(i, i + 3).join());
            return colours.size;
        }"""
        assert page.evaluate(painted, f"chart-{name}") > 4
    legend = page.locator("#legend-rate li")
    assert legend.count() == 3
    page.locator("#chart-rate .u-over").hover()
    says(page.locator("#legend-rate"), ":")


def test_it_goes_on_by_itself(visit):
    page = visit()
    read_group = page.locator("#groups > li").first
    read_group.locator("summary").click()
    leases = read_group.locator("details dd").first
    before = int(leases.inner_text().replace(",", ""))
    wait_for(lambda: int(leases.inner_text().replace(",", "")) > before)
    assert read_group.locator("details").get_attribute("open") is not None, "what was unfolded stays so"


# -- whoever looks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_nothing_in_it_shuts_anybody_out(visit, scheme, width):
    page = visit(width=width, color_scheme=scheme)
    page.locator("#groups summary").first.click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_screen_reader_finds_its_parts_by_name(shop, visit):
    page = visit()
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["Servers", "Groups", "The last five minutes", "Events", "Who holds a connection"]
    for name in headings:
        assert page.get_by_role("region", name=name).count() == 1
    assert page.get_by_role("status").inner_text()
    says(page.get_by_role("region", name="Servers"), f"{shop.cluster.primary.host}:{shop.cluster.primary.port}")
    assert page.get_by_role("img", name=re.compile(r"\d+ in use, \d+ idle, \d+ opening, of 24")).count() >= 1
    assert page.get_by_role("img", name=re.compile("Leases per second by server, now: ")).count() == 1
    assert page.get_by_role("meter").count() == 3


def test_everything_can_be_reached_by_keyboard(visit):
    page = visit()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached[0] == "Skip to the servers"
    assert reached[1] == "theme"
    assert reached.count("Since the start") == 4
    assert "events" in reached
    page.locator("#groups summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#groups details").first.get_attribute("open") is not None


@pytest.mark.parametrize("width", [320, 768])
def test_nothing_has_to_be_scrolled_sideways(visit, width):
    page = visit(width=width, height=800, has_touch=True)
    page.locator("#groups summary").first.click()
    says(page.locator("#holders"), "customer")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator(".chart").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_dark_and_light_follow_the_system_until_somebody_chooses(visit):
    def background(page: Any) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    assert background(light) != background(dark)
    button = light.get_by_role("button", name="Theme: system")
    button.click()
    assert background(light) != background(dark), "system, then light"
    light.get_by_role("button", name="Theme: light").click()
    assert background(light) == background(dark)
    light.reload()
    assert light.get_by_role("button", name="Theme: dark").count() == 1, "it is remembered"
    assert background(light) == background(dark)


def test_a_page_whose_application_has_gone_says_so_and_comes_back(visit):
    page = visit()
    page.context.set_offline(True)
    says(page.locator("#verdict"), "No news for")
    page.context.set_offline(False)
    says(page.locator("#verdict"), "All is well")


def test_a_token_is_asked_for_once(tmp_path, shop, visit):
    guarded = Shop(shop.cluster, tmp_path, TOKEN)
    try:
        page = visit(url=guarded.url, ready=False)
        page.get_by_label("Token").fill("not the one, certainly")
        page.get_by_role("button", name="Show the page").click()
        says(page.get_by_role("alert"), "That is not the token.")
        assert axe.Axe().run(page).violations_count == 0
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        says(page.locator("#facts"), "2 processes")
        page.reload()
        says(page.locator("#facts"), "2 processes")
        assert TOKEN not in page.url
        assert TOKEN not in page.content()
    finally:
        guarded.close()


# -- several applications, and what they are called --------------------------------------------------------------


def published(node: Any, folder: Path, name: str, group: str) -> dict[str, Any]:
    return config(node, groups={group: {}}) | {"status": {"name": name, "directory": str(folder), "interval": 0.1}}


def test_one_of_several_applications_can_be_chosen(pg_node, open_pool, folder, page, visit):
    for name in ("cart", "shop"):
        with open_pool(published(pg_node, folder, name, f"of-{name}")).connection(f"of-{name}") as conn:
            conn.execute("select 1")
    wait_for(lambda: names(folder) == ["cart", "shop"])
    shown = visit(url=f"{page()}/", ready=False)
    says(shown.locator("#groups"), "of-cart")
    shown.get_by_label("Application").select_option("shop")
    says(shown.locator("#groups"), "of-shop")
    assert "of-cart" not in shown.locator("#groups").inner_text()
    shown.reload()
    says(shown.locator("#groups"), "of-shop")


def test_what_looks_like_markup_is_text(pg_node, open_pool, folder, page, visit):
    evil = "<img src=x onerror=alert(1)>"
    pool = open_pool(published(pg_node, folder, "shop", evil))
    with pool.connection(evil):
        shown = visit(url=f"{page()}/", ready=False)
        says(shown.locator("#groups h3"), evil)
        says(shown.locator("#holders"), evil)
        assert shown.locator("main img").count() == 0


# -- through a failover ---------------------------------------------------------------------------------------


def test_a_failover_can_be_watched(shop, visit):
    cluster = shop.cluster
    page = visit()
    says(page.locator("#verdict"), "All is well")
    if os.environ.get("PGDBPOOL_SCREENSHOTS"):
        time.sleep(80)  # so that the charts have something to show
    old = cluster.primary
    old.kill()
    says(page.locator("#verdict"), "a failover is under way")
    says(card(page, old), "down for")
    new = cluster.failover()
    says(card(page, new), "primary")
    failover = page.locator("#events li.failover")
    says(failover.first, f"{new.host}:{new.port} is the primary now")
    says(failover.first, "seen by 2 pools")
    says(page.locator("#events"), "is down")
    says(page.locator("#verdict"), f"{old.host}:{old.port} is down.")
    playwright.expect(page.locator("#verdict")).to_have_class("verdict bad")
    if os.environ.get("PGDBPOOL_SCREENSHOTS"):
        time.sleep(20)
        take_pictures(visit)
    old.rejoin(new)
    says(card(page, old), "standby")
    says(page.locator("#verdict"), "All is well")
    says(page.locator("#verdict"), "all 3 servers are up")


def take_pictures(visit: Open) -> None:
    PICTURES.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, device_scale_factor=1)
        page.wait_for_timeout(4000)
        page.screenshot(path=PICTURES / f"status-page-{scheme}.png", full_page=True)
    page = visit(width=390, height=844, color_scheme="light", device_scale_factor=2)
    page.wait_for_timeout(4000)
    page.screenshot(path=PICTURES / "status-page-phone.png")
