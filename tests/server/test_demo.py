"""The demo's promise, on the real server: the stock loader ignores SimpleTuner's broken keys, ours
places every one.
"""

import demo


def test_demo_gives_what_it_promises(server):
    outcome = demo.run_demo(server)
    assert outcome.stock_placed == 0
    assert outcome.stock.pixels == outcome.bare.pixels
    assert outcome.our_keys == (outcome.keys, outcome.keys)
    assert outcome.ours.pixels != outcome.bare.pixels
    assert outcome.as_promised


def test_report_counts_what_the_stock_loader_would_place(bench):
    report = bench.ours(demo.BROKEN_LORA).report
    assert report["stock"]["placed"] == 0
    assert report["modules"] == {"placed": 22, "total": 22}
    assert report["unplaced"] == []
    assert report["family"].startswith("flux1")
