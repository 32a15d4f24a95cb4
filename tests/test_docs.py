"""What the README and the manual say is true: their programs run, and the API page has every public name."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import pgdbpool
from pgdbpool.cli.app import app
from pgdbpool.core import stats
from pgdbpool.integrations.catalogue import METRICS, Kind
from pgdbpool.testing import Cluster, Node

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.rst")), ROOT / "docs" / "conf.py"]
ENDPOINT = re.compile(r'\{"host": "db(\d)"[^{}]*\}')


def blocks_of(page: str) -> list[tuple[int, str]]:
    """The Python programs on a page, each with the number of the line before it."""
    text = (ROOT / page).read_text()
    if page.endswith(".md"):
        found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    else:
        found = re.finditer(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), dedent(match[1])) for match in found]


def dedent(code: str) -> str:
    return re.sub(r"^    ", "", code, flags=re.MULTILINE) if code.startswith("    ") else code


def run_page(page: str, nodes: list[Node]) -> None:
    """Run a page's programs one after the other, as a reader would, with db1, db2, ... replaced by real servers."""

    def real(match: re.Match[str]) -> str:
        written = ast.literal_eval(match[0])
        node = nodes[int(match[1]) - 1].endpoint()
        return repr({key: written[key] for key in written if key not in ("pass", "password")} | node)

    blocks = blocks_of(page)
    assert blocks, f"{page} has no program"
    names: dict[str, Any] = {}
    try:
        for line, code in blocks:
            program, count = ENDPOINT.subn(real, code)
            assert count == code.count('"host"'), f"{page}: an endpoint was not understood"
            exec(compile("\n" * line + program, str(ROOT / page), "exec"), names)
    finally:
        if "pool" in names:
            names["pool"].close()
        pgdbpool.Connection.close()


