"""A certificate as a table of words."""

from petx.certify.certificate import RIGHT, WRONG, Certificate, Finding
from petx.certify.choice import SLOWER

HEAD = ("operation", "dtype", "verdict", "worst error", "speed")


def of(certificate: Certificate) -> str:
    """One line per operation and dtype, a line of the card above."""
    rows = [HEAD]
    for stem in sorted(certificate.findings):
        for name, found in certificate.findings[stem].items():
            rows.append((stem, name, found.verdict, _worst(found), speed(found)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    wrong = [
        f"{stem}, {name}: {found.said}"
        for stem, by in sorted(certificate.findings.items())
        for name, found in by.items()
        if found.verdict == WRONG
    ]
    return "\n".join([heading(certificate), "", *lines, *(["", "Wrong:", *wrong] if wrong else [])])


def heading(certificate: Certificate) -> str:
    card = certificate.facts["card"]
    return (
        f"{card['name']}, compute capability {card['capability']}, {card['multiprocessors']} multiprocessors, "
        f"{card['memory']} MiB, driver {card['driver']}; made {certificate.made} in {certificate.seconds:g} s"
    )


def _worst(found: Finding) -> str:
    if found.verdict != RIGHT or found.worst is None:
        return "-"
    worst = found.worst
    return f"{worst['error']:.1e}, bound {worst['bound']:.1e} ({worst['name']} of {worst['case']})"


def speed(found: Finding) -> str:
    """From how many rows the kernel is chosen, and at how many of the timed shapes."""
    if found.verdict != RIGHT:
        return "reference"
    if not found.times:
        return "not timed; the kernel is used"
    chosen = [point for point in found.times if point[3] <= SLOWER * point[4]]
    if not chosen:
        return f"slower at all {len(found.times)} shapes; the reference is used"
    gains = [point[4] / point[3] for point in found.times]
    ratios = f"{min(gains):.2f} to {max(gains):.2f} times eager torch's speed"
    if len(chosen) == len(found.times):
        return f"used at every size; {ratios}"
    # Above the most rows at which it lost, if there is a shape there.
    lost = max(point[0] for point in found.times if point not in chosen)
    above = [point[0] for point in chosen if point[0] > lost]
    where = f"used from {min(above):.0f} rows" if above else f"used at {len(chosen)} of {len(found.times)} shapes"
    return f"{where}; {ratios}"
