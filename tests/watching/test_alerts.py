"""The alert rules, judged by Prometheus' own tool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "services/prometheus"
DOCS = FOLDER.parents[1] / "docs/watching.md"


def promtool(*arguments: str) -> str:
    """What it prints; fails where it finds a fault."""
    ended = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def alerts() -> set[str]:
    return set(re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text()))


def test_scrape_example() -> None:
    """The example is a valid configuration, which finds the rules beside it."""
    assert "1 rule files found" in promtool("check", "config", "prometheus.yml")


def test_rules_fire() -> None:
    """Each alert fires when it should, with words that say what to do, and on a good day none does."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_every_rule_is_fired() -> None:
    """No alert is left out by the rule test: each is expected once at least."""
    told = (FOLDER / "alerts_test.yml").read_text()
    fired = set(re.findall(r"- alertname: (\w+)\n +eval_time: \S+\n +exp_alerts:", told))
    assert fired == alerts()


def test_every_rule_says_what_to_do() -> None:
    """Each alert has a severity, a summary and a description."""
    rules = (FOLDER / "alerts.yml").read_text().split("- alert: ")[1:]
    for rule in rules:
        for part in ("severity: ", "summary: ", "description: "):
            assert part in rule


def test_the_table_is_whole() -> None:
    """The page about them has a row for each alert, and for no other."""
    assert set(re.findall(r"^\| `(GrokProxy\w+)` \|", DOCS.read_text(), re.MULTILINE)) == alerts()