@pytest.fixture
def visits(pg_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the table of the manual's programs."""
    pg_cluster.primary.execute("drop table if exists visits")
    pg_cluster.primary.execute("create table visits (path text)")
    pg_cluster.primary.execute("grant all on visits to public")
    pg_cluster.wait_for_replication()
    yield pg_cluster
    pg_cluster.primary.execute("drop table visits")


def paths(cluster: Cluster) -> list[str]:
    return [path for (path,) in cluster.primary.execute("select path from visits order by path")]


def two_of(cluster: Cluster) -> list[Node]:
    return [cluster.primary, cluster.standbys[0]]


def test_the_readmes_program_runs(visits: Cluster) -> None:
    run_page("README.md", two_of(visits))
    assert paths(visits) == ["/"]


def test_the_readmes_program_does_not_depend_on_the_order_of_the_servers(visits: Cluster) -> None:
    run_page("README.md", two_of(visits)[::-1])
    assert paths(visits) == ["/"]


def test_the_quickstarts_programs_run(visits: Cluster) -> None:
    run_page("docs/quickstart.rst", two_of(visits))
    assert paths(visits) == ["/", "/a", "/b", "/d", "/e", "/f"], "and what is said to be rolled back was"


def test_the_programs_about_metrics_run(pg_cluster: Cluster) -> None:
    run_page("docs/metrics.rst", two_of(pg_cluster))


def test_the_program_about_sizing_runs(pg_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("docs/sizing.rst", two_of(pg_cluster))
    assert capsys.readouterr().out == f"127.0.0.1:{pg_cluster.primary.port} 108\n"


def test_the_example_runs(pg_cluster: Cluster) -> None:
    hosts = ",".join(f"{node.host}:{node.port}" for node in pg_cluster.nodes)
    example = ROOT / "examples" / "quickstart.py"
    done = subprocess.run(
        [sys.executable, example, f"postgresql://app@{hosts}/app"], capture_output=True, text=True, timeout=60
    )
    pg_cluster.primary.execute("drop table if exists visits")
    assert done.returncode == 0, done.stderr
    assert "visits on the primary: 1\n" in done.stdout
    assert "reads go to a standby\n" in done.stdout
    assert done.stderr == ""


def test_the_configurations_shown_are_accepted() -> None:
    for _, code in blocks_of("docs/configuration.rst"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Dict):
                pgdbpool.Pool(ast.literal_eval(node.args[0]), open=False)


def test_every_public_name_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.rst").read_text()
    described = set(re.findall(r"^\.\. auto(?:class|exception):: (?:[\w.]+\.)?(\w+)$", page, re.MULTILINE))
    elsewhere = {"Settings"}  # docs/configuration.rst
    returned = {name for name, value in vars(stats).items() if isinstance(value, type) and name.endswith("Stats")}
    assert described >= set(pgdbpool.__all__) - elsewhere | returned


def described_fields(kind: type) -> dict[str, str]:
    """The fields of a class that say in its source what they are, and what they say."""
    [tree] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, words in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr) and isinstance(field.target, ast.Name):
            found[field.target.id] = ast.literal_eval(words.value)
    return found


STATISTICS = [stats.Counters, stats.GroupStats, stats.LaneStats, stats.EndpointStats, stats.PoolStats]


@pytest.mark.parametrize("kind", STATISTICS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_statistics_says_what_it_is_and_is_on_the_api_page(kind: Any) -> None:
    page = (ROOT / "docs" / "api.rst").read_text()
    assert f".. autoclass:: {kind.__name__}\n   :members:\n   :undoc-members:\n" in page
    assert list(described_fields(kind)) == list(kind.__struct_fields__)


@pytest.mark.parametrize("kind", STATISTICS, ids=lambda kind: kind.__name__)
def test_every_number_is_explained_on_the_page_about_reading_them(kind: Any) -> None:
    page = (ROOT / "docs" / "metrics.rst").read_text().split("OpenTelemetry\n---")[0]
    labels = {"name", "at", "group", "groups", "endpoint", "endpoints", "counters", "limit"}
    assert [field for field in kind.__struct_fields__ if f"``{field}``" not in page and field not in labels] == []


def test_every_metric_is_in_the_table_by_all_its_names() -> None:
    page = (ROOT / "docs" / "metrics.rst").read_text()
    rows = re.findall(r"^   \* - ``([\w.]+)``, [\w, ]+, ``(\S+)``\n     - ``(\w+)``\n", page, re.MULTILINE)
    total = {Kind.COUNTER: "_total"}
    assert rows == [(metric.name, metric.unit, metric.prometheus + total.get(metric.kind, "")) for metric in METRICS]


def test_the_alerts_are_about_series_that_there_are() -> None:
    page = (ROOT / "docs" / "metrics.rst").read_text()
    alerts = page.split("\nAlerts\n---")[1].split("\nHow durations")[0]
    ends = {Kind.COUNTER: ["_total"], Kind.HISTOGRAM: ["_bucket", "_sum", "_count"]}
    there = {metric.prometheus + end for metric in METRICS for end in ends.get(metric.kind, [""])}
    assert set(re.findall(r"pgdbpool_\w+", alerts)) <= there
    assert len(re.findall(r"expr: ", alerts)) > 5


def test_every_reason_to_close_is_described() -> None:
    words = described_fields(stats.Counters)["closed"]
    calls = r'(?:retire|retire_lane|drop_idle|_raise_generation)\(.*"(\w+)"'
    reasons = {why for file in (ROOT / "src").rglob("*.py") for why in re.findall(calls, file.read_text())}
    assert {"broken", "role", "idle"} <= reasons
    assert {why for why in reasons if f"``{why}``" not in words} == set()


def test_every_kind_of_event_is_named_where_events_are_explained() -> None:
    events = (ROOT / "docs" / "failover.rst").read_text().split("\nEvents\n---")[1].split("\n---")[0]
    assert [kind for kind in pgdbpool.EventKind if f"``{kind}``" not in events] == []
    assert list(described_members(pgdbpool.EventKind)) == list(pgdbpool.EventKind.__members__)


def described_members(kind: type) -> list[str]:
    """The members of an enumeration that say in its source what they are."""
    [tree] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    return [
        member.targets[0].id
        for member, words in pairwise(tree.body)
        if isinstance(member, ast.Assign) and isinstance(words, ast.Expr) and isinstance(member.targets[0], ast.Name)
    ]


def test_every_option_of_the_commands_is_in_the_manual() -> None:
    pages = "".join((ROOT / "docs" / f"{page}.rst").read_text() for page in ("cli", "status-page", "demo"))
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", pages))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {"check", "top", "status"} <= commands.keys()
    unnamed = {
        (name, option.opts[0])
        for name, command in commands.items()
        for option in command.params
        if option.opts[0].startswith("-") and not words.intersection(option.opts)
    }
    assert unnamed == set()


def test_the_errors_are_shown_as_they_are_derived() -> None:
    page = (ROOT / "docs" / "api.rst").read_text()
    tree = page.split("    Error\n", 1)[1].split("\n\n", 1)[0]
    parents: list[type] = [pgdbpool.Error]
    for line in tree.splitlines():
        name, *builtin = line.replace("(", " ").replace(")", "").split()
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        kind = getattr(pgdbpool, name)
        assert issubclass(kind, parents[depth - 1])
        assert [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"] == builtin
        parents[depth:] = [kind]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_place_on_somebodys_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|opt)/\S*", page.read_text()) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_the_files_that_are_linked_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_page_of_the_manual_can_be_reached() -> None:
    index = (ROOT / "docs" / "index.rst").read_text()
    pages = {page.stem for page in (ROOT / "docs").glob("*.rst")} - {"index"}
    assert pages <= set(index.split())
