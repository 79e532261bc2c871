"""What benchmarks/scale.py makes of seconds and memory; and its parts with few shards and processes."""

import pytest

from benchmarks import scale


def figures_if(monkeypatch, seconds, added_mb):
    """The figures of the samples if these functions of their number were measured."""

    def run(number: int) -> dict[str, float]:
        added = added_mb(number)
        return {"seconds": seconds(number), "peak_mb": 400 + added, "added_mb": added}

    monkeypatch.setattr(scale, "stream_in_new_process", run)
    return scale.samples(sizes=(256, 4096, 65536), rounds=2)


def test_a_line_and_flat_memory_are_known_as_such(monkeypatch):
    figures = figures_if(monkeypatch, lambda n: 0.01 + 3e-5 * n, lambda n: 5.0)
    assert figures["fixed_seconds"] == pytest.approx(0.01)
    assert figures["seconds_a_million"] == pytest.approx(30)
    assert figures["largest_deviation"] == pytest.approx(0, abs=1e-9)  # rounding
    assert figures["peak_growth"] == 0
    assert figures["4096.seconds"] == 0.01 + 3e-5 * 4096


def test_other_growth_is_known_as_such(monkeypatch):
    figures = figures_if(monkeypatch, lambda n: 1e-9 * n**2, lambda n: n / 1000)
    assert figures["largest_deviation"] > 0.5
    assert figures["peak_growth"] == pytest.approx((65.536 - 0.256) / (400 + 0.256))


def test_the_store_s_shares_are_parts_of_the_time():
    figures = scale.store(num_shards=4)
    shares = [figures[f"{name}_share"] for name in ("listing", "claims", "writing")]
    assert all(0 < share < 1 for share in shares)
    assert figures["shards"] == 4


@pytest.mark.slow
def test_a_small_sweep_and_a_few_kills_lose_nothing():
    swept, killed = scale.sweep(cells=4), scale.kills(processes=2, num_shards=16)
    assert (swept["cells"], swept["repeated"]) == (4, 0)
    assert 2 <= swept["before_the_kill"] <= 4
    assert killed == {"killed": 2, "missing": 0, "different": 0, "rewritten": 0, "claims_left": 0}
