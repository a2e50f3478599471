"""Results come in order whatever the threads do, and nobody waits for one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import pytest

from featcache.core.errors import FeatcacheError
from featcache.core.threads import Turn
from featcache.extraction import worker_pool as threads
from featcache.extraction.worker_pool import WorkerPool
from featcache.extraction.worker_pool import in_order as in_order_of

LONG = 600.0


@dataclass
class Job:
    """Gives its name when *work* is done."""

    name: int
    work: Callable[[], object] = lambda: None

    def do(self) -> str:
        self.work()
        return f"{self.name} done"

    def cancel(self) -> str:
        return f"{self.name} given up"


def in_order(
    jobs: Iterable[Job], *, workers: int, ahead: int, seconds: float, stopped: Callable[[], bool] = lambda: False
) -> Generator[str, None, None]:
    with WorkerPool(workers, seconds) as pool:
        yield from in_order_of(pool, jobs, ahead=ahead, stopped=stopped)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck jobs wait for; opened at the end, so that no thread outlives its test."""
    opened = threading.Event()
    yield opened
    opened.set()
    ends = time.monotonic() + 20
    while any(t.name == "featcache-read" for t in threading.enumerate()) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not any(t.name == "featcache-read" for t in threading.enumerate())


def test_results_come_in_order() -> None:
    jobs = [Job(i, lambda i=i: time.sleep(0.01 * (i % 3))) for i in range(40)]
    got = list(in_order(jobs, workers=4, ahead=7, seconds=60))
    assert got == [f"{i} done" for i in range(40)]
    assert list(in_order([], workers=4, ahead=7, seconds=60)) == []


def test_no_more_than_so_many_are_handed_out_before_their_turn() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for i in range(20):
            taken.append(i)
            yield Job(i)

    results = in_order(jobs(), workers=2, ahead=5, seconds=60)
    assert taken == []
    for n in range(15):
        assert next(results) == f"{n} done"
        assert len(taken) == n + 5
    results.close()


def test_a_slow_head_does_not_keep_the_others_from_working(gate: threading.Event) -> None:
    done: list[int] = []
    seven = threading.Event()

    def note(i: int) -> None:
        done.append(i)
        if len(done) == 7:
            seven.set()

    jobs = [Job(0, lambda: seven.wait(LONG)), *(Job(i, lambda i=i: note(i)) for i in range(1, 20))]
    results = in_order(jobs, workers=2, ahead=8, seconds=LONG)
    assert next(results) == "0 done"  # it ends only when all seven others that are ahead are done
    assert done == [1, 2, 3, 4, 5, 6, 7]
    assert list(results) == [f"{i} done" for i in range(1, 20)]


def test_what_takes_too_long_is_given_up_and_its_late_result_dropped(gate: threading.Event) -> None:
    jobs = [Job(i, (lambda: gate.wait(LONG)) if i in (0, 1, 7) else (lambda: None)) for i in range(12)]
    results = in_order(jobs, workers=2, ahead=4, seconds=0.5)
    assert [next(results), next(results)] == ["0 given up", "1 given up"]
    gate.set()
    assert list(results) == [f"{i} done" for i in range(2, 12)]


def test_time_counts_from_when_a_thread_began(gate: threading.Event) -> None:
    jobs = [Job(i, lambda: time.sleep(0.2)) for i in range(10)]
    assert list(in_order(jobs, workers=1, ahead=10, seconds=1.5)) == [f"{i} done" for i in range(10)]


def test_a_result_that_is_there_is_taken_however_late_it_is_asked_for() -> None:
    results = in_order([Job(0), Job(1, lambda: time.sleep(0.3))], workers=2, ahead=2, seconds=0.5)
    assert next(results) == "0 done"
    time.sleep(1)
    assert next(results) == "1 done"


def test_closing_does_not_wait_for_a_stuck_thread(gate: threading.Event) -> None:
    results = in_order([Job(0), Job(1, lambda: gate.wait(LONG)), Job(2)], workers=2, ahead=3, seconds=LONG)
    assert next(results) == "0 done"
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20


def test_whoever_asked_to_stop_is_heard_while_a_result_is_waited_for(gate: threading.Event) -> None:
    asked = threading.Event()
    threading.Timer(0.3, asked.set).start()
    jobs = [Job(0), Job(1, lambda: gate.wait(LONG)), Job(2)]
    assert list(in_order(jobs, workers=2, ahead=3, seconds=LONG, stopped=asked.is_set)) == ["0 done"]


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3)])
def test_an_error_comes_at_its_turn(error: BaseException) -> None:
    def fail() -> None:
        raise error

    results = in_order([Job(0), Job(1, fail), Job(2)], workers=3, ahead=3, seconds=60)
    assert next(results) == "0 done"
    with pytest.raises(type(error)):
        next(results)
    assert list(results) == []


def test_all_threads_end_when_all_is_done(gate: threading.Event) -> None:
    assert len(list(in_order([Job(i) for i in range(9)], workers=3, ahead=4, seconds=60))) == 9
    assert not any(t.name == "featcache-read" for t in threading.enumerate())


def test_when_everything_hangs_the_run_says_so(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_STUCK", 5)
    got = []

    def take() -> None:
        got.extend(in_order([Job(i, lambda: gate.wait(LONG)) for i in range(50)], workers=2, ahead=4, seconds=0.2))

    with pytest.raises(FeatcacheError, match=r"Reading hangs: 5 images.*0\.2 s"):
        take()
    assert got == [f"{i} given up" for i in range(len(got))]
    assert 3 <= len(got) <= 4


def test_one_that_hangs_in_its_turn_keeps_nobody_from_theirs(gate: threading.Event) -> None:
    turn, inside, most = Turn(), [0], [0]

    def work(i: int) -> None:
        with turn:
            if i == 3:
                gate.wait(LONG)
                return
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.1)
            inside[0] -= 1

    jobs = [Job(i, lambda i=i: work(i)) for i in range(20)]
    # All eight together wait longer for their turns than one of them may take.
    got = list(in_order(jobs, workers=8, ahead=20, seconds=0.6))
    assert got == [f"{i} {'given up' if i == 3 else 'done'}" for i in range(20)]
    assert most == [1]


def test_who_comes_back_after_it_was_given_up_takes_no_turn_away(gate: threading.Event) -> None:
    turn, has_it, back, other = Turn(), threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def hang() -> None:
        with turn:
            has_it.set()
            gate.wait(LONG)
        back.set()
        with turn:
            order.append("one that was given up")

    def second() -> None:
        assert has_it.wait(LONG)
        with turn:
            gate.set()
            assert back.wait(LONG)
            other.wait(0.2)  # the third could come in if that one had left the turn of this one
            order.append("second")

    def third() -> None:
        assert gate.wait(LONG)
        with turn:
            order.append("third")
            other.set()

    jobs = [Job(0, hang), Job(1, second), Job(2, third)]
    got = list(in_order(jobs, workers=3, ahead=2, seconds=1))  # the third begins when the first was given up
    assert got == ["0 given up", "1 done", "2 done"]
    assert order == ["second", "third"]
