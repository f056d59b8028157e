"""The counters of a home, here and through its holder, as figures and as OpenMetrics text."""

from __future__ import annotations

import re
from pathlib import Path

import cowfs
from tests.home.conftest import serving


def test_devices_and_pool(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        block = opened.io().block_bytes
        assert opened.inspect("web").counters is None
        with opened.device("web") as disk:
            disk.pwrite(8 << 20, b"x" * block)
            disk.pread(8 << 20, 100)
        report = opened.io()
        (web,) = [device for device in report.devices if device.name == "web"]
        assert (web.counters.writes, web.counters.written_bytes) == (1, block)
        assert (web.counters.reads, web.counters.read_bytes) == (1, 100)
        assert (web.counters.provisioned_blocks, web.counters.copied_blocks) in ((1, 0), (0, 1))  # as base has it
        assert opened.inspect("web").counters == web.counters
        assert report.pool.requests.written_bytes == block
        assert report.write_amplification.total is not None
        assert report.write_amplification.total > 1
        opened.remove("web")
        assert opened.io().pool.requests.written_bytes == block
        assert [device.name for device in opened.io().devices] == ["base"]


def test_metrics(home: Path) -> None:
    """Every line is of OpenMetrics, and a metric is declared before its values and once."""
    with cowfs.open_home(home, durable=False) as opened, opened.device("web") as disk:
        disk.pwrite(0, b"x" * 4096)
        text = opened.metrics()
    lines = text.splitlines()
    assert lines[-1] == "# EOF"
    declared: list[str] = []
    for line in lines[:-1]:
        if declaration := re.fullmatch(r"# (TYPE|UNIT|HELP) ([a-z_]+) (.+)", line):
            if declaration[1] == "TYPE":
                assert declaration[2] not in declared
                declared.append(declaration[2])
            assert declaration[2] == declared[-1]
        else:
            value = re.fullmatch(r'([a-z_]+)\{home="[^"]+"(,[a-z]+="[^"]+")?\} \d+', line)
            assert value, line
            assert value[1].removesuffix("_total") == declared[-1]
    assert f'cowfs_device_written_bytes_total{{home="{home}",device="web"}} 4096' in lines
    assert f'cowfs_pool_written_bytes_total{{home="{home}"}} 4096' in lines
    assert f'cowfs_devices{{home="{home}"}} 1' in lines


def test_through_the_holder(home: Path) -> None:
    with serving(home), cowfs.open_home(home) as opened:
        opened.snapshot("web", "monday")
        assert (opened.io().pool.commits or 0) > 0
        assert opened.metrics().endswith("# EOF\n")
