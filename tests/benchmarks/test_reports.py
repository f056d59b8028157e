"""What is made of a result: comparisons, CSV, the HTML page, text."""

from __future__ import annotations

import csv
import io
import random
import re

import msgspec
import pytest

from cowfs.benchmarks.comparison import compare
from cowfs.benchmarks.machine import Machine
from cowfs.benchmarks.report.page import page
from cowfs.benchmarks.report.table import as_csv
from cowfs.benchmarks.report.text import head_lines, question_lines
from cowfs.benchmarks.results import Absent, ContenderNote, Figure, Latency, Line, Question, Result, Sample
from cowfs.errors import UsageError
from cowfs.pool.counters import PoolCounters, ThinCounters

RATE = Figure("requests", "1/s", lower_is_better=False)
SECONDS = Figure("time", "s", lower_is_better=True)
MACHINE = Machine("Debian", "6.1", "a processor", 2, 1 << 30, "3.11", "ext4", "rw")
LATENCY = Latency(1, 2, 3, 4, 5, 6, 7, 8)
COUNTERS = PoolCounters(ThinCounters(written_bytes=4096, copied_bytes=65536, zeroed_bytes=0))


def samples(*values: float) -> list[Sample]:
    return [Sample(value, seconds=1.0, requests=3, latency_us=LATENCY) for value in values]


def result(*lines: Line, others: float = 0.0, **parameters: int) -> Result:
    question = Question("disk", "How <quick>?", "It is & was.", parameters, list(lines), x_unit="bytes mapped")
    question.absent = [Absent("ext4", "it has no snapshots")]
    notes = [ContenderNote("a<b>", "one engine", {"version": "1 & 2"}), ContenderNote("other", "the other one", {})]
    missing = [Absent("dmthin", "no device mapper", "modprobe dm-thin-pool")]
    return Result(
        *("cowfs-bench", 1, "0.1", "2026-01-01T00:00:00Z", 12.0, MACHINE, "/tmp", 3, 1, others, 5.0),
        *(notes, missing, [question]),
    )


def line(name: str = "read", figure: Figure = RATE, **values: list[Sample]) -> Line:
    return Line(name, figure, {{"a": "a<b>"}.get(contender, contender): found for contender, found in values.items()})


OLD = result(line(a=samples(100, 101, 102), other=samples(50, 60, 70)), line("open", SECONDS, a=samples(1, 1.1, 1.2)))


def verdicts(new: Result, *, threshold: float = 0.1, judges_loaded: bool = False) -> list[str]:
    found = compare(OLD, new, threshold=threshold, judges_loaded=judges_loaded)
    return [change.verdict for change in found.changes]


def test_a_change_counts_beyond_the_threshold_and_the_spread() -> None:
    slower = result(line(a=samples(80, 81, 82), other=samples(40, 45, 52)), line("open", SECONDS, a=samples(2, 2, 2.1)))
    assert verdicts(slower) == ["worse", "tie", "worse"]  # the second one's ranges overlap
    assert verdicts(slower, threshold=0.3) == ["tie", "tie", "worse"]
    quicker = result(line(a=samples(200, 201, 202)), line("open", SECONDS, a=samples(0.5, 0.5, 0.5)))
    assert verdicts(quicker) == ["better", "better"]
    assert compare(OLD, quicker, threshold=0.1).only_in_old == ["disk / read / other"]


@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 7, 10, 20])
def test_a_run_that_differs_by_chance_alone_is_seldom_judged(rounds: int) -> None:
    chance = random.Random(1)

    def found() -> Result:
        return result(*(line(f"line {number}", a=noisy(chance, 100, rounds)) for number in range(2000)))

    judged = [change.verdict != "tie" for change in compare(found(), found(), threshold=0.0).changes]
    assert 0.002 < sum(judged) / len(judged) < 0.02


