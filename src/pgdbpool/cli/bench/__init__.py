"""`pgdbpool bench`: a quick load on the user's own servers, through their own configuration.

It answers "what do my servers, my network and this machine give through this pool", not "how fast is the pool": the
manual's benchmarks do that. `load` is the work, `report` what was measured, and here is how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgdbpool.cli.output import complain, console, mark, milliseconds, print_json, table
from pgdbpool.cli.source import WRONG
from pgdbpool.config import Settings
from pgdbpool.errors import Error
from pgdbpool.printable import one_line
from pgdbpool.sync import Pool

from .load import Load
from .report import BenchReport, Times, report

__all__ = ["run"]

START = 5.0  # s: how long the first connections may take
INTERRUPTED = 130


def run(settings: Settings, groups: Sequence[str], threads: int | None, seconds: float, *, as_json: bool) -> int:
    """Put the servers under load, and say what came of it; the exit code."""
    wrong = _wrong(settings, groups, threads)
    if wrong:
        complain(wrong, "bench")
        return WRONG
    if threads is None:
        threads = 1 if settings.type == "non-threaded" else 4
    pool = Pool(settings)
    interrupted = False
    try:
        load = Load(pool, groups or list(settings.groups), threads, seconds)
        pool.wait(START)
        pool.pop_stats()
        try:
            with _progress(load, console(stderr=True)):
                load.run()
        except KeyboardInterrupt:
            interrupted = True
        result = report(load, threads, pool.stats())
    except Error as error:
        complain(error, "bench")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        pool.close(timeout=1.0)
    if as_json:
        print_json(result)
    else:
        show(result, console())
    return INTERRUPTED if interrupted else 0 if result.ok else 1


def _wrong(settings: Settings, groups: Sequence[str], threads: int | None) -> str | None:
    for name in groups:
        if name not in settings.groups:
            return f"--group {name}: there is no such group, the configuration has {', '.join(settings.groups)}"
    if settings.type == "non-threaded" and (threads or 1) > 1:
        return f'--threads {threads}: a pool of type "non-threaded" serves one thread'
    return None


@contextmanager
def _progress(load: Load, screen: Console) -> Iterator[None]:
    def picture() -> Table:
        elapsed = load.elapsed()
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=load.seconds, completed=elapsed, width=30),
            Text(f"{elapsed:.0f} of {load.seconds:.0f} s, {load.done():,} operations"),
        )
        return row

    with ExitStack() as stack:
        if screen.is_terminal:
            live = Live(console=screen, get_renderable=picture, refresh_per_second=5, transient=True)
            stack.callback(live.stop)  # before it starts: Ctrl-C may come in the middle of that
            live.start(refresh=True)
        yield


def show(result: BenchReport, screen: Console) -> None:
    """The tables."""
    words = f"{result.threads} thread{'s' if result.threads > 1 else ''}, {result.seconds:.1f} s, select 1"
    screen.print(Text("pgdbpool bench", "bold"), Text(words, "dim"))
    names = ("per second", "failed", "wait p50", "p99", "use p50", "p99")
    shown = table("", "group", *names, right=names)
    for group in result.groups:
        shown.add_row(
            mark(bool(group.operations) and not group.failed),
            Text(group.group, "bold"),
            f"{group.rate:,.0f}",
            Text(str(group.failed), "bold red" if group.failed else "dim"),
            *(milliseconds(each) for times in (group.wait, group.use) for each in _of(times)),
        )
    screen.print(shown)
    endpoints = list(dict.fromkeys(endpoint for group in result.groups for endpoint in group.share))
    shares = table("endpoint", *(group.group for group in result.groups))
    for endpoint in endpoints:
        shares.add_row(endpoint, *(_share(group.share.get(endpoint)) for group in result.groups))
    screen.print(shares)
    for group in result.groups:
        for error, count in group.failures.items():
            screen.print(mark(False), Text(one_line(f"{group.group}: {count} times {error}")))
    screen.print(Text(f"{result.rate:,.0f} operations per second in all", "bold"))


def _of(times: Times | None) -> tuple[float | None, float | None]:
    return (times.p50, times.p99) if times else (None, None)


def _share(share: float | None) -> Text:
    if share is None:
        return Text("")
    return Text("█" * round(share * 10), "blue").append(f" {share:.0%}" if share else "", "default")
