"""What the processor can do is asked, not assumed."""

import torch

from cssoftmax import processor


def test_the_processor_is_described_in_one_line_with_its_threads():
    text = processor.describe("cpu")
    threads = torch.get_num_threads()
    assert text.endswith(", 1 thread" if threads == 1 else f", {threads} threads")
    assert "\n" not in text


def test_the_cost_of_bfloat16_is_a_ratio_measured_once():
    slowdown = processor.bfloat16_slowdown()
    assert 0 < slowdown < 1e4
    assert processor.bfloat16_slowdown() == slowdown
