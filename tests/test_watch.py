"""When a watch probes, and what it tells: on a clock that moves only when everybody sleeps, without any server."""

import asyncio
import random
import selectors
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from pgdbpool import monitor
from pgdbpool.config import MonitorSettings, load
from pgdbpool.core.evidence import Fault, Report, Role, Sighting
from pgdbpool.drivers import ConnectFailed
from pgdbpool.monitor import Subscription, Watch
from pgdbpool.probe import Asked
from pgdbpool.renewal import CALM, URGENT
from pgdbpool.search import HURRY, Search

ANSWER = Sighting(Report(Role.PRIMARY))
NEVER = 1e9


class Instant(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Does not wait: moves the clock on instead."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody sleeps, and nobody would wake them"
            self.loop.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 1000.0
        selector = Instant()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class Session:
    finished = False

    def finish(self) -> None:
        self.finished = True


@dataclass
class Scene:
    """One watch, a server that answers as told, and one subscriber."""

    loop: VirtualLoop
    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 2
    kept_answers: float = 0.01  # s after which a kept session answers
    new_answers: float = 0.01  # s after which a new one does
    fault: Fault | None = None  # which a new one meets instead
    life: float = NEVER
    host: str = "127.0.0.1"
    hurry: bool = False
    doubt: bool = False  # until a new connection is answered
    stubborn: bool = False  # ... and even then
    began: list[tuple[float, bool]] = field(default_factory=list)  # probes: when, and whether on a new connection
    told: list[tuple[float, str]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    newest: float = 0.0
    search: Search = field(default_factory=lambda: Search(random.random))

    def __post_init__(self) -> None:
        scene = self

        class Played(Watch):
            async def _attempt(self, *, fresh: bool) -> Asked:
                new = fresh or self.session is None
                scene.began.append((scene.loop.now, new))
                took = scene.new_answers if new else scene.kept_answers
                if took > scene.timeout:
                    await asyncio.sleep(scene.timeout)
                    if not new:
                        self._drop()
                    raise ConnectFailed("no answer", Fault.TIMEOUT)
                await asyncio.sleep(took)
                if new and scene.fault:
                    raise ConnectFailed("no", scene.fault)
                if new:
                    scene.sessions.append(Session())
                session: Any = scene.sessions[-1] if new else self.session
                return Asked(session, ANSWER, took, scene.loop.now if new else self._since)

        (where,) = load({"db": {"host": self.host, "name": "a", "user": "a"}, "groups": {"g": {}}}).db
        how = MonitorSettings(interval=self.interval, timeout=self.timeout, fall=self.fall, max_lifetime=self.life)
        self.watch = Played(where, self.search)
        self.watch.subscriptions.append(Subscription(None, where, how, self))  # type: ignore[arg-type]

    # as a subscriber

    def probed(self, sighting: Sighting, seconds: float, since: float) -> None:
        assert sighting._replace(spread=None) == ANSWER
        if since > self.newest:
            self.newest = since
            self.doubt = self.stubborn and self.doubt
        self.told.append((self.loop.now, "answered"))

    def probe_failed(self, fault: Fault, error: str) -> None:
        self.told.append((self.loop.now, fault.value))

    def in_a_hurry(self) -> bool:
        return self.hurry

    def in_doubt(self) -> bool:
        return self.doubt

    def is_urgent(self) -> bool:
        return self.hurry

    def ended(self) -> None:
        pass

    # as the test

    def run(self, seconds: float) -> None:
        """Let so much time pass; what was written down before is forgotten."""
        self.began.clear()
        self.told.clear()
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def freeze(self) -> None:
        self.kept_answers = self.new_answers = NEVER

    def words(self) -> list[str]:
        return [words for _, words in self.told]

    def gaps(self) -> list[float]:
        """Between two rounds; those beside a first one do not begin any."""
        return [round(later - earlier, 6) for (earlier, _), (later, _) in zip(self.began, self.began[1:], strict=False)]


@pytest.fixture
def scene(monkeypatch):
    """Makes a scene whose watch runs, and has been answered once."""
    loop = VirtualLoop()
    monkeypatch.setattr(monitor, "monotonic", loop.time)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr(random, "random", lambda: 0.5)
    tasks = []

    def make(**more: Any) -> Scene:
        made = Scene(loop, **more)
        tasks.append(loop.create_task(made.watch.run()))
        made.run(0.05)
        return made

    yield make
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


# -- while all is well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0.2, 1.0, 60.0])
def test_a_server_that_answers_is_probed_once_in_an_interval_on_one_connection(interval, scene):
    watched = scene(interval=interval)
    watched.run(20 * interval)
    assert set(watched.words()) == {"answered"}
    assert len(watched.began) == 20
    assert set(watched.gaps()) == {interval}
    assert len(watched.sessions) == 1


def test_the_interval_varies_by_a_tenth(monkeypatch, scene):
    asked = []
    monkeypatch.setattr(random, "uniform", lambda *bounds: asked.append(bounds) or 1.0)
    scene().run(5)
    assert set(asked) == {(0.9, 1.1)}


def test_an_answer_that_takes_its_time_is_waited_for(scene):
    watched = scene(timeout=1.0)
    watched.kept_answers = 0.45
    watched.run(10)
    assert set(watched.words()) == {"answered"}
    assert not any(new for _, new in watched.began)


# -- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("fall", [1, 2, 3, 4, 7])
def test_a_server_that_freezes_is_found_out_after_the_time_that_the_manual_says(fall, timeout, scene):
    watched = scene(timeout=timeout, fall=fall)
    frozen = watched.loop.now
    watched.freeze()
    watched.run(5 + 5 * timeout * fall)
    assert watched.words()[:fall] == ["timeout"] * fall
    first_probe = watched.began[0][0]
    found_out = watched.told[fall - 1][0]
    assert found_out - first_probe == pytest.approx(timeout * (fall + 1) / 2)
    assert found_out - frozen <= 1.1 * watched.interval + timeout * (fall + 1) / 2


def test_a_second_look_is_taken_beside_the_first_on_a_connection_of_its_own(scene):
    watched = scene(fall=3)
    watched.freeze()
    watched.run(3)
    at = [(round(when - watched.began[0][0], 6), new) for when, new in watched.began[:3]]
    assert at == [(0.0, False), (0.5, True), (1.0, True)]


def test_a_connection_that_died_in_silence_is_replaced_and_that_is_no_failure(scene):
    # A router between us has forgotten it, say.
    watched = scene()
    watched.kept_answers = NEVER
    watched.run(0.99)
    watched.run(0.6)
    assert watched.words() == ["answered"]
    assert [new for _, new in watched.began] == [True]
    old, new = watched.sessions
    assert old.finished
    assert watched.watch.session is new


def test_a_dead_server_is_probed_once_in_an_interval_and_by_one_probe(scene):
    watched = scene(interval=2.0)
    watched.freeze()
    watched.run(10)
    watched.run(20)
    assert set(watched.gaps()) == {2.0}


def test_a_server_that_comes_back_is_heard_with_the_next_probe(scene):
    watched = scene(interval=2.0)
    watched.freeze()
    watched.run(10)
    watched.new_answers = 0.01
    watched.run(2.1)
    assert "answered" in watched.words()


def test_after_a_first_silence_that_was_broken_the_count_begins_again(scene):
    watched = scene(fall=2, timeout=1.0)
    for _ in range(3):
        watched.kept_answers = NEVER
        watched.new_answers = 0.7  # in time, but not before the first probe has failed
        watched.run(2.5)
        assert watched.words().count("timeout") == 1
        watched.kept_answers = 0.01
        watched.run(1.0)
        assert watched.words()[-1] == "answered"


# -- a server that says no --------------------------------------------------------------------------------------------


def lose(watched: Scene, fault: Fault) -> None:
    """The session ends, and new ones meet this."""
    watched.watch.drop_session()
    watched.fault = fault


def test_a_refused_connect_is_told_at_once_and_asked_again_soon_until_it_is_certain(scene):
    watched = scene(fall=3, interval=5.0)
    lose(watched, Fault.REFUSED)
    watched.run(30)
    assert set(watched.words()) == {"refused"}
    assert max(watched.gaps()[:2]) < 0.05
    assert watched.gaps()[2:4] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("fault", "least", "most"), [(Fault.FULL, 600 / 1.1, 600 / 0.1), (Fault.MISCONFIGURED, 600 / 31, 600 / 2)]
)
def test_a_server_that_turns_us_away_is_asked_slowly_whatever_the_interval(fault, least, most, scene):
    watched = scene(interval=0.05)
    lose(watched, fault)
    watched.run(600)
    assert set(watched.words()) == {fault.value}
    assert least <= len(watched.began) <= most
    assert min(watched.gaps()) >= (0.1 if fault is Fault.FULL else 2.0)


def test_a_server_that_is_starting_is_asked_at_the_usual_pace_and_not_taken_for_dead(scene):
    watched = scene(interval=0.5)
    lose(watched, Fault.STARTING)
    watched.run(10)
    assert set(watched.words()) == {"starting"}
    assert set(watched.gaps()) == {0.5}


def test_one_that_takes_long_to_start_is_asked_less_and_less_often_though_somebody_waits(scene):
    watched = scene()
    watched.hurry = True
    lose(watched, Fault.STARTING)
    watched.run(60)
    gaps = watched.gaps()
    assert gaps == sorted(gaps)
    assert 0.03 <= gaps[0] <= 0.05
    assert 1.0 <= gaps[-20] <= gaps[-1] <= 1.2
    watched.fault = None
    watched.run(1)
    watched.run(5)
    assert set(watched.gaps()) == {HURRY}


def test_one_that_let_us_in_again_is_probed_at_the_usual_pace_again(scene):
    watched = scene()
    lose(watched, Fault.MISCONFIGURED)
    watched.run(200)
    watched.fault = None
    watched.run(40)
    watched.run(10)
    assert set(watched.gaps()) == {1.0}


# -- hurry ------------------------------------------------------------------------------------------------------------


def test_while_a_role_is_missing_probes_follow_each_other_ten_times_a_second(scene):
    watched = scene()
    watched.run(1.0)
    watched.hurry = True
    watched.run(5)
    assert set(watched.gaps()) == {HURRY}
    watched.hurry = False
    watched.run(1)
    watched.run(5)
    assert set(watched.gaps()) == {1.0}


def test_while_nobody_is_there_and_somebody_waits_it_is_asked_often_at_first(scene):
    watched = scene()
    watched.hurry = True
    lose(watched, Fault.REFUSED)
    watched.run(60)
    gaps = watched.gaps()
    assert gaps == sorted(gaps)
    assert 0.02 <= gaps[0] <= 0.04
    assert 1.0 <= gaps[-20] <= gaps[-1] <= 1.2
    watched.freeze()  # one that is silent is not asked so often: each question is open for long
    watched.run(1)
    watched.run(20)
    assert min(watched.gaps()) >= HURRY


def test_one_that_was_gone_and_starts_up_is_asked_soon_again(scene):
    watched = scene()
    watched.hurry = True
    lose(watched, Fault.REFUSED)
    watched.run(60)
    watched.fault = Fault.STARTING
    watched.run(2)
    assert watched.gaps()[1] <= 0.05


def test_all_that_are_gone_share_one_pace(scene):
    search = Search(random.random)
    gone = [scene(search=search) for _ in range(60)]
    for each in gone:
        each.hurry = True
        lose(each, Fault.REFUSED)
    gone[0].run(5)
    for each in gone:
        each.began.clear()
    gone[0].run(10)
    assert all(each.began for each in gone)
    assert sum(len(each.began) for each in gone) < 400
    for each in gone[1:]:
        each.fault = None
    gone[0].run(5)
    for each in gone:
        each.began.clear()
    gone[0].run(5)  # now it is the only one
    assert len(gone[0].began) >= 4


def test_alarms_do_not_hasten_the_search_for_one_that_is_gone(scene):
    watched = scene()
    lose(watched, Fault.REFUSED)
    watched.run(30)

    async def ring() -> None:
        while True:
            watched.watch.bell.set()
            await asyncio.sleep(0.001)

    ringing = watched.loop.create_task(ring())
    watched.run(20)
    ringing.cancel()
    assert min(watched.gaps()) >= 1.0


def test_an_alarm_that_never_stops_does_not_make_a_probe_of_every_ring(scene):
    watched = scene()

    async def ring() -> None:
        while True:
            watched.watch.bell.set()
            await asyncio.sleep(0.001)

    ringing = watched.loop.create_task(ring())
    watched.run(2)
    ringing.cancel()
    assert min(watched.gaps()) >= HURRY / 2


def test_an_interval_shorter_than_the_hurry_stays(scene):
    watched = scene(interval=0.06)
    watched.hurry = True
    watched.run(5)
    assert set(watched.gaps()) == {0.06}


def test_the_alarm_has_a_probe_sent_at_once(scene):
    watched = scene(interval=60.0)
    watched.run(10)
    watched.watch.bell.set()
    watched.run(1)
    assert len(watched.began) == 1
    watched.run(59)
    assert len(watched.began) == 0


def test_an_alarm_that_rings_without_end_is_heeded_twenty_times_a_second(scene):
    watched = scene(interval=60.0)

    async def ring():
        for _ in range(1000):
            watched.watch.bell.set()
            await asyncio.sleep(0.001)

    watched.began.clear()
    watched.loop.run_until_complete(ring())
    assert 15 <= len(watched.began) <= 21


def test_an_alarm_during_a_probe_has_another_one_sent(scene):
    watched = scene(interval=60.0)
    watched.kept_answers = 0.3
    watched.watch.bell.set()
    watched.run(0.1)
    assert len(watched.began) == 1
    watched.watch.bell.set()
    watched.run(1)
    assert len(watched.began) == 1


# -- what goes wrong in the watch itself ------------------------------------------------------------------------------


def test_a_bug_does_not_blind_the_watch(scene, caplog):
    watched = scene()
    working = watched.watch._attempt

    async def broken(*, fresh: bool) -> Asked:
        raise RuntimeError("a bug")

    watched.watch._attempt = broken
    watched.run(3)
    watched.watch._attempt = working
    watched.run(3)
    assert "answered" in watched.words()
    assert "a bug" in caplog.text
    assert "goes on" in caplog.text


def test_a_watch_that_ends_in_the_middle_of_a_round_leaves_no_task(scene):
    watched = scene()
    watched.freeze()
    watched.run(1.6)  # two probes are under way
    tasks = asyncio.all_tasks(watched.loop)
    for task in tasks:
        task.cancel()
    watched.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    assert asyncio.all_tasks(watched.loop) == set()


# -- a new connection, before it is needed ----------------------------------------------------------------------------


def open_sessions(watched):
    return [session for session in watched.sessions if not session.finished]


def new_ones(watched):
    return [when for when, new in watched.began if new]


def test_the_life_of_a_session_is_bounded_and_no_probe_is_missing(scene):
    watched = scene(life=20.0)
    watched.run(200)
    assert len(new_ones(watched)) == pytest.approx(200 / 15, abs=2)  # from 10 to 20 s
    assert set(watched.words()) == {"answered"}
    assert len(open_sessions(watched)) == 1
    assert watched.watch.session is watched.sessions[-1]


def test_lives_that_begin_together_end_apart(monkeypatch, scene):
    monkeypatch.setattr(random, "random", lambda: 0.0)
    short = scene(life=20.0)
    monkeypatch.setattr(random, "random", lambda: 1.0)
    long = scene(life=20.0)
    short.run(19)
    assert (len(short.sessions), len(long.sessions)) == (2, 1)


def test_a_doubt_is_resolved_by_a_new_connection_at_once(scene):
    watched = scene(interval=60.0)
    watched.doubt = True
    watched.watch.bell.set()
    watched.run(10)
    assert len(new_ones(watched)) == 1
    assert new_ones(watched)[0] - watched.began[0][0] < 2 * HURRY


@pytest.mark.parametrize(("hurry", "most"), [(True, URGENT), (False, CALM)])
def test_a_doubt_that_stays_is_looked_into_again_and_again_and_less_often_the_longer_it_lasts(hurry, most, scene):
    watched = scene(hurry=hurry, doubt=True, stubborn=True)
    watched.run(300)
    times = new_ones(watched)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] < 0.3
    assert max(gaps) <= most + 0.2
    assert min(gaps[-3:]) >= most - 0.2
    assert len(times) <= 300 / most + 60
    assert len(open_sessions(watched)) == 1