def test_a_regression_by_a_fifth_is_seen_on_a_quiet_machine() -> None:
    chance = random.Random(1)
    for slower, verdict in ((1.2, "worse"), (1.0, "tie"), (0.8, "better")):
        old = result(*(line(f"line {number}", SECONDS, a=noisy(chance, 1, 5)) for number in range(200)))
        new = result(*(line(f"line {number}", SECONDS, a=noisy(chance, slower, 5)) for number in range(200)))
        found = [change.verdict == verdict for change in compare(old, new, threshold=0.1).changes]
        assert sum(found) >= 196


def noisy(chance: random.Random, value: float, rounds: int) -> list[Sample]:
    """Rounds that differ by 3 %."""
    return samples(*(chance.gauss(value, 0.03 * value) for _ in range(rounds)))


def test_what_was_measured_under_load_is_not_judged() -> None:
    slower = result(line(a=samples(8, 8, 8)), others=1.5)
    assert verdicts(slower) == ["unjudged"]
    assert verdicts(slower, judges_loaded=True) == ["worse"]
    assert "others used up to 1.5 processors" in compare(OLD, slower, threshold=0.1).notes[0]


def test_results_of_other_questions_or_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="have no line in common"):
        compare(OLD, result(line("write", a=samples(1))), threshold=0.1)
    with pytest.raises(UsageError, match=r"'disk' was asked with other sizes \(size_bytes\)"):
        compare(OLD, result(line(a=samples(1)), size_bytes=3), threshold=0.1)


def test_a_contender_that_fails_where_it_had_figures_is_named() -> None:
    new = result(line(other=samples(50, 60, 70)))
    new.questions[0].failed = [Absent("a<b>", "its disk is full"), Absent("third", "it was never measured")]
    found = compare(OLD, new, threshold=0.1)
    assert found.failed == ["disk / a<b>: its disk is full"]
    new.questions[0].lines = []
    assert compare(OLD, new, threshold=0.1).failed == found.failed  # also where nothing is left to compare


def test_another_machine_is_said() -> None:
    new = result(line(a=samples(100, 101, 102)))
    new.machine = msgspec.structs.replace(MACHINE, kernel="6.9", processors=8)
    assert compare(OLD, new, threshold=0.1).notes == ["another processors: 2 and 8", "another kernel: 6.1 and 6.9"]


def test_csv_has_a_row_for_each_round_and_leaves_out_what_nobody_counted() -> None:
    counted = Sample(5.0, 2.0, requests=9, written_bytes=4096, engine_written_bytes=8192, counters=COUNTERS)
    rows = list(csv.DictReader(io.StringIO(as_csv(result(line(a=[counted], other=samples(7, 8)))))))
    assert [(row["contender"], row["round"], row["value"]) for row in rows] == [
        ("a<b>", "1", "5.0"),
        ("other", "1", "7"),
        ("other", "2", "8"),
    ]
    assert (rows[0]["copied_bytes"], rows[0]["zeroed_bytes"], rows[0]["flushes"]) == ("65536", "0", "")
    assert (rows[1]["copied_bytes"], rows[1]["latency_us_p99"], rows[1]["x"]) == ("", "7", "")


def test_the_page_needs_nothing_else_and_holds_all_figures() -> None:
    counted = Sample(5.0, 2.0, written_bytes=4096, engine_written_bytes=69632, counters=COUNTERS)
    growing = [
        Line(f"take one, {x}", SECONDS, {"a<b>": samples(x), "other": samples(1)}, x, "take one") for x in (1, 9)
    ]
    html = page(result(line(a=[counted, counted, counted], other=samples(7, 8, 9)), *growing))
    assert not re.findall(r'(?:src|href)="(?!#)|url\(|@import|<script', html)
    assert "How &lt;quick&gt;?" in html
    assert "It is &amp; was." in html
    assert "a&lt;b&gt;" in html
    assert "a<b>" not in html
    assert html.count("<svg") == 1 + 3 + 3  # a growth line, and of each line its bars and the distribution
    assert "<svg" in html
    assert "missing: no device mapper" in html
    assert "modprobe dm-thin-pool" in html
    assert "Without ext4: it has no snapshots." in html
    assert 'Best: <span class="good">other</span>' in html
    assert "copied 16.00" in html
    assert "17.00" in html  # written for each byte


