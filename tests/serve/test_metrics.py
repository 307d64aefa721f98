"""Counts in Prometheus' text format."""

import re

from llava.messages import Cost
from llava.serve.metrics import Histogram, Metrics

COST = Cost(576, 120, 7, vision_ms=1, reduction_ms=1, prefill_ms=1, decode_ms=1)


def test_a_histogram_counts_each_duration_under_every_bound_that_holds_it():
    histogram = Histogram()
    for seconds in (0.01, 0.1, 0.2, 1000):
        histogram.observe(seconds)
    lines = list(histogram.samples("wait"))
    assert 'wait_bucket{le="0.025"} 1' in lines
    assert 'wait_bucket{le="0.1"} 2' in lines
    assert 'wait_bucket{le="0.25"} 3' in lines
    assert 'wait_bucket{le="120"} 3' in lines
    assert lines[-3:] == ['wait_bucket{le="+Inf"} 4', "wait_sum 1000.310000", "wait_count 4"]


def test_answers_add_up():
    metrics = Metrics()
    metrics.requests[200] += 2
    metrics.requests[503] += 1
    metrics.add(COST, 30, 0.5)
    metrics.add(COST, 10, 1.5)
    lines = metrics.render(running=3, waiting=4).splitlines()
    for line in (
        'llava_requests_total{status="200"} 2',
        'llava_requests_total{status="503"} 1',
        "llava_requests_running 3",
        "llava_requests_waiting 4",
        "llava_prompt_tokens_total 280",
        "llava_visual_tokens_total 240",
        "llava_completion_tokens_total 14",
        "llava_patches_total 1152",
        "llava_answer_seconds_sum 2.000000",
        "llava_time_to_first_token_seconds_count 0",
    ):
        assert line in lines


def test_every_line_is_of_the_format_and_every_family_is_described_once():
    metrics = Metrics()
    metrics.requests[200] += 1
    text = metrics.render(0, 0)
    assert text.endswith("\n")
    described = re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    assert len(described) == len(set(described)) == 9
    assert described == re.findall(r"^# HELP (\w+) \S", text, re.MULTILINE)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    for line in samples:
        match = re.fullmatch(r'(\w+?)(?:_bucket|_sum|_count)?(?:\{\w+="[\w.+]+"\})? [\d.]+', line)
        assert match, line
        assert match[1] in described