@pytest.mark.parametrize("interval", [0.1, 1.0, 60.0])
def test_while_callers_wait_never_a_second_goes_by_without_a_new_connection_however_long_that_lasts(interval, scene):
    watched = scene(interval=interval, hurry=True, doubt=True, stubborn=True)
    for _ in range(5):
        watched.run(60)
        gaps = [later - earlier for earlier, later in pairwise(new_ones(watched))]
        # The rest is for what the connection itself takes, and the hand-over to the caller.
        assert max(gaps) < 0.96


def test_a_caller_who_comes_ends_the_calm(scene):
    watched = scene(interval=60.0, doubt=True, stubborn=True)
    watched.run(300)
    watched.hurry = True
    watched.watch.bell.set()
    watched.run(1.5)
    assert new_ones(watched)


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.MISCONFIGURED, Fault.LOCAL])
def test_that_the_server_lets_nobody_in_is_no_failure_while_the_session_is_answered(fault, scene):
    watched = scene(life=20.0, doubt=True, stubborn=True, hurry=True)
    watched.fault = fault
    watched.run(100)
    assert set(watched.words()) == {"answered"}
    assert len(watched.told) >= 90
    assert 2 <= len(new_ones(watched)) <= 200
    assert len(open_sessions(watched)) == 1


def test_nor_is_a_new_connection_that_is_not_answered(scene):
    watched = scene(life=20.0)
    watched.new_answers = NEVER
    watched.run(100)
    assert set(watched.words()) == {"answered"}
    assert not watched.sessions[0].finished