def test_causes_add_up_and_zeros_that_were_not_written_are_in_none() -> None:
    """Asked 4 KiB of the workload's and 1 KiB of a file system's; the zeros around one of two blocks were a hole."""
    requests = ThinCounters(written_bytes=5120, copied_bytes=65536, zeroed_bytes=2 * 65536)
    data, metadata = 5120 + 65536 + 65536, 8192
    counters = PoolCounters(requests, data_written_bytes=data, metadata_written_bytes=metadata)
    sample = Sample(1.0, written_bytes=4096, engine_written_bytes=data + metadata, counters=counters)
    found = sample.write_amplification()
    assert (found.copied, found.zeroed, found.metadata) == (16, 16, 2)
    assert found.total == 5120 / 4096 + 16 + 16 + 2


def test_details_are_all_that_is_known_in_text_and_on_the_page() -> None:
    requests = ThinCounters(written_bytes=4096, copied_blocks=1, copied_bytes=65536, flushes=3, provisioned_blocks=0)
    counters = PoolCounters(
        requests, data_written_bytes=69632, metadata_written_bytes=8192, metadata_written_blocks=2, commits=1
    )
    counted = Sample(
        *(9.0, 2.0, 4, 0, 1 << 20, LATENCY, 0.25, 3 << 20, 5 << 20, (1 << 20, 4 << 20), counters),
    )
    found = result(line(a=[counted], other=samples(7)))
    text = [row.split() for row in question_lines(found.questions[0], is_judged=False, width=100, with_details=True)]
    for row in (
        *("throughput [MiB/s] 0.5", "latency, p50 [us] 3 3", "latency, p95 [us] 6 6", "latency, p99 [us] 7 7"),
        *("latency, max [us] 8 8", "CPU [ms] 250", "peak memory [MiB] 3", "space on the host before [MiB] 1"),
        *("space on the host after [MiB] 4", "written for each byte asked 5", "of it copied 0.0625"),
        *("of it metadata 0.00781", "blocks copied 1", "copied [KiB] 64", "data written [KiB] 68"),
        *("metadata written [KiB] 8", "metadata blocks written 2", "flushes asked 3", "commits 1"),
    ):
        assert row.split() in text, row
    assert not any(row[:2] in (["requests", "[1/s]"], ["blocks", "provisioned"]) for row in text)  # its figure; 0
    html = page(found)
    assert '<th>space on the host before [MiB]</th><td class="n">1</td><td class="n"></td>' in html
    assert '<th>flushes asked</th><td class="n">3</td>' in html


def test_the_head_says_what_was_used_and_where() -> None:
    head = "\n".join(head_lines(result(line(a=samples(1)), others=1.0)))
    for said in (
        *("others used up to 1.0 processors", "a processor, 2 processors, 1 GiB of memory", "Linux 6.1, Debian"),
        *("Python 3.11, cowfs 0.1", "files are in /tmp: ext4 (rw)", "2026-01-01T00:00:00Z, 3 rounds in turns, seed 1"),
        *("(version: 1 & 2)", "without dmthin: no device mapper; try: modprobe dm-thin-pool"),
    ):
        assert said in head


def test_the_page_judges_nothing_under_load() -> None:
    html = page(result(line(a=samples(1, 1, 1), other=samples(7, 8, 9)), others=1.0))
    assert "Not judged: others used the machine." in html
    assert "Best:" not in html


def test_the_table_marks_the_best_and_those_level_with_it_and_is_cut_to_the_width() -> None:
    question = result(line(a=samples(100, 101, 102), other=samples(90, 100, 103))).questions[0]
    text = list(question_lines(question, is_judged=True, width=100))
    assert "read [1/s]  101 +-3%*  100 +-22%*" in text[2]
    assert "*" not in "".join(question_lines(question, is_judged=False, width=100))
    narrow = list(question_lines(question, is_judged=True, width=30))
    assert [row.split() for row in narrow if "a<b>" in row or row.split()[:1] == ["other"]] == [["a<b>"], ["other"]]
