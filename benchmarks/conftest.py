"""Prints, after pytest-benchmark's table, each arm's ratio to its peers: medians of one run, arms in turn."""

RATIOS = []


def pytest_terminal_summary(terminalreporter):
    if not RATIOS:
        return
    terminalreporter.section("time of each peer over petx's, forward plus backward, medians of interleaved rounds")
    for case, times in RATIOS:
        own = times["petx"]
        peers = "   ".join(f"{name} {seconds / own:.2f}x" for name, seconds in times.items() if name != "petx")
        terminalreporter.write_line(f"{case:<42} petx {own * 1e3:8.1f} ms   {peers}")