def test_where_nobody_listens_any_more_the_session_counts_for_nothing(scene):
    watched = scene(life=20.0)
    watched.fault = Fault.REFUSED
    watched.run(30)
    assert "refused" in watched.words()
    assert open_sessions(watched) == []


def test_a_changed_address_is_a_reason_to_see_what_is_there(monkeypatch, scene):
    answer = ["10.0.0.1"]

    async def look_up(host):
        assert host == "db.test"
        return list(answer)

    monkeypatch.setattr(monitor.names, "look_up_here", look_up)
    watched = scene(host="db.test")
    watched.run(100)
    assert new_ones(watched) == []
    answer[:] = ["10.0.0.2"]
    watched.run(7)
    assert len(new_ones(watched)) == 1
    watched.run(100)
    assert new_ones(watched) == []


def test_a_name_whose_answers_always_differ_costs_few_connections(monkeypatch, scene):
    turn = iter(range(10**6))

    async def look_up(host):
        return [f"10.0.0.{next(turn) % 3}"]

    monkeypatch.setattr(monitor.names, "look_up_here", look_up)
    watched = scene(host="db.test", life=60.0)
    watched.run(600)
    assert len(new_ones(watched)) <= 600 / 45 + 600 / 60 + 5


def test_a_name_that_cannot_be_looked_up_is_none_of_it(monkeypatch, scene):
    async def look_up(host):
        raise OSError("no answer")

    monkeypatch.setattr(monitor.names, "look_up_here", look_up)
    watched = scene(host="db.test")
    watched.run(100)
    assert set(watched.words()) == {"answered"}
    assert new_ones(watched) == []
