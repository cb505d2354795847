"""Reports of the gradient noise scale."""

import pytest

from engine.report.write import write_report
from tests.helpers.report import HISTORY, page_of, put


@pytest.mark.drawn
def test_the_noise_scale_is_compared_with_the_batch(workplace):
    rising = [
        row | {"noise_scale": scale} for row, scale in zip(HISTORY, (None, 256, 1024), strict=True)
    ]
    put(workplace, "batch=128", "noise_scale=true", history=rising)
    put(workplace, "batch=2048", "noise_scale=true", history=rising)
    put(workplace, "batch=512")
    folder = workplace / "results" / "g"
    write_report("g")
    page = (folder / "README.md").read_text()
    kept = "| - | 640 | 1,024 | 1 of 3 |"
    assert f"| SGD | 128 {kept} 0.2 | 6.00 | 1.20 | a larger batch saves steps |" in page
    assert f"| SGD | 2048 {kept} 3.2 | 1.31 | 4.20 | a larger batch saves few steps |" in page
    assert "![noise](noise.png)" in page and (folder / "noise.png").stat().st_size > 1000


def test_no_scale_is_reported_if_estimates_are_not_positive(workplace):
    def history(*scales):
        return [row | {"noise_scale": s} for row, s in zip(HISTORY, scales, strict=True)]

    put(workplace, "batch=128", "noise_scale=true", history=history(None, 100.0, 200.0))
    put(workplace, "batch=2048", "noise_scale=true", history=history(-8.0, -2.0, 30.0))
    page = page_of(workplace)
    assert "| SGD | 128 | - | 150 | 200 | 1 of 3 | 0.85 |" in page
    assert "| SGD | 2048 | - | - | 30 | 2 of 3 | - | - | - | - |" in page


def test_a_report_without_noise_scales_does_not_mention_them(workplace):
    put(workplace)
    (workplace / "results" / "g").mkdir()
    (workplace / "results" / "g" / "noise.png").write_bytes(b"an older report's")
    write_report("g")
    assert "noise" not in (workplace / "results" / "g" / "README.md").read_text().lower()
    assert not (workplace / "results" / "g" / "noise.png").exists()
