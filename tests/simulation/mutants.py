"""Does the simulation find anything? Break core in one place at a time, and see within how many seeds it is noticed.

``python -m tests.simulation.mutants`` copies the package, applies one mutant at a time to the copy, and runs seeds until
one fails. Each mutant is a piece of source text and what stands in its place; one that no longer applies says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    # -- the book-keeping of places
    Mutant("opened keeps its place reserved", "core/topology.py",
           "            lane.opening -= 1\n            endpoint.connecting -= 1\n            lane.connects += 1\n",
           "            endpoint.connecting -= 1\n            lane.connects += 1\n"),
    Mutant("a failed connect is still under way", "core/topology.py",
           "            endpoint.connecting -= 1\n            self._connect_failed(endpoint, fault",
           "            self._connect_failed(endpoint, fault"),
    Mutant("a failed setup keeps its place reserved", "core/topology.py",
           "            lane.opening -= 1\n            lane.endpoint.connecting -= 1\n            lane.failures += 1\n",
           "            lane.endpoint.connecting -= 1\n            lane.failures += 1\n"),
    Mutant("a cancelled connect keeps its place reserved", "core/topology.py",
           "            order.lane.opening -= 1\n", ""),
    Mutant("a closed connection counts for ever", "core/group.py",
           "                slot.lane.closing -= 1\n", "                pass\n"),
    Mutant("a retired slot still counts as open", "core/group.py", "        lane.open -= 1\n", ""),
    Mutant("total_count is not looked at", "core/lane.py",
           "return self.total < group.limit and (group.total_limit is None or group.total < group.total_limit)",
           "return self.total < group.limit"),
    Mutant("one connection too many", "core/lane.py", "return self.total < group.limit and",
           "return self.total <= group.limit and"),
    Mutant("connections being closed do not count", "core/lane.py", "return self.open + self.opening + self.closing",
           "return self.open + self.opening"),
    # -- hand-off and fairness
    Mutant("give does not look for waiters again", "core/group.py",
           "            self.sweep(lane)\n        if waiters:\n            self.match()\n",
           "            self.sweep(lane)\n"),
    Mutant("a waiter does not look again", "core/group.py", "                self.waiters.append(waiter)\n        self.match()\n",
           "                self.waiters.append(waiter)\n"),
    Mutant("a slot is handed to one that left", "core/group.py", "            if waiter.claim():\n                waiter.receive(slot)\n",
           "            waiter.claim()\n            if True:\n                waiter.receive(slot)\n"),
    Mutant("one that leaves does not say so", "core/group.py", "        if not waiter.claim():\n            return False\n", ""),
    Mutant("a slot nobody took over is dropped", "core/group.py", "                slot.lane.idle.append(slot)\n                # As in",
           "                # As in"),
    Mutant("the last in the queue is served", "core/group.py",
           "                waiter = self.waiters.popleft()\n            except IndexError:\n                return False",
           "                waiter = self.waiters.pop()\n            except IndexError:\n                return False"),
    Mutant("newcomers pass the queue", "core/group.py", "        if self.waiters:\n            return None\n        for tier", "        for tier"),
    Mutant("one that had its turn goes to the end", "core/group.py", "            if first:\n", "            if False:\n"),
    Mutant("a slot is handed out off the route", "core/group.py", "        if waiters and lane.live and self.hand(slot):",
           "        if waiters and self.hand(slot):"),
    Mutant("max_waiting is one too many", "core/group.py", "len(self.waiters) >= most", "len(self.waiters) > most"),
    Mutant("a new route is not offered to those who wait", "core/topology.py",
           "            group.match(locked=True)\n", ""),
    Mutant("waiters are not told that all refuse", "core/topology.py",
           "                group.fail_waiters(partial(DBOfflineError, group.refusal))\n", "                pass\n"),
    # -- generations and lives
    Mutant("take does not look at generation and life", "core/group.py",
           "                if slot.generation == lane.generation and now < slot.expires:\n", "                if True:\n"),
    Mutant("give does not look at the generation", "core/group.py",
           "        if slot.generation != lane.generation or now >= slot.expires:\n            self.retire(slot, outlived(slot))\n            return\n        slot.holder",
           "        if now >= slot.expires:\n            self.retire(slot, outlived(slot))\n            return\n        slot.holder"),
    Mutant("what comes too late is not swept", "core/group.py",
           "        if slot.generation != lane.generation:\n            self.sweep(lane)\n        if waiters", "        if waiters"),
    Mutant("retiring a lane raises no generation", "core/group.py", "        lane.generation += 1\n", ""),
    Mutant("opened does not look at the generation", "core/topology.py", "            elif order.generation != lane.generation:\n",
           "            elif False:\n"),
    Mutant("a leased connection whose server left comes back", "core/group.py", "                slot.expires = min(slot.expires, BROKEN)\n", ""),
    Mutant("a refused connect leaves old connections", "core/topology.py",
           "        if fault is Fault.REFUSED:\n            self._raise_generation(endpoint, \"broken\")\n", ""),
    # -- belief and routes
    Mutant("connections stay where the role is wrong", "core/topology.py",
           "                    if lane.rank is None and lane.open + lane.opening:\n", "                    if False:\n"),
    Mutant("a connection of the wrong role is kept", "core/topology.py", "            elif lane.rank is None:\n", "            elif False:\n"),
    Mutant("a failed connect changes no route", "core/topology.py",
           "            self._raise_generation(endpoint, \"broken\")\n        self._reroute(now)\n        self._note_outage",
           "            self._raise_generation(endpoint, \"broken\")\n        self._note_outage"),
    Mutant("a role that changed changes no route", "core/topology.py",
           "            changed = self._believe(endpoint, report, None, now)\n            if changed:\n                self._reroute(now)\n        if changed:\n            self._stir()\n\n    def write",
           "            changed = self._believe(endpoint, report, None, now)\n        if changed:\n            self._stir()\n\n    def write"),
    Mutant("the second tier is always used", "core/topology.py", "                tiers = tiers[:1]\n", "                pass\n"),
    Mutant("an endpoint that is down is used", "core/lane.py", "        if endpoint.health is Health.DOWN:\n            return False\n        return self.open", "        return self.open"),
    Mutant("suspects are not looked at", "core/topology.py", "            lane.poll_after = after if sound else min(after, 0.0)\n",
           "            lane.poll_after = after\n"),
    Mutant("idle ones of a suspect are not looked at", "core/topology.py", "                    slot.fresh_until = 0.0\n",
           "                    pass\n"),
    Mutant("a lost session is no news", "core/endpoint.py",
           "        if self.health is Health.UP:\n            self.health = Health.SUSPECT\n", "        pass\n"),
    Mutant("a success does not end a fault", "core/endpoint.py", "        self.next_try = self.urgent_try = 0.0\n        self.fault = None\n", ""),
    Mutant("overtaken primaries are not fenced", "core/topology.py", "            if by is not None and endpoint.fenced_by is None:\n",
           "            if False:\n"),
    Mutant("a fence never falls", "core/topology.py", "            elif by is None and endpoint.fenced_by is not None:\n",
           "            elif False:\n"),
    Mutant("belief is never taken over", "core/topology.py", "        endpoint.report = report\n        if report.role is not Role",
           "        if report.role is not Role"),
    # -- what to open, and when
    Mutant("no backoff", "core/endpoint.py", "    span = min(longest, first * 2.0 ** min(failures, 20))\n", "    span = 0.0\n"),
    Mutant("backoff never ends", "core/endpoint.py", "    span = min(longest, first * 2.0 ** min(failures, 20))\n",
           "    span = first * 2.0 ** min(failures, 20)\n"),
    Mutant("nobody in a hurry shortens a backoff", "core/endpoint.py", "        return self.connecting < most and now >= (self.urgent_try if urgent else self.next_try)",
           "        return self.connecting < most and now >= self.next_try"),
    Mutant("any number of connects at a time", "core/endpoint.py", "        return self.connecting < most and now >=", "        return now >="),
    Mutant("a search knows no pause", "core/plan.py", "        lane.next_try = now + backoff(SEARCH_EVERY, SEARCH_EVERY, 0, self.random)\n", ""),
    Mutant("no search", "core/plan.py", "        if group.route or self.monitored:\n            return None\n", "        return None\n"),
    Mutant("failing endpoints are not tried again", "core/plan.py",
           "        return suspect or endpoint.fault is not None or lane.setup_error is not None\n", "        return False\n"),
    Mutant("due is never", "core/plan.py", "                    due = min(due, max(next_try, lane.next_try))\n", "                    pass\n"),
    Mutant("nothing is kept warm", "core/plan.py", "        if lane.open + lane.opening < group.min_count:\n            return True\n", ""),
    Mutant("waiters are not planned for", "core/plan.py", "            self._serve(group, len(group.waiters) - under_way, orders, now)\n", "            pass\n"),
    Mutant("no room is made", "core/plan.py", "                self._make_room(group, demand, now)\n", ""),
    Mutant("room is made though it does not help", "core/plan.py", "        demand = min(demand, sum(max(0, group.limit - lane.total) for lane in able))\n", ""),
    Mutant("who makes no room is not asked", "core/group.py", "                if lane.total < self.limit and any(other.idle and not other.live for other in self.lanes):\n",
           "                if False:\n"),
    Mutant("retire tells nobody", "core/group.py", "            self._retire(slot, reason)\n        self.wish()\n\n    def _retire",
           "            self._retire(slot, reason)\n\n    def _retire"),
    Mutant("a place that got free tells nobody", "core/group.py", "        if self.waiters:\n            self.wish()\n", ""),
    Mutant("news tell nobody", "core/topology.py", "        for group in self.groups:\n            group.wish()\n        self.alarm()\n", "        self.alarm()\n"),
    Mutant("a wish is made with the lock held", "core/group.py", "            self._retire(slot, reason)\n        self.wish()\n\n    def _retire",
           "            self._retire(slot, reason)\n            self.wish()\n\n    def _retire"),
    Mutant("tend drops nothing", "core/group.py", "                self.drop_idle(lane, lambda slot: now >= slot.expires, \"lifetime\")\n", ""),
    # -- the monitor
    Mutant("calls on a dead server are not ended", "core/topology.py", "            if dead:\n                self._abort(endpoint)\n", ""),
    Mutant("a probe's answer is not believed", "core/topology.py", "            changed |= self._believe(endpoint, sighting.report, sighting.identity, now)\n", ""),
    Mutant("a probe's answer ends no outage", "core/endpoint.py", "        if self.fault in UNREACHABLE:\n            self._recover()\n", ""),
    Mutant("one failed probe is enough", "core/topology.py", "            dead = endpoint.misses >= self.fall\n", "            dead = True\n"),
    Mutant("nobody searches", "core/topology.py", "        return any(group.waiters for group in lost) or now <", "        return False and now <"),
    Mutant("a primary that refuses writes is kept", "core/topology.py", "                endpoint.demoted = changed = True\n                self._leave(endpoint)\n", "                pass\n"),
    Mutant("an outage is told again and again", "core/topology.py", "                endpoint.told.add(name)\n", ""),
    Mutant("the share of one that came back does not grow", "core/topology.py", "                if any(lane.share != endpoint.share(now) for lane in self.lanes(endpoint)):\n", "                if False:\n"),
    # -- the shell
    Mutant("settle gives back without a look at the role", "session.py", "        if _clean(slot) or await self._catch_up(slot, monotonic() + PING_LIMIT):\n            group.give", "        if True:\n            group.give"),
    Mutant("verify does not look at the socket", "session.py", " or not self.driver.quiet(slot.conn):\n                if callable", ":\n                if callable"),
    Mutant("a broken session is given back", "session.py", "        if status is not Status.IDLE:\n            ours", "        if False:\n            ours"),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many to try for each (default 1000)")
    parser.add_argument("--only", default="", help="only mutants with this in their name")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the sources to break")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        for line, caught in jobs.map(partial(attempt, arguments.src, arguments.seeds), chosen):
            survivors += not caught
            print(line, flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived {arguments.seeds} seeds")
    return int(survivors > 0)


def attempt(source: Path, seeds: int, mutant: Mutant) -> tuple[str, bool]:
    """What became of one mutant."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(place) / "pgdbpool" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"{mutant.name:<50} DOES NOT APPLY ({text.count(mutant.old)} places)", False
        file.write_text(text.replace(mutant.old, mutant.new))
        process = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": place},
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode == 0:
        return f"{mutant.name:<50} survived", False
    lines = [line for line in process.stdout.splitlines() if line.startswith("seed ")]
    what = lines[0] if lines else process.stderr.strip().splitlines()[-1]
    seed = what.split(",")[0].removeprefix("seed ")
    return f"{mutant.name:<50} {seed:>4}  {what.split(': ', 1)[-1][:110]}", True


if __name__ == "__main__":
    sys.exit(main())
