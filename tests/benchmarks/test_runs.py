"""Rounds in turns, what is measured in them, and who is out; on an engine that is made for the test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cowfs.benchmarks import runner
from cowfs.benchmarks.engines.catalogue import Wanted, parse_over, with_thin_pool
from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.plain import PLAIN
from cowfs.benchmarks.figures import rank, turns
from cowfs.benchmarks.meter import TIME, Meter, given, latency_of
from cowfs.benchmarks.results import Result, encode_result, read_result
from cowfs.benchmarks.runner import Run, Watcher
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.errors import CowfsError, MissingRequirement, UsageError
from cowfs.pool.counters import PoolCounters, ThinCounters


class Counting(Contender):
    """Has been asked to write 4 KiB and copied 64 KiB more, each time it is looked at."""

    def __init__(self, setting: Setting, events: list[str]) -> None:
        super().__init__(setting.name, setting.directory)
        self.events = events
        self._looks = itertools.count()

    def counters(self) -> PoolCounters:
        look = next(self._looks)
        return PoolCounters(ThinCounters(written_bytes=look * 4096, copied_bytes=look * 65536), commits=look)

    def written_bytes(self) -> int:
        return 0


def engine(name: str, events: list[str], offers: Offer = Offer.DISK) -> Wanted:
    @contextmanager
    def set_up(setting: Setting) -> Iterator[Contender]:
        events.append(f"set up {name}")
        yield Counting(setting, events)
        events.append(f"take down {name}")

    return Wanted(name, Engine(name, f"the engine {name}", offers, lambda: WORKS, set_up), None)


class Asking:
    name = "asking"
    title = "What is it?"
    expectation = ""
    needs = Offer.DISK
    x_unit = ""
    warms_up = True

    def __init__(self, measure: Callable[[Contender, Meter], None]) -> None:
        self._measure = measure
        self.parameters: dict[str, Any] = {"size_bytes": 1}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        assert isinstance(contender, Counting)
        contender.events.append(f"prepare {contender.name}")
        yield lambda meter: self._measure(contender, meter)
        contender.events.append(f"end {contender.name}")


def run(
    tmp_path: Path, wanted: list[Wanted], *workloads: Asking, rounds: int = 3, prepares_once: bool = False
) -> Result:
    return Run(wanted, workloads, tmp_path, rounds, seed=1, look_seconds=0.001, prepares_once=prepares_once)()


def test_turns_are_turned_round() -> None:
    assert list(turns("ab", range(3))) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_who_is_best_and_who_is_level_with_it() -> None:
    values = {"slow": [30.0, 31.0, 32.0], "quick": [10.0, 11.0, 15.0], "near": [12.0, 14.0, 16.0]}
    assert rank(values, lower_is_better=True) == ("quick", ("near",))
    assert rank(values, lower_is_better=False) == ("slow", ())
    assert rank({"alone": [1.0, 2.0, 3.0]}, lower_is_better=True) is None
    assert rank({"a": [1.0, 2.0], "b": [3.0, 4.0]}, lower_is_better=True) is None  # too few rounds


def test_what_slows_down_all_contenders_of_a_round_makes_no_tie() -> None:
    quick = [10.0, 10.1, 19.9, 14.0, 10.0]
    values = {"quick": quick, "slower": [1.2 * value for value in quick], "level": [10.3, 9.9, 20.0, 13.9, 10.2]}
    assert rank(values, lower_is_better=True) == ("quick", ("level",))
    assert rank({"a": [0.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0]}, lower_is_better=True) == ("a", ("b",))
    assert rank({"a": [1.0, 2.0, 3.0], "b": [2.5, 2.5, 2.5, 2.5]}, lower_is_better=True) == ("a", ("b",))


def test_percentiles_are_of_the_nearest_rank() -> None:
    found = latency_of([number / 1e6 for number in range(100, 0, -1)])
    assert found is not None
    values = [found.min, found.p25, found.p50, found.p75, found.p90, found.p95, found.p99, found.max]
    assert [round(value, 6) for value in values] == [1, 25, 50, 75, 90, 95, 99, 100]
    assert latency_of([]) is None


def test_rounds_are_taken_in_turns_and_all_is_taken_down(tmp_path: Path) -> None:
    events: list[str] = []
    values = itertools.count()

    def measure(contender: Contender, meter: Meter) -> None:
        events.append(contender.name)
        with meter.line("line", given("value", "1", lower_is_better=True)) as work:
            work.value = next(values)

    result = run(tmp_path, [engine("a", events), engine("b", events)], Asking(measure))
    assert events == [
        *("set up a", "set up b"),
        *("prepare a", "prepare b", "b", "a", "end b", "end a"),
        *("prepare a", "prepare b", "a", "b", "end b", "end a"),
        *("prepare a", "prepare b", "b", "a", "end b", "end a"),
        *("take down b", "take down a"),
    ]
    (line,) = result.questions[0].lines
    assert line.values() == {"a": [1, 2, 5], "b": [0, 3, 4]}
    assert (line.median("a"), line.spread("a")) == (2, 1.72 * 2)


@pytest.mark.parametrize(
    ("round_seconds", "limit_seconds", "expected"),
    [(10, 60, 5), (10, 59, 5), (10, 49, 4), (10, 39, 3), (100, 30, 3), (10, math.inf, 5)],
)
def test_rounds_that_would_not_end_in_time_are_not_begun(
    tmp_path: Path, round_seconds: float, limit_seconds: float, expected: int
) -> None:
    now = [1000.0]
    answered: list[str] = []
    watcher = Watcher()
    watcher.answered = lambda question: answered.append(question.name)  # type: ignore[method-assign]

    def measure(contender: Contender, meter: Meter) -> None:
        now[0] += round_seconds / 2
        with meter.line("line", given("value", "1", lower_is_better=True)) as work:
            work.value = 1

    result = Run(
        *([engine("a", [])], [Asking(measure), Second(measure)], tmp_path, 5),
        seed=1,
        watcher=watcher,
        look_seconds=0.001,
        limit_seconds=limit_seconds,
        clock=lambda: now[0],
    )()
    assert result.rounds == expected
    assert [len(question.lines[0].values()["a"]) for question in result.questions] == [expected] * 2
    assert answered == ["asking", "second"]
    assert result.seconds == expected * round_seconds


class Second(Asking):
    name = "second"
    warms_up = False


@pytest.mark.parametrize(
    ("prepares_once", "order"),
    [
        (False, ["asking", "second", "asking", "second"]),
        (True, ["asking", "asking", "asking", "second", "second"]),  # the first one warms up
    ],
)
def test_a_round_asks_all_questions_unless_they_are_prepared_once(
    tmp_path: Path, prepares_once: bool, order: list[str]
) -> None:
    events: list[str] = []

    def asked(name: str) -> Callable[[Contender, Meter], None]:
        def measure(_: Contender, meter: Meter) -> None:
            events.append(name)
            with meter.line("line", TIME):
                pass

        return measure

    questions = Asking(asked("asking")), Second(asked("second"))
    result = run(tmp_path, [engine("a", events)], *questions, rounds=2, prepares_once=prepares_once)
    assert [event for event in events if event in {"asking", "second"}] == order
    assert events.count("prepare a") == (2 if prepares_once else 4)
    assert [len(question.lines[0].samples["a"]) for question in result.questions] == [2, 2]


@pytest.mark.parametrize("prepares_once", [False, True])
def test_the_load_is_looked_at_once_for_each_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepares_once: bool
) -> None:
    looks = itertools.count(1)
    monkeypatch.setattr(runner, "busy_processors", lambda _: next(looks))
    questions = [Asking(lambda _, __: None) for _ in range(5)]
    result = run(tmp_path, [engine("a", [])], *questions, prepares_once=prepares_once)
    assert {question.others_processors for question in result.questions} == {2, 3, 4, 5, 6}
    assert result.others_processors == 6


def test_counters_are_what_was_counted_in_the_line(tmp_path: Path) -> None:
    def measure(_: Contender, meter: Meter) -> None:
        with meter.line("line", TIME) as work:
            work.written_bytes = 4096

    result = run(tmp_path, [engine("a", [])], Asking(measure), rounds=1)
    (sample,) = result.questions[0].lines[0].samples["a"]
    assert sample.counters is not None
    assert sample.counters.requests.copied_bytes == 65536
    assert sample.counters.commits == 1
    assert sample.counters.data_flushes is None  # they were not counted
    amplification = sample.write_amplification()
    assert (amplification.total, amplification.copied, amplification.zeroed) == (0.0, 16.0, None)


def test_processor_time_is_known_where_the_work_is_in_this_process(tmp_path: Path) -> None:
    def measure(_: Contender, meter: Meter) -> None:
        with meter.line("a server may end", TIME, is_counted=False):
            pass
        with meter.line("here", TIME, is_counted=False, in_process=True):
            sum(range(10_000))

    server, here = run(tmp_path, [engine("a", [])], Asking(measure), rounds=1).questions[0].lines
    assert server.samples["a"][0].cpu_seconds is None
    assert here.samples["a"][0].cpu_seconds is not None
    assert here.samples["a"][0].counters is None


def test_a_contender_that_fails_is_out_of_the_question_and_the_others_go_on(tmp_path: Path) -> None:
    def measure(contender: Contender, meter: Meter) -> None:
        with meter.line("line", TIME):
            pass
        if contender.name == "a" and len(rounds) == 2:
            raise CowfsError("its disk is full")
        rounds.append(contender.name)

    rounds: list[str] = []
    events: list[str] = []
    result = run(tmp_path, [engine("a", events), engine("b", events)], Asking(measure))
    question = result.questions[0]
    assert [(one.name, one.problem) for one in question.failed] == [("a", "its disk is full")]
    assert list(question.lines[0].samples) == ["b"]
    assert len(question.lines[0].samples["b"]) == 3
    assert events[-4:] == ["prepare b", "end b", "take down b", "take down a"]


def test_what_an_engine_does_not_offer_is_not_asked_of_it(tmp_path: Path) -> None:
    def measure(_: Contender, meter: Meter) -> None:
        with meter.line("line", TIME):
            pass

    result = run(tmp_path, [engine("a", []), engine("b", [], Offer.TREE)], Asking(measure))
    question = result.questions[0]
    assert [(one.name, one.problem) for one in question.absent] == [("b", "it has no disk")]
    assert list(question.lines[0].samples) == ["a"]


def test_an_interrupt_takes_everything_down(tmp_path: Path) -> None:
    def measure(contender: Contender, meter: Meter) -> None:
        raise KeyboardInterrupt

    events: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [engine("a", events)], Asking(measure))
    assert events[-1] == "end a"  # the engine is a generator that the interrupt ends


def test_without_an_engine_there_is_no_run(tmp_path: Path) -> None:
    @contextmanager
    def set_up(setting: Setting) -> Iterator[Contender]:
        raise CowfsError("no space is left")
        yield Contender(setting.name, setting.directory)

    broken = Wanted("broken", Engine("broken", "", Offer.DISK, lambda: WORKS, set_up), None)
    with pytest.raises(MissingRequirement, match=r"the engine 'broken' cannot run here: no space is left"):
        run(tmp_path, [broken])


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    def measure(_: Contender, meter: Meter) -> None:
        with meter.line("line", TIME, x=3, series="lines") as work:
            work.latencies.extend([0.001, 0.002])
            work.fio = {"jobs": [{"jobname": "a"}]}

    (tmp_path / "run").mkdir()
    result = run(tmp_path / "run", [engine("a", [])], Asking(measure), rounds=2)
    path = str(tmp_path / "result.json")
    Path(path).write_bytes(encode_result(result))
    assert msgspec.to_builtins(read_result(path)) == msgspec.to_builtins(result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a result of 'cowfs bench --json'"),
        ("{", "is not a result of 'cowfs bench --json'"),
        ('{"format": "other", "version": 1}', "its format is 'other'"),
        ('{"format": "cowfs-bench", "version": 99}', "is a result of version 99, and this cowfs reads version 1"),
        ('{"format": "cowfs-bench", "version": 1}', "is damaged: Object missing required field"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_result(str(path))


@pytest.mark.parametrize("samples", ['{"a":[]}', "{}"])
def test_a_line_without_a_round_is_refused(tmp_path: Path, samples: str) -> None:
    def measure(_: Contender, meter: Meter) -> None:
        with meter.line("work", TIME):
            pass

    (tmp_path / "run").mkdir()
    result = msgspec.json.decode(encode_result(run(tmp_path / "run", [engine("a", [])], Asking(measure), rounds=1)))
    result["questions"][0]["lines"][0]["samples"] = msgspec.json.decode(samples)
    path = tmp_path / "result.json"
    path.write_bytes(msgspec.json.encode(result))
    with pytest.raises(UsageError, match="is damaged: the line 'work' of 'asking' has no round"):
        read_result(str(path))


def test_over_names_engines_with_their_block_size() -> None:
    found = parse_over("emulated, emulated:256K,plain,plain")
    assert [(one.name, one.engine.name, one.block_bytes) for one in found] == [
        ("emulated", "emulated", None),
        ("emulated:256K", "emulated", 256 << 10),
        ("plain", "plain", None),
    ]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("emulated,foo", "there is no engine 'foo'; there are emulated, dmthin"),
        ("plain:64K", "the engine plain has no block size to choose"),
        ("emulated:63K", "a block is a multiple of 64K"),
        ("emulated:2G", "a block is a multiple of 64K"),
        ("emulated:x", "'x' is not a size"),
        (",", "no engine was named"),
    ],
)
def test_over_refuses_what_cannot_be(over: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_over(over)


@pytest.mark.parametrize(
    ("over", "pool", "message"),
    [
        ("plain", "pool", "is for the engine dmthin"),
        ("dmthin", "/dev/sda", "is not the name of a pool"),
        ("dmthin:64K", "pool", "has the block size that it has"),
    ],
)
def test_a_pool_of_the_users_is_for_dmthin(over: str, pool: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_thin_pool(parse_over(over), pool)


def test_plain_makes_and_removes(tmp_path: Path) -> None:
    with PLAIN.set_up(Setting("plain", tmp_path)) as contender:
        contender.create("a", 4096)
        with contender.disk("a") as path:
            assert path.stat().st_size == 4096
        with contender.tree("a") as path:
            (path / "file").write_bytes(bytes(8192))
        with pytest.raises(UsageError, match="the engine 'plain' does not take snapshots"):
            contender.snapshot("a", "b")
        contender.remove("a")
    assert list(tmp_path.iterdir()) == []
