"""The last minutes of one pool, by a clock of its own."""

from records import group, lane, stats

from pgdbpool.core.stats import PoolStats
from pgdbpool.publish import HISTORY, STEP, GroupSample, Sample
from pgdbpool.publish.chronicle import Chronicle


class Pretended:
    """A pool that has counted what a test says."""

    def __init__(self) -> None:
        self.requests = 0
        self.searched = 0
        self.leased = 0
        self.chronicle = Chronicle("threaded")

    def stats(self, *, all_time: bool = False) -> PoolStats:
        assert all_time, "what others have popped must not be missing"
        return stats(group("read", self.requests, lanes=(lane("db1:5432", self.requests),), leased=self.leased))

    def holders(self, name: str | None = None) -> list[object]:
        self.searched += 1
        return []

    def look(self, at: float, requests: int = 0) -> list[tuple[float, int]]:
        self.requests += requests
        record = self.chronicle.record(self, at)  # type: ignore[arg-type]
        return [(sample.at, sample.endpoints.get("db1:5432", 0)) for sample in record.samples()]


def test_what_happens_belongs_to_the_time_in_which_it_is_seen():
    pool = Pretended()
    assert pool.look(100.0) == [(100.0, 0)]
    assert pool.look(101.0, 5) == [(100.0, 5)]
    assert pool.look(102.0, 1) == [(100.0, 5), (102.0, 1)]
    assert pool.look(103.0, 1) == [(100.0, 5), (102.0, 2)]
    assert pool.look(104.5, 7) == [(100.0, 5), (102.0, 2), (104.0, 7)]


def test_what_happens_after_a_long_rest_does_not_belong_to_the_time_before_it():
    pool = Pretended()
    pool.look(100.0)
    pool.look(100.5, 3)
    assert pool.look(200.0, 1) == [(100.0, 3), (200.0, 1)]


def test_what_was_counted_before_the_first_look_happened_at_no_known_time():
    pool = Pretended()
    assert pool.look(100.0, 1000) == [(100.0, 0)]


def test_only_the_last_minutes_are_kept():
    pool = Pretended()
    for step in range(HISTORY + 10):
        found = pool.look(step * STEP, 1)
    assert len(found) == HISTORY + 1
    assert found[-1][0] - found[0][0] == HISTORY * STEP


def test_a_clock_that_was_set_back_begins_anew():
    pool = Pretended()
    pool.look(100.0, 1)
    pool.look(104.0, 1)
    assert pool.look(50.0, 1) == [(50.0, 0)]
    assert pool.look(51.0, 1) == [(50.0, 1)]


def test_what_is_quiet_takes_no_room():
    pool = Pretended()
    pool.look(100.0)
    pool.look(102.0, 2)
    *_, sample = pool.chronicle.record(pool, 104.0).samples()  # type: ignore[arg-type]
    assert sample == Sample(104.0, {}, {})


def test_only_the_samples_that_are_asked_for_are_given():
    pool = Pretended()
    for at in (100.0, 102.0, 104.0):
        pool.look(at, 1)
    record = pool.chronicle.record(pool, 104.5)  # type: ignore[arg-type]
    assert [sample.at for sample in record.samples(102.0)] == [102.0, 104.0]
    assert record.samples(200.0) == ()
    assert record.samples()[1].groups == {"read": GroupSample(requests=1)}


def test_nobody_is_looked_for_while_nobody_holds_anything():
    pool = Pretended()
    pool.look(100.0)
    assert pool.searched == 0
    pool.leased = 1
    pool.look(101.0)
    assert pool.searched == 1
