"""What petx costs beside what one would write without it: cases, timing, report. Used by ``petx bench``."""
