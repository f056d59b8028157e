"""What a crash test found, as one HTML page that needs nothing else: time line, failures, the files of the first."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from typing import Final

from cowfs.crashes.history import History
from cowfs.crashes.program import Failure, Outcome

_COLUMNS_MAX: Final = 400  # of the time line; more events share one
_WIDTH, _HEIGHT, _BAR_MAX = 1000, 30, 14  # of a row of it, stretched to the page
_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c2733; --dim: #66727f; --line: #d8dee4; --ground: #ffffff;
  --writes: #4878a8; --flushes: #2e8b57; --marks: #b07d12; --failures: #c0392b; --soft: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --text: #dfe6ec; --dim: #93a0ad; --line: #33404c; --ground: #14191f;
  --writes: #6d9dcc; --flushes: #55b584; --marks: #d9a83c; --failures: #e8695b; --soft: #1c232b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground);
  max-width: 1160px; margin: 2.5em auto; padding: 0 20px; }
h1 { font-size: 1.5em; margin: 0 0 .2em; } h2 { font-size: 1.1em; margin: 2em 0 .5em; }
p.sum { color: var(--dim); margin: 0 0 1.5em; } .bad { color: var(--failures); font-weight: 600; }
.good { color: var(--flushes); font-weight: 600; }
code, td.m, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--soft); padding: .8em 1em; overflow-x: auto; border-radius: 6px; margin: .5em 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; color: var(--dim); }
td, th { padding: .25em .8em .25em 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
td.m { overflow-wrap: anywhere; } td.n, th.n { width: 4.5em; text-align: right; font-variant-numeric: tabular-nums; }
.line { display: grid; grid-template-columns: max-content 1fr; gap: .5em 1em; align-items: end; }
.line span { color: var(--dim); font-size: 13px; line-height: 1.2; }
.ends { display: flex; justify-content: space-between; }
svg { width: 100%; height: 34px; display: block; border-bottom: 1px solid var(--line); }
section.failure { border: 1px solid var(--line); border-left: 4px solid var(--failures); border-radius: 6px;
  padding: .8em 1.1em; margin: 1em 0; } section.failure h3 { margin: 0 0 .4em; font-size: 1em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1em; margin: .5em 0; }
dt { color: var(--dim); } dd { margin: 0; } .writes { fill: var(--writes); } .flushes { fill: var(--flushes); }
.marks { fill: var(--marks); } .failures { fill: var(--failures); }
"""


def page(history: History, outcome: Outcome, *, work: str, check: str) -> str:
    return "".join(_parts(history, outcome, work, check))


def _parts(history: History, outcome: Outcome, work: str, check: str) -> Iterator[str]:
    verdict = (
        f'<span class="bad">{outcome.failed} of {outcome.states} states failed</span>'
        if outcome.failed
        else f'<span class="good">all {outcome.states} states passed</span>'
    )
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Crash test</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>Crash test: {verdict}</h1>"
    yield f'<p class="sum">model {outcome.model}, seed {outcome.seed}; {len(history.items)} '
    yield f"{'writes' if outcome.model == 'ext4' else 'effects of operations'}, {outcome.flushes} flushes, "
    yield f"{len(outcome.marks)} marks</p>"
    yield f"<dl><dt>work</dt><dd><code>{_text(work)}</code></dd>"
    yield f"<dt>check</dt><dd><code>{_text(check)}</code></dd></dl>"
    yield '<h2>Time line</h2><p class="sum">What was recorded, in order, and where the check of a crash failed. '
    yield "A position is one event: a write or operation, a flush, or a mark.</p>"
    yield from _time_line(history, outcome)
    if history.marks:
        yield '<h2>Marks</h2><table><tr><th class="n">position</th><th>promised from here on</th></tr>'
        for position, text in history.marks[:200]:
            yield f'<tr><td class="n">{position}</td><td class="m">{_text(text)}</td></tr>'
        yield "</table>"
    if outcome.failures:
        yield "<h2>Failures, with the fewest lost writes</h2>"
        for failure in outcome.failures:
            yield from _failure(failure)
        yield from _files(outcome.failures[0])
    yield "</body></html>\n"


def _failure(failure: Failure) -> Iterator[str]:
    yield f'<section class="failure"><h3>{_text(failure.description)}</h3><dl>'
    yield f"<dt>state</dt><dd>{failure.number}, crash at position {failure.position}</dd>"
    yield f"<dt>promised</dt><dd>{_text(', '.join(failure.marks)) or 'nothing'}</dd>"
    if failure.lost:
        yield f"<dt>lost</dt><dd>{'<br>'.join(map(_text, failure.lost))}</dd>"
    if failure.device:
        yield f"<dt>kept as</dt><dd><code>{_text(failure.device)}</code></dd>"
    yield "</dl>"
    if failure.output.strip():
        yield f"<pre>{_text(failure.output.strip())}</pre>"
    yield "</section>"


def _files(failure: Failure) -> Iterator[str]:
    yield "<h2>Files of the first failing state</h2>"
    yield '<table><tr><th>path</th><th class="n">bytes</th><th>begins with</th></tr>'
    for path, size, head in failure.files[:500]:
        yield f'<tr><td class="m">{_text(path)}</td><td class="n">{size}</td><td class="m">{_text(head)}</td></tr>'
    yield "</table>"


def _time_line(history: History, outcome: Outcome) -> Iterator[str]:
    """A row for each kind over the positions: how many there are, as bars."""
    columns = max(1, min(_COLUMNS_MAX, history.length))
    step = _WIDTH / columns

    def column(position: int) -> int:
        return min(columns - 1, (max(position, 1) - 1) * columns // max(history.length, 1))

    counts = {
        "writes": Counter(column(item.issued) for item in history.items),
        "flushes": Counter(column(position) for position in history.flushes),
        "marks": Counter(column(position) for position, _ in history.marks),
        "failures": Counter(column(position) for position in outcome.failed_positions),
    }
    wide = max(min(step - 0.5, _BAR_MAX), 1.5)
    yield '<div class="line">'
    for kind, found in counts.items():
        yield f'<span>{kind}</span><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        yield f' aria-label="{found.total()} {kind} of the recording">'
        most = max(found.values(), default=1)
        for at, count in sorted(found.items()):
            size = _HEIGHT * (0.2 + 0.8 * count / most if most > 1 else 0.8)
            title = f"{count} {kind} at position {at * history.length // columns + 1}"
            yield f'<rect class="{kind}" x="{at * step:.1f}" y="{_HEIGHT - size:.1f}" width="{wide:.1f}" '
            yield f'height="{size:.1f}"><title>{title}</title></rect>'
        yield "</svg>"
    yield f'<span></span><span class="ends"><span>1</span><span>{history.length}</span></span></div>'


def _text(text: str) -> str:
    return html.escape(text)
